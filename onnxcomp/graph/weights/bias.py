"""Where the bias of a matrix product or convolution stands, and how to give it another one.

Conv, ConvTranspose, Gemm    the third input, which may be left out
MatMul                       a constant that the one node after it adds
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import given, sole_reader
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import set_input


@dataclass(frozen=True, eq=False)
class Bias:
    """A bias of one number an output channel. node: that reads it at ``index``; output: what it is part of."""

    scope: Scope
    node: Node
    index: int
    output: Any
    channels: int

    @property
    def name(self) -> str:
        """The constant's name, "" where it is left out."""
        constant = given(self.node, self.index)
        return "" if constant is None else str(constant.name)

    def values(self) -> Array:
        """(channels,) float64, zeros where it is left out."""
        constant = given(self.node, self.index)
        if constant is None:
            return np.zeros(self.channels)
        return np.asarray(constant.values, np.float64).reshape(-1)

    def set(self, graph: Graph, values: Array) -> None:
        """Give a node that computes in float32 a constant of its own with these values (channels,).

        The weight's type tells nothing: a shorter one may stand behind a Cast.
        """
        old = given(self.node, self.index)
        shape = (self.channels,) if old is None else tuple(old.shape)
        name = f"{self.output.name}_bias" if old is None else old.name
        made = graph.constant(self.scope, name, values.astype(np.float32).reshape(shape))
        set_input(self.node, self.index, made)


def bias_of(graph: Graph, scope: Scope, node: Node, channels: int) -> Bias | str:
    """The bias of a node with so many output channels, or why there is none that could be changed."""
    if node.op == "MatMul":
        return _added(graph, scope, node, channels)
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1):
        return "it scales its product or its bias"
    constant = given(node, 2)
    if constant is not None and not _fits(constant, channels):
        return "its bias is not a constant of one number a channel"
    return Bias(scope, node, 2, node.outputs[0], channels)


def _added(graph: Graph, scope: Scope, node: Node, channels: int) -> Bias | str:
    product = node.outputs[0]
    add = sole_reader(graph, scope, product, "Add")
    if add is None:
        return "no bias is added to it"
    index = 1 if add.inputs[0] is product else 0
    if not _fits(add.inputs[index], channels):
        return "what is added to it is not a constant of one number a channel"
    return Bias(scope, add, index, add.outputs[0], channels)


def _fits(tensor: Any, channels: int) -> bool:
    if not isinstance(tensor, Constant) or not np.issubdtype(tensor.dtype, np.floating):
        return False
    return tensor.size == channels and bool(tensor.shape) and tensor.shape[-1] == channels
