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

from onnxcomp.graph.channels.groups import Bound, ChannelProduct, Channels, ChannelSource, Factor
from onnxcomp.graph.channels.ids import NONE, Numbers, along, padded, trimmed
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import constant_key, constant_value, given, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Role, Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite

# Min and Max of shorter floats came with opset 12, and not everywhere.
WIDE_FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}
BROADCASTING_OPSET = 7  # from here on Add, Mul, Gemm, ... broadcast as numpy does


class ChannelFlow:
    """What the rules of the operators work on: the channels of the tensors seen so far, in one scope at a time.

    A rule returns False for a node that it cannot follow, before it has changed anything.
    """

    def __init__(self, graph: Graph, shapes: Shapes, through_bounds: bool) -> None:
        self.channels = Channels(graph)
        self.sets = self.channels.sets
        self.shapes = shapes
        self.through_bounds = through_bounds
        self.scope = graph.main
        self._numbers: dict[Any, Numbers] = {}
        self._homes: dict[Any, Scope] = {}
        found = [(role, weight) for weight in weights(graph) for role in weight.roles]
        self._weights: dict[tuple[Node, int], tuple[Role, Weight]] = {
            (role.node, role.input_index): (role, weight) for role, weight in found
        }

    @property
    def graph(self) -> Graph:
        return self.channels.graph

    def enter(self, scope: Scope) -> None:
        """Go on with the nodes of another scope."""
        self.scope = scope

    # --- tensors -------------------------------------------------------------------------------------------

    def of(self, tensor: Any) -> Numbers:
        """The channels of a tensor; those of an outer scope cannot be scaled from inside."""
        numbers = self._numbers.get(tensor, NONE)
        if self._homes.get(tensor, self.scope) is not self.scope:
            self.sets.fix(numbers, f"{tensor.name} is read in a subgraph")
        return numbers

    def is_followed(self, numbers: Numbers) -> bool:
        """Whether any of the channels could still be scaled."""
        return not bool(self.sets.is_fixed(numbers).all())

    def give(self, tensor: Any, numbers: Numbers) -> bool:
        """Say which channels a tensor has."""
        self._numbers[tensor] = trimmed(numbers)
        self._homes[tensor] = self.scope
        self.channels.tensors[tensor] = self.scope, self._numbers[tensor], self.rank(tensor)
        return True

    def fix(self, tensor: Any, reason: str) -> None:
        """State that a tensor has to stay as it is."""
        self.sets.fix(self._numbers.get(tensor, NONE), reason)

    def stop(self, node: Node) -> None:
        """All that the node reads has to stay as it is."""
        for tensor in node.inputs:
            self.sets.fix(self.of(tensor), f"{self.key(node)} ({node.op}) reads its channels and cannot be scaled")

    def key(self, node: Node) -> str:
        return node_key(self.scope, node)

    def rank(self, tensor: Any) -> int | None:
        return self.shapes.rank(tensor)

    def spread(self, tensor: Any) -> Numbers | None:
        """The channels with as many axes as the tensor, None where its rank is not known."""
        numbers, rank = self.of(tensor), self.rank(tensor)
        return None if rank is None or numbers.ndim > rank else padded(numbers, rank)

    # --- sources, products, constants ----------------------------------------------------------------------

    def source(self, node: Node, shape: Sequence[int]) -> Numbers:
        """New channels that the node makes."""
        numbers = self.sets.fresh(shape)
        self.channels.sources.append(ChannelSource(self.key(node), node, numbers))
        return numbers

    def weight_of(self, node: Node, index: int) -> tuple[Role, Weight] | None:
        """The weight that a node reads at an input, and its role there."""
        return self._weights.get((node, index))

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
