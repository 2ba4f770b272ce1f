"""Weights that two matrices of lower rank can take the place of, whatever node reads them.

    MatMul, Gemm    x @ W         ->  (x @ L) @ R         also as the left operand, transposed, stacked
    Conv, 1 x 1     W * x         ->  L * (R * x)
    Gather          W[ids]        ->  L[ids] @ R           a smaller table and a product
    LSTM, GRU, RNN  W_ih of x     ->  L of x @ R           the product of the inputs, before the node

Each is a stack of matrices (groups, outputs, K): output = matrix @ input column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.graph.factors.conv_chain import chain_obstacle, put_chain
from onnxcomp.graph.factors.products import Factors, is_transposed, matrix_use, obstacle
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import has_references
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.report.macs import Macs
from onnxcomp.graph.weights.bias import Bias
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op
from onnxcomp.graph.weights.lookups import lookup_of
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.encodings.encoding import Encoding, GridEncoding
from onnxcomp.operators import RECURRENT

NODE_BYTES = 120  # what one node more, its names and the second tensor's header take in the file
CONV_BYTES = 260  # the same of a convolution, with all that it says


@dataclass(frozen=True, eq=False)
class Place(ABC):
    """A weight that factors can take the place of."""

    weight: Weight

    @property
    def name(self) -> str:
        """The weight's."""
        return self.weight.name

    @property
    @abstractmethod
    def matrices(self) -> Array:
        """The weight as matrices (groups, outputs, K)."""

    @abstractmethod
    def put(self, graph: Graph, left: Array, right: Array) -> None:
        """Let the nodes read left (groups, outputs, r) and right (groups, r, K) instead."""

    @property
    def full_rank(self) -> int:
        """From which on factors hold any such matrices."""
        return int(min(self.matrices.shape[1:]))

    @property
    def node_bytes(self) -> int:
        """What the nodes take that factors need more."""
        return NODE_BYTES * len(self.weight.roles)

    def values_of(self, rank: int) -> int:
        """How many values both factors have."""
        groups, outputs, length = self.matrices.shape
        return int(groups * rank * (outputs + length))

    def bytes_of(self, rank: int) -> int:
        """What both factors and the nodes that they need take in the file."""
        return self.values_of(rank) * self.weight.dtype.itemsize + self.node_bytes

    @property
    def largest_rank(self) -> int:
        """The largest rank whose factors are smaller than the weight, 0 where none are."""
        room = self.weight.size_bytes - self.node_bytes - 1
        return max(0, min(self.full_rank, room // (self.values_of(1) * self.weight.dtype.itemsize)))

    def macs(self, counted: Mapping[Node, Macs | None], shapes: Shapes) -> tuple[float, float]:
        """Multiply-accumulates with the weight, and those of one value of the factors; a dimension that the model
        leaves open counts as 1, and so does one that is not known."""
        found = [counted.get(each.node) for each in self.weight.roles]
        total = float(sum(self.weight.size if each is None else each.count for each in found))
        return total, total / self.weight.size

    def bias(self, graph: Graph) -> Bias | None:
        """The bias that can make up for a shift of the outputs' means, None where there is none."""
        return None


@dataclass(frozen=True, eq=False)
class ProductPlace(Place):
    """An operand of matrix products."""

    uses: tuple[LinearOp, ...]

    @property
    def matrices(self) -> Array:
        seen = self._operand()
        matrices = seen.swapaxes(-1, -2) if self.uses[0].index else seen
        return matrices.reshape(-1, *matrices.shape[-2:])

    def put(self, graph: Graph, left: Array, right: Array) -> None:
        stack = self._operand().shape[:-2]
        own, other = (each.reshape(*stack, *each.shape[1:]) for each in (left, right))
        if self.uses[0].index:
            own, other = other.swapaxes(-1, -2), own.swapaxes(-1, -2)
        factors = Factors(graph, self.weight, own, other, self.uses[0])
        for each in self.uses:
            factors.put_into(each)

    def bias(self, graph: Graph) -> Bias | None:
        use = self.uses[0]
        return shiftable_bias(graph, use) if len(self.uses) == 1 and use.index and len(use.perm) == 2 else None

    def _operand(self) -> Array:
        """As the product takes it: (.., summed, channels) of a right operand, (channels, summed) of a left one."""
        values, use = np.asarray(self.weight.values), self.uses[0]
        if values.ndim > 2:
            return use.seen(values)
        return values.T if is_transposed(use) else values


@dataclass(frozen=True, eq=False)
class PointwisePlace(Place):
    """The kernel of convolutions that has one tap."""

    uses: tuple[LinearOp, ...]

    @property
    def node_bytes(self) -> int:
        return CONV_BYTES * len(self.uses)

    @property
    def matrices(self) -> Array:
        use = self.uses[0]
        outputs, inputs = use.seen_shape[:2]
        return use.seen(np.asarray(self.weight.values)).reshape(use.groups, outputs // use.groups, inputs)

    def put(self, graph: Graph, left: Array, right: Array) -> None:
        ones = (1,) * (len(self.uses[0].perm) - 2)
        groups = self.uses[0].groups
        made = [
            graph.constant(self.weight.scope, f"{self.weight.tensor.name}_{name}", np.ascontiguousarray(each))
            for name, each in (("right", right.reshape(-1, right.shape[2], *ones)),
                               ("left", left.reshape(-1, left.shape[2], *ones)))
        ]  # fmt: skip
        for use in self.uses:
            put_chain(graph, use, made, [groups, groups])

    def bias(self, graph: Graph) -> Bias | None:
        return shiftable_bias(graph, self.uses[0]) if len(self.uses) == 1 else None


@dataclass(frozen=True, eq=False)
class TablePlace(Place):
    """A table whose rows nodes look up."""

    @property
    def matrices(self) -> Array:
        return np.asarray(self.weight.values).T[None]

    def put(self, graph: Graph, left: Array, right: Array) -> None:
        name, scope = self.weight.tensor.name, self.weight.scope
        table = graph.constant(scope, f"{name}_left", np.ascontiguousarray(right[0].T))
        wide = graph.constant(scope, f"{name}_right", np.ascontiguousarray(left[0].T))
        for node in dict.fromkeys(each.node for each in self.weight.roles):
            own = scope_of(graph, node)
            label, ids, result, attributes = node.name, node.inputs[1], node.outputs[0], dict(node.attrs)
            rows = graph.variable(f"{result.name}_lowrank", dtype=result.dtype)
            first = graph.unique_name(f"{label}_lowrank") if label else ""
            graph.node(own, "Gather", [table, ids], [rows], name=first, attrs=attributes, before=node)
            node.outputs.clear()
            graph.node(own, "MatMul", [rows, wide], [result], name=label, before=node)
            graph.remove_node(own, node)

    def macs(self, counted: Mapping[Node, Macs | None], shapes: Shapes) -> tuple[float, float]:
        """None with the table; those of the product, in which each value of R counts for each row."""
        looked_up = 0
        for role in self.weight.roles:
            shape = shapes.shape(role.node.outputs[0])
            looked_up += int(np.prod([each or 1 for each in shape[:-1]])) if shape else 1
        rows, width = self.weight.shape
        return 0.0, looked_up * width / (rows + width)


@dataclass(frozen=True, eq=False)
class RecurrentPlace(Place):
    """What a recurrent node multiplies its inputs with, for all gates and directions together."""

    @property
    def matrices(self) -> Array:
        values = np.asarray(self.weight.values)
        return values.reshape(1, -1, values.shape[2])

    def put(self, graph: Graph, left: Array, right: Array) -> None:
        name, scope = self.weight.tensor.name, self.weight.scope
        inner = graph.constant(scope, f"{name}_right", np.ascontiguousarray(right[0].T))
        outer = graph.constant(scope, f"{name}_left", left.reshape(*self.weight.shape[:2], -1))
        for node in dict.fromkeys(each.node for each in self.weight.roles):
            source = node.inputs[0]
            between = graph.variable(f"{source.name}_lowrank", dtype=source.dtype)
            label = graph.unique_name(f"{node.name}_lowrank") if node.name else ""
            graph.node(scope_of(graph, node), "MatMul", [source, inner], [between], name=label, before=node)
            node.inputs[0], node.inputs[1] = between, outer

    def macs(self, counted: Mapping[Node, Macs | None], shapes: Shapes) -> tuple[float, float]:
        total, _ = super().macs(counted, shapes)
        length = self.weight.shape[2]
        hidden = self.weight.roles[0].node.attrs.get("hidden_size") or length
        own = total * length / (length + hidden)  # the others are those of the hidden state
        return own, own / self.weight.size


def place_of_weight(weight: Weight) -> Place | str | None:
    """Where factors can take the weight's place, the reason why they cannot, or None for what is no matrix at all."""
    if "linear" in weight.kinds:
        uses = [matrix_use(role, weight) for role in weight.roles]
        reason = obstacle(uses)
        return reason or ProductPlace(weight, tuple(each for each in uses if isinstance(each, LinearOp)))
    if weight.kinds == {"conv"}:
        found = convolutions(weight)
        if isinstance(found, str):
            return found
        return PointwisePlace(weight, found) if set(found[0].seen_shape[2:]) == {1} else None
    if weight.kinds == {"embedding"}:
        scopes = [scope_of(weight.graph, role.node) for role in weight.roles]
        found_all = all(lookup_of(scope, role.node) for scope, role in zip(scopes, weight.roles, strict=True))
        return TablePlace(weight) if found_all else "not all its nodes look up whole rows of it"
    if weight.kinds == {"recurrent"}:
        return _recurrent(weight)
    return None


def convolutions(weight: Weight) -> tuple[LinearOp, ...] | str:
    """The convolutions that read a weight and can all read the same chain, or the reason why they cannot."""
    found = []
    for role in weight.roles:
        if role.axes is None:
            return f"{role.node.name or role.node.op} reads it through a Reshape"
        op = linear_op(scope_of(weight.graph, role.node), role.node)
        if isinstance(op, str):
            return f"{role.node.name or role.node.op}: {op}"
        reason = chain_obstacle(op)
        if reason:
            return reason
        found.append(op)
    if len({(op.perm, op.groups) for op in found}) > 1:
        return "its nodes use it in different ways"
    if any(isinstance(op.data, Constant) for op in found):
        return "what it is convolved with is a constant too"
    return tuple(found)


def shiftable_bias(graph: Graph, use: LinearOp) -> Bias | None:
    """The bias of a linear node, where a shift can be added to it."""
    bias = use.bias(graph)
    return None if bias.fault(use.channels) else bias


def scope_of(graph: Graph, node: Node) -> Scope:
    """The scope that holds a node."""
    return next(scope for scope in graph.scopes if scope.graph.holds(node))


def _recurrent(weight: Weight) -> Place | str:
    for role in weight.roles:
        node = role.node
        if role.input_index != 1 or node.op not in RECURRENT:
            return "it is multiplied with a state inside a recurrent node"
        if not role.direct or len(weight.shape) != 3 or has_references(node):
            return f"{node.name or node.op} does not read it as it is"
        if isinstance(node.inputs[0], Constant):
            return f"{node.name or node.op}: its inputs are a constant too"
    return RecurrentPlace(weight)


def put_factors(graph: Graph, place: Place, left: Array, right: Array, encodings: Sequence[Encoding]) -> None:
    """Let the nodes of a place read left (groups, outputs, r) and right (groups, r, K) instead of its weight.

    encodings: by which the one or the other is made, each of matrices with an axis of rows; they go with the constants,
    whichever way round these stand.
    """
    before = {each.name for each in weights(graph)}
    place.put(graph, left, right)
    for made in weights(graph) if encodings else ():
        if made.name not in before:
            turned = (one for each in encodings for one in _turned(each, made.shape))
            found = next((each for each in turned if each.encode(made.values) is not None), None)
            made.set(np.asarray(made.values), found)


def _turned(encoding: Encoding, shape: tuple[int, ...]) -> Iterator[Encoding]:
    """The encoding with its grids along each axis on which there are as many."""
    if not isinstance(encoding, GridEncoding) or encoding.scale is None:
        return
    for axis, size in enumerate(shape):
        if size == encoding.scale.size:
            along = tuple(-1 if each == axis else 1 for each in range(len(shape)))
            point = np.asarray(encoding.zero_point)
            points = point.reshape(along) if point.size == size else point
            yield replace(encoding, scale=encoding.scale.reshape(along), zero_point=points, axis=axis)
