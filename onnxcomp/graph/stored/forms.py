"""The static shape and type of what operators make that only change a tensor's form, or that decode constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import given, ints

FORM = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# Operators of decoders whose results have a form that their inputs' forms tell.
TOLD = frozenset({
    "Add", "Sub", "Mul", "Mod", "Div", "Gather", "Concat", "ScatterElements", "Scatter", "CumSum",
    "Cast", "Reshape", "Transpose",
})  # fmt: skip

Shape = tuple[int, ...]


def reformed(node: Node, shape: Shape) -> Shape | None:
    """The shape after a node that changes form or type of a tensor of this shape; None where it is not known."""
    match node.op:
        case "Identity" | "Cast":
            return shape
        case "Transpose":
            return tuple(shape[axis] for axis in order_of(node, len(shape)))
        case "Reshape":
            return _reshaped(shape, ints(given(node, 1)) or node.attrs.get("shape"), bool(node.attrs.get("allowzero")))
        case "Flatten":
            axis = int(node.attrs.get("axis", 1))
            return math.prod(shape[:axis]), math.prod(shape[axis:])
        case "Squeeze" | "Unsqueeze":
            stated = given(node, 1)
            axes = node.attrs.get("axes") if stated is None else ints(stated)
            if axes is None and (stated is not None or node.op == "Unsqueeze"):
                return None
            return _squeezed(shape, axes) if node.op == "Squeeze" else _unsqueezed(shape, axes or [])
    return None


def order_of(transpose: Node, rank: int) -> Shape:
    """The axes of the input in the order of the output."""
    return tuple(transpose.attrs.get("perm") or range(rank)[::-1])


def cast_type(node: Node) -> np.dtype[Any] | None:
    """The type that a Cast states, None for any other node."""
    to = node.attrs.get("to") if node.op == "Cast" else None
    return np.dtype(helper.tensor_dtype_to_np_dtype(to)) if isinstance(to, int) and to else None


def decoded_form(tensor: Any, value: Callable[[Any], Array]) -> tuple[Shape, np.dtype[Any]]:
    """Shape and type of what a decoder's nodes compute. value: computes it, where the operators do not tell."""
    if isinstance(tensor, Constant):
        return tuple(tensor.shape), np.dtype(tensor.dtype)
    node = tensor.inputs[0]
    if node.op not in TOLD:
        found = value(tensor)
        return found.shape, found.dtype
    (shape, dtype), *others = (decoded_form(each, value) for each in node.inputs)
    match node.op:
        case "Add" | "Sub" | "Mul" | "Mod" | "Div":
            return np.broadcast_shapes(shape, others[0][0]), dtype
        case "Gather":
            return (*others[0][0], *shape[1:]), dtype
        case "Concat":
            return (shape[0] + sum(each[0] for each, _ in others), *shape[1:]), dtype
        case "ScatterElements" | "Scatter" | "CumSum":
            return shape, dtype
    after = reformed(node, shape)
    assert after is not None
    return after, cast_type(node) or dtype


def _reshaped(shape: Shape, wanted: Sequence[int] | None, keeps_zeros: bool) -> Shape | None:
    if (
        wanted is None
        or (keeps_zeros and 0 in wanted)
        or any(not size and at >= len(shape) for at, size in enumerate(wanted))
    ):
        return None
    sizes = [shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    rest = math.prod(each for each in sizes if each >= 0)
    found = tuple(math.prod(shape) // max(1, rest) if each < 0 else each for each in sizes)
    return found if math.prod(found) == math.prod(shape) else None


def _squeezed(shape: Shape, axes: Sequence[int] | None) -> Shape:
    gone = (
        {axis % len(shape) for axis in axes} if axes is not None else {i for i, size in enumerate(shape) if size == 1}
    )
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _unsqueezed(shape: Shape, axes: Sequence[int]) -> Shape:
    rank = len(shape) + len(axes)
    new, old = {axis % rank for axis in axes}, iter(shape)
    return tuple(1 if axis in new else next(old) for axis in range(rank))
