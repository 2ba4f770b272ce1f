"""Depthwise convolutions get channels of zeros, so that their number is a multiple of what a kernel takes at once.

    Conv(W: 200 x 32) -> HardSwish -> Conv(V: 200 x 1, group 200) -> Conv(U: 32 x 200)
    Conv(W: 208 x 32) -> HardSwish -> Conv(V: 208 x 1, group 208) -> Conv(U: 32 x 208)

The rows that W gets more are zeros, and so are the columns that U gets: whatever the new channels hold in between, it
is finite, and nothing reads it.

ONNX Runtime (1.32) convolves uint8 x int8 depthwise in sixteens and falls back to a kernel of half the speed for other
numbers: 200 channels of 2 x 96 with kernels of 5 x 5 take 67 us, 208 take 36, one thread of an EPYC with VNNI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.provenance import NEW, Origin
from onnxcomp.graph.ir.query import constant_value, given, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.writer import ordered

# Element by element, or window by window; finite where their input is.
CHANNELWISE = frozenset({
    "Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign", "Mish",
    "Gelu", "Erf", "Identity", "Neg", "Abs", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Clip",
})  # fmt: skip
SUMS = frozenset({"Add", "Sub", "Mul"})


@dataclass(eq=False)
class Family:
    """Tensors that have the same channels, along axis 1.

    makers and readers: Conv nodes whose weight's axis 0, or 1, goes with the channels. depthwise: those that do both.
    beside: nodes that read a constant of one value a channel, and where. counts: the numbers of channels that are
    stated. ranks: of the weights. is_fixed: something else reads or makes one of the tensors.
    """

    tensors: list[Any] = field(default_factory=list)
    makers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    depthwise: list[Node] = field(default_factory=list)
    beside: list[tuple[Node, int]] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)
    ranks: set[int] = field(default_factory=set)
    is_fixed: bool = False

    def take(self, other: Family) -> None:
        """Become one with another family."""
        for name in ("tensors", "makers", "readers", "depthwise", "beside"):
            getattr(self, name).extend(getattr(other, name))
        self.counts |= other.counts
        self.ranks |= other.ranks
        self.is_fixed |= other.is_fixed

    @property
    def channels(self) -> int:
        """Their number, 0 where it must stay as it is."""
        stated = not self.is_fixed and len(self.counts) == 1 and len(self.ranks) == 1
        return next(iter(self.counts)) if stated and self.depthwise else 0


@dataclass(frozen=True, kw_only=True)
class AlignChannels(Pass):
    """Fill the channels of depthwise convolutions up to a multiple, with zeros that nothing reads.

    A family of channels is left alone where anything but a convolution, a pool or an operator element by element
    touches it, and where it would more than double.
    """

    effect = Effect(shrinks=("latency",), exact=Exact.OUTPUTS, rounding=True)

    multiple: int = parameter(16, low=2, high=64, help="what the number of channels is to be a multiple of")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for scope in graph.scopes:
            for family in _families(graph, scope):
                channels = family.channels
                wanted = -(-channels // self.multiple) * self.multiple
                if channels == wanted or wanted > 2 * channels:
                    continue
                names = [name for node in _nodes(family) for name in _names(scope, node)]
                if not context.selects(*names):
                    outcome.skip(names[0], "excluded")
                    continue
                outcome.origins.update(_widen(graph, scope, family, wanted - channels))
                for node in family.depthwise:
                    outcome.change(node_key(scope, node), f"{channels} channels become {wanted}")
        return outcome


def _families(graph: Graph, scope: Scope) -> list[Family]:
    """The families of a scope's tensors."""
    tracer = _Tracer(graph, scope)
    for node in ordered(scope.graph.nodes):
        tracer.follow(node)
    found = {id(each): each for each in tracer.families.values()}
    return list(found.values())


