"""Dependency groups: which channels have to be cut together, what owns them, and which have to stay.

    y = W2 f(W1 x + b)      channel i of W1 x + b is  row i of W1, element i of b, column i of W2: one unit

Cutting a unit equals making its consumers blind to it: the model computes what it would with zeros in the columns that
read the unit. Channels that are added to each other, that one depthwise kernel reads, or that make one head of an
attention are one unit; units that one node makes are a group (DepGraph, https://arxiv.org/abs/2301.12900).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.graph.channels.dependency_flow import DependencyFlow
from onnxcomp.graph.channels.dependency_rules import RULES
from onnxcomp.graph.channels.groups import ChannelSource
from onnxcomp.graph.channels.ids import ChannelSets, Numbers, connected
from onnxcomp.graph.channels.owners import ConstantSlices, Owner
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.operators import CONVOLUTIONS, RECURRENT

KERNEL_BLOCKS = (16, 8)  # of ONNX Runtime's and oneDNN's blocked layouts: AVX-512 and AVX2


@dataclass(eq=False)
class DependencyGroup:
    """Units that the same nodes make, with all that is cut along.

    name: the key of the first node that makes some. units: (n,) the number that stands for each, none of them fixed.
    kind: what its units are, "channels", "hidden units" of a recurrent node or "heads" of an attention.
    """

    name: str
    units: Numbers
    kind: str = "channels"
    sources: list[ChannelSource] = field(default_factory=list)
    slices: list[ConstantSlices] = field(default_factory=list)

    @property
    def consumers(self) -> list[ConstantSlices]:
        """The weights that sum over the group's channels."""
        return [each for each in self.slices if each.is_read]

    @property
    def touched(self) -> set[str]:
        """The names of all nodes and constants that a cut would change."""
        names = {source.key for source in self.sources}
        names.update(name for each in self.slices for name in (each.key, each.scope.key(each.constant.name)))
        return names

    @property
    def kernel_block(self) -> int:
        """As many channels as kernels of convolutions take at once, of those sizes the largest that divides the units.

        1 where none does, or where no convolution makes or reads the units.
        """
        convolves = any(each.node.op in CONVOLUTIONS for each in self.slices)
        return next((size for size in KERNEL_BLOCKS if convolves and self.units.size % size == 0), 1)


class Dependencies:
    """The channels of a model that can be cut, and all that owns them."""

    def __init__(self, flow: DependencyFlow) -> None:
        self.graph: Graph = flow.graph
        self.sets: ChannelSets = flow.sets
        self.tensors: dict[Any, tuple[Scope, Numbers, int | None]] = flow.tensors
        self.slices = flow.slices
        self.owners: list[Owner] = flow.owners
        self.sources = flow.sources
        self.unfollowed = flow.unfollowed
        self._heads = flow.heads

    @functools.cached_property
    def groups(self) -> list[DependencyGroup]:
        """The groups with two units or more, in the order of the nodes that make them."""
        owners = self._group_of()
        order = np.argsort(owners, kind="stable")
        firsts = np.searchsorted(owners[order], np.arange(len(self.sources) + 1))
        found: dict[int, DependencyGroup] = {}
        for source in self.sources:
            for group in self._groups_at(owners, source.numbers):
                units = order[firsts[group] : firsts[group + 1]]
                found.setdefault(group, DependencyGroup(source.key, units)).sources.append(source)
        for each in self.slices:
            for group in self._groups_at(owners, each.numbers):
                found[group].slices.append(each)
        for made in found.values():
            made.kind = self._kind(made)
        return [each for each in found.values() if each.units.size > 1]

    @functools.cached_property
    def declined(self) -> dict[str, str]:
        """Why nodes whose channels cannot be cut are left alone, by their keys."""
        held = {source.key for group in self.groups for source in group.sources}
        found = dict(self.unfollowed)
        for source in self.sources:
            if source.key not in held:
                found[source.key] = self.sets.reason(source.numbers) or "its channels go together, all of them"
        return found

    def counts(self) -> Iterator[Numbers]:
        """For each axis of a tensor that has channels, the units that it is made of (one number an index, 0 for what
        has to stay), once each: of every such axis something has to stay."""
        seen: set[bytes] = set()
        for _, numbers, _ in self.tensors.values():
            roots = self.sets.free_roots(numbers)
            for axis, size in enumerate(numbers.shape):
                if size > 1 and _is_sliced(roots, axis):
                    units = _lines(roots, axis)[:, 0]
                    if units.all() and (key := units.tobytes()) not in seen:
                        seen.add(key)
                        yield units

    def _kind(self, group: DependencyGroup) -> str:
        if any(np.isin(self.sets.roots(numbers), group.units).any() for numbers in self._heads):
            return "heads"
        return "hidden units" if any(source.node.op in RECURRENT for source in group.sources) else "channels"

    def _group_of(self) -> Numbers:
        """For each number that stands for a free set the group that it is in, the index of the first source that makes
        some of it; -1 for all others."""
        free = [np.unique(self.sets.free_roots(source.numbers)) for source in self.sources]
        numbers = np.concatenate([np.zeros(0, np.int64), *free])
        makers = np.repeat(np.arange(len(free)), [each.size for each in free])
        makers, numbers = makers[numbers > 0], numbers[numbers > 0]
        parts = connected(makers, len(free) + numbers, len(free) + self.sets.count)
        first = np.full(parts.max(initial=0) + 1, -1, np.int64)
        first[parts[makers[::-1]]] = makers[::-1]
        owners = np.full(self.sets.count, -1, np.int64)
        owners[numbers] = first[parts[len(free) + numbers]]
        return owners

    def _groups_at(self, owners: Numbers, numbers: Numbers) -> list[int]:
        return [each for each in np.unique(owners[self.sets.roots(numbers)]).tolist() if each >= 0]


