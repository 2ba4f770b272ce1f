"""Know decoders by their structure, and compute what they make in numpy exactly as ONNX defines it.

A decoder has only the operators that ``graph.decoders`` writes, in the forms that it writes, over constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper, numpy_helper

from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.scopes import Graph, Scope
from onnxcomp.numerics.encodings.expression import OPERATORS, Array

KEPT_BYTES = 2**21  # tables up to this size are kept for the next weight


class Decoders:
    """The tensors of a graph that decoders compute."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[int, bool] = {}
        self._kept: dict[int, Array] = {}
        self._outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}

    def outputs(self) -> Iterator[tuple[Scope, Node]]:
        """The last nodes of all decoders, with their scopes: something else than a decoder reads their output."""
        for scope, node in self.graph.nodes():
            if self.is_decoder(node):
                output = node.outputs[0]
                if id(output) in self._outputs or any(not self.is_decoder(each) for each in output.outputs):
                    yield scope, node

    def is_decoder(self, node: gs.Node) -> bool:
        """Whether the node computes a step of a decoder: all its inputs are constants or such steps."""
        if id(node) not in self._known:
            self._known[id(node)] = _step(node) is not None and all(self._is_constant(each) for each in node.inputs)
        return self._known[id(node)]

    def _is_constant(self, tensor: Any) -> bool:
        if isinstance(tensor, Constant):
            return True
        return len(tensor.inputs) == 1 and self.is_decoder(tensor.inputs[0])

    def value(self, tensor: Any) -> Array:
        """The values of a tensor that a decoder computes."""
        if isinstance(tensor, Constant):
            return np.asarray(tensor.values)
        if id(tensor) in self._kept:
            return self._kept[id(tensor)]
        step = _step(tensor.inputs[0])
        assert step is not None
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow to infinity is what is meant
            result = np.asarray(step(*(self.value(each) for each in tensor.inputs[0].inputs)))
        if result.nbytes <= KEPT_BYTES and len(tensor.outputs) > 1:
            self._kept[id(tensor)] = result
        return result


def _step(node: gs.Node) -> Callable[..., Array] | None:
    """What the node does to its inputs' values, or None where no decoder has such a node."""
    if node.domain not in (None, "", "ai.onnx") or len(node.outputs) != 1 or not node.outputs[0].name:
        return None
    count = {"Slice": 3, "Reshape": 2, "CumSum": 2, "Range": 3, "ScatterElements": 3, "Scatter": 3}
    attrs = dict(node.attrs)
    if any(isinstance(value, gs.Node.AttributeRef) for value in attrs.values()):
        return None
    match node.op:
        case "Add" | "Sub" | "Mul" | "Mod" | "Div" | "MatMul" if not attrs and len(node.inputs) == 2:
            return OPERATORS[node.op]
        case "Cast" if set(attrs) == {"to"}:
            kind = helper.tensor_dtype_to_np_dtype(attrs["to"])
            return lambda data: data.astype(kind)
        case "Gather" if not attrs.get("axis", 0):
            return OPERATORS["Gather"]
        case "Concat" if attrs == {"axis": 0}:
            return OPERATORS["Concat"]
        case "Transpose" if set(attrs) == {"perm"}:
            return lambda data: np.transpose(data, attrs["perm"])
        case "Slice" if set(attrs) == {"starts", "ends"} and attrs["starts"] == [0] and len(attrs["ends"]) == 1:
            return lambda data: data[: attrs["ends"][0]]
        case "ConstantOfShape" if isinstance(attrs.get("value"), AttributeProto):
            value = numpy_helper.to_array(attrs["value"].t)
            return lambda shape: np.full(shape, value[0], value.dtype)
        case "Slice" | "Reshape" | "CumSum" | "Range" | "ScatterElements" | "Scatter" if not attrs:
            return _WITH_INPUTS[node.op] if len(node.inputs) == count[node.op] else None
    return None


def _sliced(data: Array, starts: Array, ends: Array) -> Array:
    found: Array = data[int(starts[0]) : int(ends[0])]
    return found


def _reshaped(data: Array, shape: Array) -> Array:
    return data.reshape([data.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _summed(data: Array, axis: Array) -> Array:
    return np.cumsum(data, axis=int(axis), dtype=data.dtype)


def _counted(start: Array, limit: Array, step: Array) -> Array:
    return np.arange(int(start), int(limit), int(step), dtype=start.dtype)


def _scattered(data: Array, index: Array, updates: Array) -> Array:
    return OPERATORS["ScatterElements"](data, index, updates)


_WITH_INPUTS: dict[str, Callable[..., Array]] = {
    "Slice": _sliced,
    "Reshape": _reshaped,
    "CumSum": _summed,
    "Range": _counted,
    "ScatterElements": _scattered,
    "Scatter": _scattered,
}