class _Tracer:
    """Follows channels from node to node."""

    def __init__(self, graph: Graph, scope: Scope) -> None:
        self._graph = graph
        self._scope = scope
        self._own = {id(node) for node in scope.graph.nodes}
        self._made = {id(out) for node in scope.graph.nodes for out in node.outputs}
        self.families: dict[Any, Family] = {}

    def follow(self, node: Node) -> None:
        """Take in a node."""
        if is_onnx(node, "Conv") and self._convolve(node):
            return
        if is_onnx(node, *CHANNELWISE) and _has_one_operand(node):
            self._join(node.inputs[0], node.outputs[0])
            return
        if is_onnx(node, *SUMS, "Div") and self._combine(node):
            return
        for tensor in (*node.inputs, *node.outputs):
            if not isinstance(tensor, Constant):
                self._of(tensor).is_fixed = True

    def _of(self, tensor: Any) -> Family:
        if tensor not in self.families:
            family = self.families[tensor] = Family([tensor])
            inner = any(id(reader) not in self._own for reader in tensor.outputs)
            family.is_fixed = inner or id(tensor) not in self._made or self._graph.is_output(tensor)
        return self.families[tensor]

    def _join(self, *tensors: Any) -> None:
        first = self._of(tensors[0])
        for tensor in tensors[1:]:
            other = self._of(tensor)
            if other is not first:
                first.take(other)
                self.families.update((each, first) for each in other.tensors)

    def _convolve(self, node: Node) -> bool:
        """Whether the node is a convolution whose channels can be added to."""
        weight, bias = node.inputs[1], given(node, 2)
        if not self._is_plain(weight) or len(weight.outputs) > 1 or not (bias is None or self._is_plain(bias)):
            return False
        group, (outputs, inputs) = int(node.attrs.get("group", 1)), weight.shape[:2]
        read, made = self._of(node.inputs[0]), self._of(node.outputs[0])
        if group == outputs and inputs == 1 and group > 1:
            self._join(node.inputs[0], node.outputs[0])
            read.depthwise.append(node)
            read.counts.add(outputs)
            read.ranks.add(len(weight.shape))
            return True
        if group != 1:
            return False
        read.readers.append(node)
        made.makers.append(node)
        for family, count in (read, inputs), (made, outputs):
            family.counts.add(count)
            family.ranks.add(len(weight.shape))
        return True

    def _is_plain(self, tensor: Any) -> bool:
        """Whether it is a constant of floats that is kept in no special way."""
        if not isinstance(tensor, Constant) or tensor.dtype is None or np.dtype(tensor.dtype).kind != "f":
            return False
        key = self._graph.scope_of(tensor).key(tensor.name)
        return key not in self._graph.encodings and not self._graph.is_output(tensor)

    def _combine(self, node: Node) -> bool:
        """Whether the node adds or multiplies channel by channel."""
        constants = [isinstance(each, Constant) for each in node.inputs]
        if not any(constants):
            if node.op == "Div" or not self._same_channels(node):
                return False
            self._join(*node.inputs, node.outputs[0])
            return True
        index = constants.index(True)
        other = node.inputs[1 - index]
        if all(constants) or (node.op == "Div" and (index == 0 or not np.all(node.inputs[1].values))):
            return False
        constant = node.inputs[index]
        if constant.size != 1 or len(constant.shape) > 1:
            if node.op == "Div" or not self._goes_with_channels(constant, self._of(other)):
                return False
            self._of(other).beside.append((node, index))
        self._join(other, node.outputs[0])
        return True

    def _same_channels(self, node: Node) -> bool:
        """Whether both operands are known to have the same number of channels, and the same rank."""
        first, second = (self._of(each) for each in node.inputs)
        return len(first.counts) == 1 and first.counts == second.counts and first.ranks == second.ranks

    def _goes_with_channels(self, constant: Constant, family: Family) -> bool:
        """Whether a constant has one value a channel, along the axis of the channels."""
        if len(family.counts) != 1 or len(family.ranks) != 1 or not self._is_plain(constant):
            return False
        axis = len(constant.shape) - (next(iter(family.ranks)) - 1)
        return axis in (0, 1) and constant.shape[axis] == constant.size == next(iter(family.counts))


def _has_one_operand(node: Node) -> bool:
    """Whether the node makes one tensor of one, and of constants."""
    constant = all(isinstance(each, Constant) for each in node.inputs[1:] if each.name)
    return constant and len([each for each in node.outputs if each.name]) == 1


def _nodes(family: Family) -> Iterator[Node]:
    yield from family.depthwise
    yield from family.makers
    yield from family.readers


def _names(scope: Scope, node: Node) -> list[str]:
    return [node_key(scope, node), *(scope.key(each.name) for each in node.inputs if isinstance(each, Constant))]


def _widen(graph: Graph, scope: Scope, family: Family, count: int) -> dict[str, Origin]:
    """Give a family ``count`` channels more; what its tensors were before. Its weights get new names."""
    kept = np.concatenate([np.arange(family.channels), np.full(count, NEW)])
    rank = next(iter(family.ranks))
    origins = {scope.key(each.name): Origin(scope.key(each.name), rank, {1: kept}) for each in family.tensors}
    for node in (*family.depthwise, *family.makers):
        _fill(graph, scope, node, 1, 0, count)
        if given(node, 2) is not None:
            _fill(graph, scope, node, 2, 0, count)
    for node in family.readers:
        _fill(graph, scope, node, 1, 1, count)
    for node in family.depthwise:
        node.attrs["group"] = int(node.attrs["group"]) + count
    for node, index in family.beside:
        constant = node.inputs[index]
        _fill(graph, scope, node, index, list(constant.shape).index(constant.size), count)
    for tensor in family.tensors:
        tensor.origin, tensor.shape = None, None
    return origins


def _fill(graph: Graph, scope: Scope, node: Node, index: int, axis: int, count: int) -> None:
    """Let a node read a constant with ``count`` zeros more along an axis."""
    constant = node.inputs[index]
    values = constant_value(constant)
    assert values is not None
    widths = [(0, count if each == axis else 0) for each in range(values.ndim)]
    node.inputs[index] = graph.constant(scope, constant.name, np.pad(values, widths))
