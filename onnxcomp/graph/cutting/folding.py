"""Units that compute nearly the same become one: the mean of what makes them, the sum of what reads them.

    y = W[:, i] f(a_i x) + W[:, j] f(a_j x)    becomes    y = (W[:, i] + W[:, j]) f((a_i + a_j) / 2 x)

Model folding (https://arxiv.org/abs/2502.10216), over dependency groups and without data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.channels.owners import ConstantSlices
from onnxcomp.graph.cutting.readers import Consumer, owners
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.numerics.structure.merging import Merging, merged


def merging_obstacle(found: Dependencies, group: DependencyGroup, consumers: Sequence[Consumer]) -> str | None:
    """Why the units of a group cannot merge, or None."""
    if len(consumers) != len({each.constant for each in group.consumers}):
        return "something sums over its channels that has no matrix form"
    if any(len(each.numbers) > 1 for each in consumers):
        return "a node reads it in several groups"
    makers = [_places(units, group.units.size) for _, _, units in _makers(found, group)]
    readers = [_places(owners(each.numbers[0], group), group.units.size) for each in consumers]
    if not makers:
        return "no constant makes its channels"
    return "its channels have different sizes" if any(each is None for each in (*makers, *readers)) else None


def merging_of(found: Dependencies, group: DependencyGroup) -> Merging:
    """How the units of a group without an obstacle merge, by what makes them as it adds up: weights beside biases."""
    count = group.units.size
    parts = []
    for each, own, units in _makers(found, group):
        values = np.moveaxis(np.asarray(each.constant.values, np.float64), own, 0)
        parts.append(values[_places(units, count)].reshape(count, -1))
    return merged(np.concatenate(parts, axis=1))


def fold(found: Dependencies, group: DependencyGroup, consumers: Sequence[Consumer], homes: Array) -> None:
    """Let the units that stay (homes[i] == i) stand for those that go; what goes keeps its values.

    homes: (units,) the place of the unit that stands for each.
    """
    count = group.units.size
    shares = np.zeros((count, count))
    shares[homes, np.arange(count)] = 1
    means = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
    means[homes != np.arange(count)] = np.eye(count)[homes != np.arange(count)]
    for each, own, units in _makers(found, group):
        places = _places(units, count)
        values = np.moveaxis(np.array(each.constant.values), own, 0)
        values[places] = np.tensordot(means, values[places].astype(np.float64), 1).astype(values.dtype)
        each.constant.values = np.ascontiguousarray(np.moveaxis(values, 0, own))
    for consumer in consumers:
        places = _places(owners(consumer.numbers[0], group), count)
        assert places is not None
        packed = np.array(consumer.form.pack(np.asarray(consumer.weight.values)))
        read = packed[:, :, places].astype(np.float64)  # (groups, rows, units, elements)
        packed[:, :, places] = np.einsum("uv,grve->grue", shares, read).astype(packed.dtype)
        consumer.weight.set(consumer.form.unpack(packed).reshape(consumer.weight.shape))


def _makers(found: Dependencies, group: DependencyGroup) -> Iterator[tuple[ConstantSlices, int, Array]]:
    """The constants that make the units or stand along them: each with the axis, and the unit of each index of it."""
    for each in group.slices:
        for own, theirs in () if each.is_read else each.axes():
            roots = np.moveaxis(found.sets.roots(each.numbers), theirs, 0)
            units = owners(roots.reshape(len(roots), -1)[:, 0], group)
            if (units >= 0).any():
                yield each, own, units


def _places(units: Array, count: int) -> Array | None:
    """(count, elements) where the elements of each unit stand along an axis; None where some have more than others."""
    sizes = np.bincount(units[units >= 0], minlength=count)
    if not sizes.all() or sizes.min() != sizes.max():
        return None
    held = np.flatnonzero(units >= 0)
    return held[np.argsort(units[held], kind="stable")].reshape(count, -1)
