"""What the node of a decoder does to its inputs' values, and which nodes and values are no decoder's.

    Div(int32, int32 > 0)   -> computed            Div(float32, float32)   -> no decoder writes that

Only forms that ``graph.decoders`` writes are known, and only operands on which numpy and ONNX cannot differ: a step
raises ValueError, IndexError or TypeError for others, before it makes a tensor that is larger than any decoder's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxcomp.numerics.encodings.expression import OPERATORS, Array

FOLDED_BYTES = 2**30  # ONNX Runtime folds no node whose output is larger, and no decoder computes more
INTERNED_BYTES = 64  # literals up to this size are written once for all that are equal
# What the tensors of decoders are called, and become where a function that holds them is written out. ``expand`` knows
# them by it, so it stays as it is, and ``strip-metadata`` leaves such names.
WRITTEN_NAME = re.compile(r"_[0-9a-zA-Z]{1,4}(_\d+)*")

TYPES = frozenset({
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip
SHORT_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
EXACT_SUM = 2**53  # integers below it are exact in float64, in any order of adding

Step = Callable[..., Array]


def step_of(node: gs.Node) -> Step | None:
    """What the node does to its inputs' values, or None where no decoder has such a node."""
    if node.domain not in (None, "", "ai.onnx") or node.name or len(node.outputs) != 1 or not node.outputs[0].name:
        return None
    attrs = dict(node.attrs)
    if any(isinstance(value, gs.Node.AttributeRef) for value in attrs.values()):
        return None
    step = _with_attributes(node.op, attrs) if attrs else WITHOUT_ATTRIBUTES.get(node.op)
    count = 1 if node.op == "Slice" and attrs else INPUTS.get(node.op, len(node.inputs))
    return step if step is not None and len(node.inputs) == count else None


def _with_attributes(op: str, attrs: dict[str, Any]) -> Step | None:
    match op:
        case "Cast" if set(attrs) == {"to"} and attrs["to"] in TYPES:
            return lambda data: _cast(data, attrs["to"])
        case "Concat" if attrs == {"axis": 0}:
            return _joined
        case "Transpose" if set(attrs) == {"perm"}:
            return lambda data: np.transpose(data, attrs["perm"])
        case "Slice" if set(attrs) == {"starts", "ends"}:
            return lambda data: _first(data, attrs["starts"], attrs["ends"])
        case "ConstantOfShape" if isinstance(attrs.get("value"), AttributeProto) and set(attrs) == {"value"}:
            tensor = attrs["value"].t
            if tensor.data_type in TYPES and list(tensor.dims) == [1]:
                return lambda shape: _filled(shape, numpy_helper.to_array(tensor))
    return None


def _refuse(reason: str) -> None:
    raise ValueError(f"no decoder does that: {reason}")


def _refuse_large(shape: Iterable[int], dtype: np.dtype[Any]) -> None:
    if math.prod(map(int, shape)) * dtype.itemsize > FOLDED_BYTES:
        _refuse("the result is larger than ONNX Runtime folds")


def _combined(op: str) -> Step:
    """Add, Sub or Mul: of integers, or of floats in a type that ONNX Runtime computes in itself."""

    def step(left: Array, right: Array) -> Array:
        if left.dtype != right.dtype or not (_is_integer(left) or left.dtype in (np.float32, np.float64)):
            _refuse(f"{op} of {left.dtype} and {right.dtype}")
        _refuse_large(np.broadcast_shapes(left.shape, right.shape), left.dtype)
        return OPERATORS[op](left, right)

    return step


def _divided(op: str) -> Step:
    def step(left: Array, right: Array) -> Array:
        if left.dtype != right.dtype or not _is_integer(left) or (left < 0).any() or (right <= 0).any():
            _refuse(f"{op} of other than integers not below 0 by positive ones")
        _refuse_large(np.broadcast_shapes(left.shape, right.shape), left.dtype)
        return OPERATORS[op](left, right)

    return step


