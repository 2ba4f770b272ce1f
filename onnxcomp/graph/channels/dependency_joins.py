"""Operands that are computed, and have channels together (see ``dependency_flow``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.dependency_flow import BROADCASTING_OPSET, DependencyFlow
from onnxcomp.graph.channels.ids import NONE, Numbers, padded
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_behind, given

COUPLED = "joins it with what cannot be cut"


def is_computed(node: Node, index: int) -> bool:
    """Whether a node reads something at an input that is no constant."""
    tensor = given(node, index)
    return tensor is not None and constant_behind(tensor, casts=True) is None


def together(flow: DependencyFlow, node: Node, indices: Sequence[int]) -> Numbers | None:
    """The channels that operands have together; None, and nothing done, where it is not known how they broadcast."""
    if flow.scope.opset < BROADCASTING_OPSET and (node.attrs.get("broadcast") or "axis" in node.attrs):
        return None
    computed = [i for i in indices if is_computed(node, i)]
    parts = {i: flow.of(node.inputs[i]) for i in computed}
    if not any(flow.is_followed(each) for each in parts.values()):
        return NONE
    ranks = [flow.rank(node.inputs[i]) for i in indices if given(node, i) is not None]
    if any(rank is None for rank in ranks):
        return None
    rank = max(each or 0 for each in ranks)
    made = joined(flow, node, {i: padded(each, rank) for i, each in parts.items()}, rank)
    for index in indices:
        if index not in parts:
            flow.takes(node, index, made)
    return made


def joined(flow: DependencyFlow, node: Node, parts: dict[int, Numbers], rank: int) -> Numbers:
    """One array of channels for operands that are computed, whose own become the same."""
    labelled = [axis for axis in range(rank) if any(each.shape[axis] > 1 for each in parts.values())]
    found: Numbers | None = None
    for index, numbers in parts.items():
        stated = sizes(flow, node.inputs[index], rank)
        if all(stated[axis] == 1 for axis in labelled):
            continue  # it is broadcast along all axes with channels
        if found is not None:
            flow.sets.join(found, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
            found = np.broadcast_to(
                found if found.size >= numbers.size else numbers,
                np.broadcast_shapes(found.shape, numbers.shape),
            )
        else:
            found = numbers
    return NONE if found is None else found


def sizes(flow: DependencyFlow, tensor: Any, rank: int) -> list[int | None]:
    shape = list(flow.shapes.shape(tensor) or ())
    return [*[1] * (rank - len(shape)), *shape]


def as_one(flow: DependencyFlow, node: Node, numbers: Numbers, axis: int) -> Numbers:
    """All channels along an axis go together: one of them stands for all."""
    first: Numbers = np.take(numbers, [0], axis)
    if numbers.shape[axis] > 1:
        flow.sets.join(first, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
    return first
