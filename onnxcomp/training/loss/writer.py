"""Nodes added to a model's proto: names that are free, and operators in the form that its opset wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]

SUM_AXES_AS_INPUT = 13  # the opset from which ReduceSum takes its axes as an input


class NodeWriter:
    """Adds nodes, constants and inputs at the end of a model's main graph. The proto is edited in place."""

    def __init__(self, proto: ModelProto, opset: int) -> None:
        self._graph = proto.graph
        self._opset = opset
        names = [each.name for each in proto.graph.input] + [each.name for each in proto.graph.initializer]
        names += [name for node in proto.graph.node for name in (*node.input, *node.output, node.name)]
        self._names = set(names)

    def free(self, base: str) -> str:
        """A name that nothing in the graph has."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def input(self, base: str, dtype: Any, rank: int) -> str:
        """A new input of that rank, open in all dimensions."""
        name = self.free(base)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._graph.input.append(helper.make_tensor_value_info(name, kind, [None] * rank))
        return name

    def constant(self, values: Array | np.floating[Any]) -> str:
        """A new initializer."""
        name = self.free("loss_constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new node."""
        output = self.free(f"loss_{op.lower()}")
        self._graph.node.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def total(self, tensor: str) -> str:
        """(): the sum of all elements."""
        return self.node("ReduceSum", tensor, keepdims=0)

    def sum_of_last(self, tensor: str, rank: int) -> str:
        """The sums along the last axis, which stays with length 1."""
        if self._opset >= SUM_AXES_AS_INPUT:
            return self.node("ReduceSum", tensor, self.constant(np.array([rank - 1], np.int64)), keepdims=1)
        return self.node("ReduceSum", tensor, axes=[rank - 1], keepdims=1)

    def with_last(self, tensor: str, axis: int, rank: int) -> str:
        """The tensor with an axis moved to the end."""
        order = moved_last(axis, rank)
        return tensor if order == list(range(rank)) else self.node("Transpose", tensor, perm=order)

    def as_float(self, tensor: str, dtype: Any) -> str:
        """The tensor in float32."""
        return tensor if np.dtype(dtype) == np.float32 else self.node("Cast", tensor, to=TensorProto.FLOAT)

    def outputs(self, names: Sequence[str]) -> None:
        """Make these float scalars the outputs of the graph, in place of what they were."""
        del self._graph.output[:]
        self._graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in names)


def moved_last(axis: int, rank: int) -> list[int]:
    """The order of axes in which one of them is the last."""
    return [*(each for each in range(rank) if each != axis % rank), axis % rank]
