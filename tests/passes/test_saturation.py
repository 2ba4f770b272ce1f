"""On processors whose sums of u8 x s8 products saturate, weights of 7 bits are right and weights of 8 are not.

qemu-user runs ONNX Runtime as a Haswell, which has AVX2 and no VNNI.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.model import Model
from onnxcomp.target import Target
from tests.passes.test_quantize_static import model_of, quantized

QEMU = shutil.which("qemu-x86_64")
SCRIPT = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (package qemu-user)"),
]


def on_haswell(model: Model, x: NDArray[Any], folder: Path) -> NDArray[Any]:
    """The model's output as a Haswell computes it."""
    paths = [folder / name for name in ("model.onnx", "x.npy", "y.npy")]
    paths[0].write_bytes(model.to_bytes())
    np.save(paths[1], x)
    run = [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", SCRIPT, *map(str, paths)]
    subprocess.run(run, check=True, capture_output=True, timeout=240)
    result: NDArray[Any] = np.load(paths[2])
    return result


@pytest.mark.parametrize(
    ("cpu", "fields", "is_right"),
    [("vnni", {}, False), ("haswell", {}, True), ("vnni", {"weight": "uint8"}, True)],
)
def test_large_weights_saturate_unless_they_keep_to_seven_bits(
    cpu: str, fields: dict[str, Any], is_right: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    # All near the largest code: each pair of products is about 2 * 255 * 127, twice what 16 bits hold.
    weight = rng.uniform(0.9, 1, (64, 16)).astype(np.float32)
    x = rng.uniform(0.9, 1, (8, 64)).astype(np.float32)
    model = model_of("g (float[N,64] x) => (float[N,16] y) { y = MatMul(x, W) }", W=weight)
    result, _ = quantized(model, {"x": x}, context={"target": Target.of("cpu", cpu=cpu)}, **fields)
    error = np.abs(on_haswell(result, x, tmp_path) - x @ weight).max() / np.abs(x @ weight).max()
    assert error < 0.01 if is_right else error > 0.2