def _product(left: Array, right: Array) -> Array:
    """The matrix product of whole numbers, which has no rounding and so no order of sums."""
    if left.dtype != np.float64 or right.dtype != np.float64 or left.ndim != 2 or right.ndim != 2:
        _refuse("MatMul of other than two matrices in float64")
    largest = float(np.abs(left).max(initial=0)) * float(np.abs(right).max(initial=0)) * left.shape[1]
    if not largest < EXACT_SUM or any((each != np.rint(each)).any() for each in (left, right)):
        _refuse("MatMul of other than whole numbers")
    _refuse_large((left.shape[0], right.shape[1]), left.dtype)
    return OPERATORS["MatMul"](left, right)


def _cast(data: Array, to: int) -> Array:
    kind = helper.tensor_dtype_to_np_dtype(to)
    _refuse_large(data.shape, kind)
    result = data.astype(kind)
    if to in SHORT_FLOATS and data.dtype == np.float32:
        return result  # one rounding, to the nearest even, wherever it is computed
    if not np.array_equal(result.astype(data.dtype), data, equal_nan=not _is_integer(data) and data.dtype != bool):
        _refuse(f"Cast to {kind} of values that it does not hold")
    return result


def _taken(data: Array, index: Array) -> Array:
    if not _is_integer(index):
        _refuse("Gather by other than integers")
    _refuse_large((*index.shape, *data.shape[1:]), data.dtype)
    return OPERATORS["Gather"](data, index)


def _joined(*parts: Array) -> Array:
    if len({each.dtype for each in parts}) != 1:
        _refuse("Concat of several types")
    return OPERATORS["Concat"](*parts)


def _first(data: Array, starts: Any, ends: Any) -> Array:
    if list(np.asarray(starts).reshape(-1)) != [0] or np.asarray(ends).size != 1:
        _refuse("Slice of other than the first rows")
    return OPERATORS["Slice"](data, end=int(np.asarray(ends).reshape(-1)[0]))


def _reshaped(data: Array, shape: Array) -> Array:
    return data.reshape([data.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _summed(data: Array, axis: Array) -> Array:
    if not _is_integer(data) or int(axis) != 0:
        _refuse("CumSum of other than integers along the first axis")
    return OPERATORS["CumSum"](data)


def _counted(start: Array, limit: Array, step: Array) -> Array:
    if any(each.dtype != np.int32 for each in (start, limit, step)) or int(start) != 0 or int(step) != 1:
        _refuse("Range other than 0, 1, 2, ...")
    _refuse_large((max(0, int(limit)),), limit.dtype)
    return OPERATORS["Range"](limit=int(limit))


def _filled(shape: Array, value: Array) -> Array:
    _refuse_large(shape, value.dtype)
    return OPERATORS["ConstantOfShape"](shape=tuple(map(int, shape)), value=value[0])


def _scattered(data: Array, index: Array, updates: Array) -> Array:
    if data.ndim != 1 or index.shape != updates.shape or index.ndim != 1 or data.dtype != updates.dtype:
        _refuse("scattering other than into one axis")
    return OPERATORS["ScatterElements"](data, index, updates)


def _is_integer(data: Array) -> bool:
    return np.issubdtype(data.dtype, np.integer)


INPUTS = {
    "Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "Mod": 2, "MatMul": 2, "Gather": 2, "Cast": 1, "Transpose": 1,
    "ConstantOfShape": 1, "Reshape": 2, "CumSum": 2, "Range": 3, "Slice": 3, "ScatterElements": 3, "Scatter": 3,
}  # fmt: skip
WITHOUT_ATTRIBUTES: dict[str, Step] = {
    **{op: _combined(op) for op in ("Add", "Sub", "Mul")},
    **{op: _divided(op) for op in ("Div", "Mod")},
    "MatMul": _product,
    "Gather": _taken,
    "Slice": _first,
    "Reshape": _reshaped,
    "CumSum": _summed,
    "Range": _counted,
    "ScatterElements": _scattered,
    "Scatter": _scattered,
}
