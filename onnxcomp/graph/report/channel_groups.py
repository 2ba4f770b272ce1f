"""The dependency groups of a model: what would go together, what that would save, and what has to stay.

found = list_groups("model.onnx")
found.groups[0].name, found.groups[0].macs, found.declined[0].reason
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup, dependencies
from onnxcomp.graph.channels.ids import Numbers
from onnxcomp.graph.channels.owners import ChannelCut
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.report.macs import Macs, count_macs
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import with_true_encodings
from onnxcomp.model import Model, load


@dataclass(frozen=True)
class MemberInfo:
    """A constant of which slices along an axis go with a group's units; is_read: a node sums over them."""

    constant: str
    axis: int
    node: str
    is_read: bool


@dataclass(frozen=True)
class GroupInfo:
    """Units that go together with all that holds them.

    kind: what a unit is: "channels", "hidden units", "heads". nodes: those that make them. unit_bytes, unit_macs: what
    the first unit saves alone; bytes, macs: what all of them hold, one of which has to stay.
    """

    name: str
    kind: str
    units: int
    nodes: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    unit_bytes: int
    unit_macs: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class DeclinedInfo:
    """A node whose channels have to stay."""

    node: str
    reason: str


@dataclass(frozen=True)
class GroupList:
    """The groups of a model, and what has to stay."""

    groups: tuple[GroupInfo, ...]
    declined: tuple[DeclinedInfo, ...]


def list_groups(source: str | os.PathLike[str] | bytes | onnx.ModelProto | Model) -> GroupList:
    """Describe what can be cut out of a model; nothing is run. Raises ModelError for what is not a readable model."""
    found = dependencies(open_plain(with_true_encodings(load(source))))
    costs = _Costs(found)
    groups = tuple(_described(found, each, costs) for each in found.groups)
    return GroupList(groups, tuple(DeclinedInfo(*each) for each in found.declined.items()))


def _described(found: Dependencies, group: DependencyGroup, costs: _Costs) -> GroupInfo:
    unit_bytes, unit_macs = costs.saved(group, group.units[:1])
    whole_bytes, whole_macs = costs.saved(group, group.units)
    return GroupInfo(
        name=group.name,
        kind=group.kind,
        units=group.units.size,
        nodes=tuple(dict.fromkeys(each.key for each in group.sources)),
        members=tuple(dict.fromkeys(_members(found, group))),
        unit_bytes=unit_bytes,
        unit_macs=unit_macs,
        bytes=whole_bytes,
        macs=whole_macs,
    )


def _members(found: Dependencies, group: DependencyGroup) -> Iterator[MemberInfo]:
    cut = ChannelCut(found.sets, group.units)
    for each in group.slices:
        name = found.graph.scope_of(each.constant).key(each.constant.name)
        for axis in sorted(each.taken(cut)):
            yield MemberInfo(name, axis, each.key, each.is_read)


class _Costs:
    """What units hold of the model's bytes and multiply-accumulates."""

    def __init__(self, found: Dependencies) -> None:
        self._found = found
        counted = count_macs(found.graph)
        self._macs: dict[Node, Macs] = {node: each for node, each in counted.items() if each is not None}
        group_of = np.full(found.sets.count, -1, np.int64)
        for index, group in enumerate(found.groups):
            group_of[group.units] = index
        self._products: dict[str, list[Node]] = {}  # of two computed tensors, by group
        weighted = {each.node for each in found.slices}
        for node in self._macs:
            made = found.tensors.get(node.outputs[0])
            if node not in weighted and made is not None:
                for index in np.unique(group_of[found.sets.roots(made[1])]).tolist():
                    if index >= 0:
                        self._products.setdefault(found.groups[index].name, []).append(node)

    def saved(self, group: DependencyGroup, units: Numbers) -> tuple[int, int]:
        """The bytes and multiply-accumulates that are gone with units of a group."""
        cut = ChannelCut(self._found.sets, units)
        left: dict[Any, dict[int, int]] = {}
        nodes: dict[Node, set[Any]] = {}
        for each in group.slices:
            kept = left.setdefault(each.constant, {})
            for axis, index in each.taken(cut).items():
                kept[axis] = min(kept.get(axis, index.size), index.size)
            if len(each.constant.shape) > 1:
                nodes.setdefault(each.node, set()).add(each.constant)
        shares = {constant: _share(constant.shape, kept) for constant, kept in left.items()}
        size = sum(constant.nbytes * share for constant, share in shares.items())
        macs = 0.0
        for node, constants in nodes.items():
            elements = sum(constant.size for constant in constants)
            gone = sum(constant.size * shares[constant] for constant in constants) / max(1, elements)
            macs += gone * self._macs[node].count if node in self._macs else 0
        products = self._products.get(group.name, [])
        macs += sum(self._macs[node].count * self._product_share(node, cut) for node in products)
        return round(size), round(macs)

    def _product_share(self, node: Node, cut: ChannelCut) -> float:
        """The share of a product of two computed tensors that is gone: along what it makes, and along what it sums."""
        made = node.outputs[0]
        kept = [self._kept(made, cut, axis) for axis in range(-self._found.tensors[made][1].ndim, 0)]
        return 1 - math.prod([*kept, self._kept(node.inputs[0], cut, -1)])

    def _kept(self, tensor: Any, cut: ChannelCut, axis: int) -> float:
        numbers = self._found.tensors[tensor][1] if tensor in self._found.tensors else np.zeros((), np.int64)
        return float(cut.kept(numbers, axis).mean()) if numbers.ndim >= -axis else 1.0


def _share(shape: Sequence[int], kept: dict[int, int]) -> float:
    """The share of a constant's elements that is gone."""
    return 1 - math.prod(size / shape[axis] for axis, size in kept.items())
