"""How much each unit of a group is worth, by its weights or by what reads it: (units,), the least is cut first.

    l1, l2       norm of what makes the unit         https://arxiv.org/abs/1608.08710
    median       distance from the geometric median  https://arxiv.org/abs/1811.00250
    scale        of the BatchNormalization           https://arxiv.org/abs/1708.06519
    activation   mean square of what it holds        https://arxiv.org/abs/1607.03250

Further ones, gradients among them, are functions of the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.channels.owners import ConstantSlices
from onnxcomp.graph.cutting.readers import owners
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.query import is_onnx

Importance = Callable[[Dependencies, DependencyGroup], Array | None]
"""None where it cannot be told."""


def _rows(found: Dependencies, group: DependencyGroup) -> Iterator[tuple[ConstantSlices, Array, Array]]:
    """What makes the units: each constant's values with the axis of the units first, and the unit of each index."""
    for each in group.slices:
        if each.is_read or len(each.constant.shape) < 2:
            continue
        for own, theirs in each.axes():
            roots = np.moveaxis(found.sets.roots(each.numbers), theirs, 0)
            units = owners(roots.reshape(len(roots), -1)[:, 0], group)
            if (units >= 0).any():
                values = np.moveaxis(np.asarray(each.constant.values, np.float64), own, 0)
                yield each, values.reshape(len(values), -1), units


def _summed(values: Array, units: Array, count: int) -> Array:
    """The sum of values (n,) of each unit."""
    held = units >= 0
    return np.bincount(units[held], weights=values[held], minlength=count)


def _norms(found: Dependencies, group: DependencyGroup, power: int) -> Array | None:
    total = np.zeros(group.units.size)
    for _, rows, units in _rows(found, group):
        sums = _summed((np.abs(rows) ** power).sum(axis=1), units, group.units.size)
        total += sums / max(sums.mean(), np.finfo(np.float64).tiny)
    return total if total.any() else None


def l1_norms(found: Dependencies, group: DependencyGroup) -> Array | None:
    """Sums of magnitudes, of each weight over their mean."""
    return _norms(found, group, 1)


def l2_norms(found: Dependencies, group: DependencyGroup) -> Array | None:
    """Sums of squares, of each weight over their mean."""
    return _norms(found, group, 2)


def median_distances(found: Dependencies, group: DependencyGroup) -> Array | None:
    """Sum of the distances from all other units: that nearest to the geometric median is replaced best by others."""
    parts = []
    for _, rows, units in _rows(found, group):
        if np.bincount(units[units >= 0], minlength=group.units.size).max() == 1:
            own = np.zeros((group.units.size, rows.shape[1]))
            own[units[units >= 0]] = rows[units >= 0]
            parts.append(own / max(float(np.linalg.norm(own)), np.finfo(np.float64).tiny))
    if not parts:
        return None
    joined = np.concatenate(parts, axis=1)
    squares = np.square(joined).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * joined @ joined.T
    total: Array = np.sqrt(np.maximum(distances, 0)).sum(axis=1)
    return total


def scale_magnitudes(found: Dependencies, group: DependencyGroup) -> Array | None:
    """Magnitudes of the gains of BatchNormalizations; None where there is none."""
    total = np.zeros(group.units.size)
    for each in group.slices:
        if is_onnx(each.node, "BatchNormalization") and each.index == 1 and each.reader is each.node:
            units = owners(found.sets.roots(each.numbers.reshape(-1)), group)
            total += _summed(np.abs(np.asarray(each.constant.values, np.float64)), units, group.units.size)
    return total if total.any() else None


BY_WEIGHTS: dict[str, Importance] = {
    "l1": l1_norms,
    "l2": l2_norms,
    "median": median_distances,
    "scale": scale_magnitudes,
}
