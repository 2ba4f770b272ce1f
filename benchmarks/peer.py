"""Rewrite one model with one of ONNX Runtime's own quantizers, or onnxslim: what this package is measured beside.

python benchmarks/peer.py dynamic|static|nbits|onnxslim MODEL OUT CALIB.npz
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType, shape_inference

BATCH = 10


class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The calibration arrays in batches, as ONNX Runtime's calibrators read them."""

    def __init__(self, path: str) -> None:
        arrays = dict(np.load(path))
        count = len(next(iter(arrays.values())))
        self.feeds: Iterator[dict[str, Any]] = (
            {name: array[start : start + BATCH] for name, array in arrays.items()}
            for start in range(0, count, BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None at the end."""
        return next(self.feeds, None)


def dynamic(model: str, out: str, calib: str) -> None:
    """quantize_dynamic, int8 weights per channel."""
    quantization.quantize_dynamic(model, out, per_channel=True, weight_type=QuantType.QInt8)


def static(model: str, out: str, calib: str) -> None:
    """quantize_static in QDQ form, uint8 activations, int8 weights per channel, after its own preprocessing."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        shape_inference.quant_pre_process(model, prepared)
        quantization.quantize_static(
            prepared, out, Batches(calib), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def nbits(model: str, out: str, calib: str) -> None:
    """MatMulNBits: 4-bit weights in blocks of 32 for MatMul, the rest as it was."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(model), bits=4, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    onnx.save(quantizer.model.model, out)


def onnxslim(model: str, out: str, calib: str) -> None:
    """onnxslim, whose rewrites are exact."""
    import onnxslim as peer

    peer.slim(model, out)


if __name__ == "__main__":
    {"dynamic": dynamic, "static": static, "nbits": nbits, "onnxslim": onnxslim}[sys.argv[1]](*sys.argv[2:5])