def dependencies(graph: Graph) -> Dependencies:
    """The channels of a model's tensors that can be cut. Nothing is changed."""
    flow = DependencyFlow(graph, infer_shapes(graph, computed=True))
    flow.through(RULES)
    _keep_shared(flow)
    _keep_whole_slices(flow)
    return Dependencies(flow)


def _keep_shared(flow: DependencyFlow) -> None:
    """A matrix that several nodes read stays one: they see the same channels, or these stay."""
    by_constant: dict[Constant, list[ConstantSlices]] = {}
    for each in flow.slices:
        by_constant.setdefault(each.constant, []).append(each)
    for constant, found in by_constant.items():
        readers = {(id(each.reader), each.index) for each in found}
        if len(constant.shape) < 2 or (len(readers) == 1 and len(constant.outputs) == 1):
            continue
        known = {id(each.reader) for each in found}
        reason = f"{constant.name} is shared"
        if any(id(reader) not in known for reader in constant.outputs):
            for each in found:
                flow.sets.fix(each.numbers, reason)
            continue
        for axis in range(len(constant.shape)):
            _agree(flow, found, len(readers), axis, reason)


def _agree(flow: DependencyFlow, found: list[ConstantSlices], readers: int, axis: int, reason: str) -> None:
    """All readers of a constant see the same channels along one of its axes."""
    along = [(each, theirs) for each in found for own, theirs in each.axes() if own == axis]
    if len({(id(each.reader), each.index) for each, _ in along}) < readers:
        for each, _ in along:
            flow.sets.fix(each.numbers, reason)
        return
    lines = [_lines(each.numbers, theirs) for each, theirs in along]
    for line in lines[1:]:
        flow.sets.join(lines[0][:, :1], line, reason)


def _keep_whole_slices(flow: DependencyFlow) -> None:
    """What goes from a tensor are whole slices along one axis: where several axes have channels, those of a slice go
    together, along the axis that leaves the most units."""
    several = [numbers for _, numbers, _ in flow.tensors.values() if sum(size > 1 for size in numbers.shape) > 1]
    several += [each.numbers for each in flow.slices if sum(size > 1 for size in each.numbers.shape) > 1]
    for numbers in several:
        roots = flow.sets.free_roots(numbers)
        axes = [axis for axis, size in enumerate(numbers.shape) if size > 1]
        if not roots.any() or any(_is_sliced(roots, axis) for axis in axes):
            continue  # which it stays, whatever else is joined
        lines = _lines(numbers, max(axes, key=lambda each: _unit_count(roots, each)))
        held = flow.sets.is_fixed(lines).any(axis=1)
        flow.sets.fix(lines[held], "it goes with channels that have to stay")
        flow.sets.join(lines[~held, :1], lines[~held], "it goes with channels that have to stay")


def _lines(roots: Numbers, axis: int) -> Numbers:
    """The channels of each slice along an axis: (slices, channels)."""
    return np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)


def _is_sliced(roots: Numbers, axis: int) -> bool:
    """Whether all channels of every slice along an axis are one unit."""
    lines = _lines(roots, axis)
    return bool((lines == lines[:, :1]).all())


def _unit_count(roots: Numbers, axis: int) -> int:
    """How many units there are if the channels of every slice along an axis become one."""
    lines = _lines(roots, axis)
    names, columns = np.unique(lines, return_inverse=True)
    rows = np.repeat(np.arange(len(lines)), lines.shape[1])
    return int(connected(rows, len(lines) + columns.reshape(-1), len(lines) + names.size).max(initial=-1)) + 1


def node_names(group: DependencyGroup) -> tuple[str, ...]:
    """The names of the nodes that a cut would change."""
    return tuple(dict.fromkeys(node_key(each.scope, each.node) for each in group.slices))
