"""Whole-number vectors that a graph computes from shapes, as far as they are known before it runs.

x: float[N, 3, 8]    Shape(x) -> [size of x's axis 0, 3, 8]    Gather(Shape(x), [1, 2]) -> [3, 8]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_value, given, has_references, ints, is_onnx
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.topology import ordered

if TYPE_CHECKING:
    from onnxcomp.graph.infer.shapes import Shapes

MAX_ELEMENTS = 1024
WHOLE_TYPES: dict[int, type[np.signedinteger[Any]]] = {
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
}

Partial = np.ndarray[Any, np.dtype[np.object_]]  # of int, or AxisSize for what is open


@dataclass(frozen=True, eq=False)
class AxisSize:
    """The size of a tensor's axis, which is not known before the model runs."""

    tensor: Any
    axis: int


def known_integers(graph: Graph, shapes: Shapes) -> dict[Any, Array]:
    """The tensors made from shapes of which every element is known: tensor -> values."""
    return fully_known(*partly_known_integers(graph, shapes))


def fully_known(partial: dict[Any, Partial], types: dict[Any, int]) -> dict[Any, Array]:
    """Those of the partly known tensors of which every element is known, as arrays of their types."""
    return {
        tensor: values.astype(WHOLE_TYPES[types[tensor]])
        for tensor, values in partial.items()
        if not any(isinstance(each, AxisSize) for each in values.flat)
    }


def partly_known_integers(graph: Graph, shapes: Shapes) -> tuple[dict[Any, Partial], dict[Any, int]]:
    """The tensors made from shapes, with what is known of each element, and their types."""
    partial: dict[Any, Partial] = {}
    types: dict[Any, int] = {}
    for scope in graph.scopes:
        for node in ordered(scope.graph.nodes):
            if not is_onnx(node) or has_references(node) or node.op not in RULES or len(node.outputs) != 1:
                continue
            values = RULES[node.op](node, partial, shapes, scope.opset)
            if values is not None and values.size <= MAX_ELEMENTS:
                partial[node.outputs[0]] = values
                types[node.outputs[0]] = _type_of(node, types)
    return partial, types


def _type_of(node: Node, types: dict[Any, int]) -> int:
    """INT64 for all that comes from shapes, until it is cast."""
    if node.op == "Cast":
        return int(node.attrs["to"])
    for tensor in node.inputs[:1]:
        if node.op not in ("Shape", "Size"):
            return tensor.data_type if isinstance(tensor, Constant) else types.get(tensor, int(TensorProto.INT64))
    return int(TensorProto.INT64)


def _of(tensor: Any, partial: dict[Any, Partial]) -> Partial | None:
    """The partly known values of a tensor; a constant is known in full."""
    if isinstance(tensor, Constant):
        if tensor.data_type not in WHOLE_TYPES or tensor.size > MAX_ELEMENTS:
            return None
        return _objects(tensor.values.tolist(), tuple(tensor.shape))
    return partial.get(tensor)


def _objects(values: Any, shape: tuple[int, ...]) -> Partial:
    made = np.empty(shape, object)
    made[...] = np.array(values, object).reshape(shape)
    return made


def _shape(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    shape = shapes.shape(node.inputs[0])
    if shape is None:
        return None
    sizes = [AxisSize(node.inputs[0], axis) if size is None else size for axis, size in enumerate(shape)]
    part = sizes[slice(node.attrs.get("start", 0), node.attrs.get("end"))] if opset >= 15 else sizes
    return _objects(part, (len(part),))


def _size(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    static = shapes.static(node.inputs[0])
    return None if static is None else _objects(int(np.prod(static, dtype=np.int64)), ())


def _pass_on(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    return partial.get(node.inputs[0])


def _cast(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    values = partial.get(node.inputs[0])
    if values is None or node.attrs.get("to") not in WHOLE_TYPES:
        return None
    known = [int(each) for each in values.reshape(-1).tolist() if not isinstance(each, AxisSize)]
    return values if all(abs(each) < 2**31 for each in known) else None


def _gather(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    values, indices = partial.get(node.inputs[0]), constant_value(node.inputs[1])
    if values is None or values.ndim != 1 or indices is None or node.attrs.get("axis", 0) not in (0, -1):
        return None
    if indices.size == 0 or np.any(indices < -len(values)) or np.any(indices >= len(values)):
        return None
    return _objects([values[int(i)] for i in indices.reshape(-1)], indices.shape)


def _slice(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    values = partial.get(node.inputs[0])
    if values is None or values.ndim != 1:
        return None
    if opset < 10:
        bounds: list[Any] = [node.attrs.get("starts"), node.attrs.get("ends"), [1]]
    else:
        bounds = [ints(given(node, i)) for i in (1, 2)] + [[1] if given(node, 4) is None else ints(given(node, 4))]
    if any(each is None or len(each) != 1 for each in bounds) or bounds[2][0] < 1:
        return None
    return values[bounds[0][0] : bounds[1][0] : bounds[2][0]]


def _concat(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    parts = [_of(each, partial) for each in node.inputs]
    if any(each is None or each.ndim != 1 for each in parts) or all(isinstance(t, Constant) for t in node.inputs):
        return None
    return np.concatenate([each for each in parts if each is not None])


def _squeeze(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    values = partial.get(node.inputs[0])
    return values.reshape(()) if values is not None and values.shape == (1,) else None


def _unsqueeze(node: Node, partial: dict[Any, Partial], shapes: Shapes, opset: int) -> Partial | None:
    values = partial.get(node.inputs[0])
    return values.reshape(1) if values is not None and values.shape == () else None


RULES: dict[str, Callable[[Node, dict[Any, Partial], Shapes, int], Partial | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _pass_on,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
