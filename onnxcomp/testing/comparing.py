"""Run models as the checks do, and name the outputs in which they differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcomp.runtime import Session
from onnxcomp.tensors import tensors_of

Feeds = dict[str, Any]
"""Arrays by the name of the input or output; lists of arrays for sequences."""

# ONNX Runtime fuses DequantizeLinear -> MatMul into MatMulNBits, by default with int8 activations, an error of
# up to 1%; level 0 computes in float32, so that a model stays comparable when its weights are kept another way.
EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
# What float rounding may change, as a share of an output's largest value, in the coarsest type of the model:
# some hundred times the type's own rounding (2^-24, 2^-11, 2^-8), since errors add up along a sum.
ROUNDING = {onnx.TensorProto.FLOAT16: 2e-2, onnx.TensorProto.BFLOAT16: 5e-2}
FLOAT_ROUNDING = 2e-5


def run(model: onnx.ModelProto | bytes, feeds: Feeds) -> Feeds:
    """Run in a fresh session; TargetError or VerificationError where ONNX Runtime refuses."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return dict(Session(content, config=EXACT).run(feeds))


def rounding_of(proto: onnx.ModelProto) -> float:
    """What rounding may change in this model's outputs, as a share of the largest value."""
    kinds = {tensor.data_type for tensor in tensors_of(proto)}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    return max((share for kind, share in ROUNDING.items() if kind in kinds), default=FLOAT_ROUNDING)


def differences(expected: Feeds, got: Feeds, *, rtol: float = 0.0) -> list[str]:
    """Name the outputs that differ: in type or shape, or in values by more than `rtol` of the largest one.

    With `rtol` 0 values must be equal bit for bit, but for the payload of a NaN.
    """
    if list(expected) != list(got):
        return [f"outputs {list(got)} for {list(expected)}"]
    return [name for name, value in expected.items() if not _same(value, got[name], rtol)]


def _same(left: Any, right: Any, rtol: float) -> bool:
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(_same, left, right, [rtol] * len(left)))
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind in "OUSb" or np.issubdtype(left.dtype, np.integer):
        return bool((left == right).all())
    if left.dtype.kind == "c":
        left, right = left.view(left.real.dtype), right.view(right.real.dtype)
    wide, other = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(wide)
        scale = np.abs(wide[finite]).max(initial=0.0)
        equal = (wide == other) | (np.isnan(wide) & np.isnan(other)) | (np.abs(wide - other) <= rtol * scale)
    return bool(equal.all())
