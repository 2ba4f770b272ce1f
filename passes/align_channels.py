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
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.channels.dependencies import Dependencies, dependencies
from onnxcomp.graph.channels.owners import StatedSize
from onnxcomp.graph.channels.removal import add_units
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import is_onnx, named_outputs, node_key
from onnxcomp.graph.ir.reader import Graph, Scope

# Element by element, or window by window; finite where their input is.
CHANNELWISE = frozenset({
    "Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign", "Mish",
    "Gelu", "Erf", "Identity", "Neg", "Abs", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Clip",
})  # fmt: skip
SUMS = frozenset({"Add", "Sub", "Mul"})


@dataclass(eq=False)
class Family:
    """Depthwise convolutions of the same channels.

    units: (channels,) the unit that each channel is. touched: the names of all nodes and constants that adding to the
    channels would change.
    """

    units: Array
    depthwise: list[tuple[Scope, Node]]
    touched: list[str]

    @property
    def channels(self) -> int:
        """Their number."""
        return self.units.size


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
        found = dependencies(graph)
        for family in _families(found):
            wanted = -(-family.channels // self.multiple) * self.multiple
            if family.channels == wanted or wanted > 2 * family.channels:
                continue
            if not context.selects(*family.touched):
                outcome.skip(family.touched[0], "excluded")
                continue
            outcome.origins.update(add_units(found, int(family.units[-1]), wanted - family.channels))
            for scope, node in family.depthwise:
                outcome.change(node_key(scope, node), f"{family.channels} channels become {wanted}")
        return outcome


def _families(found: Dependencies) -> list[Family]:
    """The families whose channels can be added to; of two that share channels without being the same, none."""
    by_units: dict[bytes, tuple[Array, list[tuple[Scope, Node]]]] = {}
    for each in found.owners:
        if isinstance(each, StatedSize) and each.place == "group" and is_onnx(each.node, "Conv"):
            units = found.sets.free_roots(each.numbers)
            made = found.sets.roots(found.tensors[each.node.outputs[0]][1])
            if made.size == units.size and units.all() and np.unique(units).size == units.size:
                by_units.setdefault(units.tobytes(), (units, []))[1].append((each.scope, each.node))
    held = np.concatenate([np.zeros(0, np.int64), *(units for units, _ in by_units.values())])
    alone = np.bincount(held, minlength=found.sets.count) == 1
    families = [_family(found, *each) for each in by_units.values() if alone[each[0]].all()]
    return [each for each in families if each is not None]


def _family(found: Dependencies, units: Array, depthwise: list[tuple[Scope, Node]]) -> Family | None:
    """The family of depthwise convolutions, None where new channels might not be finite, or not be zeros."""
    is_unit = np.zeros(found.sets.count, np.bool_)
    is_unit[units] = True

    def goes_along(numbers: Array) -> bool:
        return bool(is_unit[found.sets.roots(numbers)].any())

    slices = [each for each in found.slices if goes_along(each.numbers)]
    beside = {(id(each.reader), id(each.constant)) for each in slices if each.axes()}
    tensors = {tensor: scope for tensor, (scope, numbers, _) in found.tensors.items() if goes_along(numbers)}
    if not all(_stays_finite(node, beside) for node in _around(tensors)):
        return None
    if not all(_is_plain(each.constant) for each in slices):
        return None
    names = [node_key(*each) for each in depthwise]
    names += [name for each in slices for name in (each.key, each.scope.key(each.constant.name))]
    return Family(units, depthwise, list(dict.fromkeys(names)))


def _around(tensors: dict[Any, Scope]) -> Iterator[Node]:
    """The nodes that make or read any of the tensors."""
    for tensor in tensors:
        yield from tensor.inputs
        yield from tensor.outputs


def _stays_finite(node: Node, beside: set[tuple[int, int]]) -> bool:
    """Whether what a node makes of finite numbers, and of constants filled with zeros, is finite.

    beside: the nodes with the constants that are filled.
    """
    constants = [each for each in node.inputs if isinstance(each, Constant)]
    if is_onnx(node, "Conv"):
        return isinstance(node.inputs[1], Constant)
    if is_onnx(node, *CHANNELWISE):
        known = all(isinstance(each, Constant) for each in node.inputs[1:] if each.name)
        return known and len(named_outputs(node)) == 1
    single = all(each.size == 1 and len(each.shape) <= 1 for each in constants)
    if is_onnx(node, "Div"):
        return single and node.inputs[1] in constants and bool(np.all(node.inputs[1].values))
    filled = all((id(node), id(each)) in beside for each in constants)
    return is_onnx(node, *SUMS) and (single or filled)


def _is_plain(constant: Constant) -> bool:
    """Whether it is a constant of floats that one node reads, or a vector."""
    is_float = constant.dtype is not None and np.dtype(constant.dtype).kind == "f"
    return is_float and (len(constant.outputs) == 1 or len(constant.shape) < 2)
