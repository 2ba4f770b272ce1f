"""What the rules work on that follow channels through a model, operator by operator.

    y = f(x) with f(x / s) = f(x) / s for s > 0, channel by channel     y has the channels of x
    y = W x                                                             y has channels of its own
    y = x + z                                                           x and z have the same channels
    anything else                                                       the channels of x are fixed

A scope's tensors that a subgraph reads are fixed, and so are outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.following import Following
from onnxcomp.graph.channels.groups import Bound, ChannelProduct, Channels, ChannelSource, Factor
from onnxcomp.graph.channels.ids import Numbers, along
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import constant_key, constant_value, given
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import all_finite

# Min and Max of shorter floats came with opset 12, and not everywhere.
WIDE_FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}
BROADCASTING_OPSET = 7  # from here on Add, Mul, Gemm, ... broadcast as numpy does


class ChannelFlow(Following):
    """What the rules of the operators work on when channels are to be scaled."""

    def __init__(self, graph: Graph, shapes: Shapes, through_bounds: bool) -> None:
        self.channels = Channels(graph)
        super().__init__(graph, shapes, self.channels.sets)
        self.channels.tensors = self.tensors
        self.through_bounds = through_bounds

    # --- sources, products, constants ----------------------------------------------------------------------

    def source(self, node: Node, shape: Sequence[int]) -> Numbers:
        """New channels that the node makes."""
        numbers = self.sets.fresh(shape)
        self.channels.sources.append(ChannelSource(self.key(node), node, numbers))
        return numbers

    def product(self, node: Node, index: int, axis: int, kind: str) -> Numbers | None:
        """Note a node that multiplies the channels along one axis of its data with its weight; those that it makes.

        None where that cannot be followed.
        """
        held = self.weight_of(node, index)
        form = None if held is None or held[0].kind != kind else matrix_form(held[1])
        if held is None or form is None:
            return None
        weight = held[1]
        op = LinearOp(self.scope, node, index, weight.tensor, form.axes)
        groups, outputs, length = form.pack(np.empty(weight.shape, np.bool_)).shape
        inputs = length if kind in ("linear", "recurrent") else form.shape[1]
        if kind == "conv_transpose":
            inputs = form.shape[0] // groups
        together = 1 if kind.startswith("conv") else groups  # other matrices all see the same channels
        read = along(self.of(op.data), axis, groups * inputs // together)
        if read is None:
            return None
        made = self.source(node, (groups * outputs // together,))
        rows, columns, fault = np.tile(made, together), np.tile(read, together), _fault(weight)
        if fault:
            self.sets.fix(rows, fault)
            self.sets.fix(columns, fault)
        self.channels.products.append(ChannelProduct(op, weight, form, rows, columns, fault))
        return made

    def factor(self, node: Node, index: int, numbers: Numbers, power: int = -1) -> None:
        """Note a constant that is scaled with the channels; where it cannot be they are fixed."""
        tensor = given(node, index)
        if tensor is None or not self.is_followed(numbers):
            return
        values = constant_value(tensor)
        if values is None:
            self.sets.fix(numbers, f"{tensor.name} is not a constant")
        elif constant_key(self.graph, tensor) in self.graph.encodings or not np.issubdtype(values.dtype, np.floating):
            self.sets.fix(numbers, f"{tensor.name} cannot be scaled")
        elif not all_finite(values):
            self.sets.fix(numbers, f"{tensor.name} has values that are not finite")
        elif np.any(values):
            self.channels.factors.append(Factor(self.scope, node, index, numbers, power))

    def bound(self, node: Node, low: float | None, high: float | None, numbers: Numbers) -> bool:
        """Note a Clip that can get bounds for each channel; False where it cannot."""
        if not self.through_bounds or self.scope.opset < BROADCASTING_OPSET + 1:
            return False
        stated = next((each.data_type for each in node.inputs[1:] if isinstance(each, Constant)), 0)
        dtype = WIDE_FLOATS.get(stated or self.shapes.data_type(node.inputs[0]))
        if dtype is None:
            return False
        self.channels.bounds.append(Bound(self.scope, node, low, high, dtype, numbers))
        return True


def _fault(weight: Weight) -> str:
    """Why a weight cannot be scaled, "" where it can."""
    if len(weight.roles) > 1:
        return f"{weight.name} is shared"
    if weight.encoding is not None:
        return f"{weight.name} is on levels, or pruned, already"
    return "" if all_finite(weight.values) else f"{weight.name} has values that are not finite"


Rule = Callable[[ChannelFlow, Node], bool]
