"""What a model takes when so many units of each group are gone.

    bytes, MACs of a weight (O, I, ..)     times the share of its rows and the share of its columns that stay
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.numerics.search.cut_allocation import Prices


def prices_of(found: Dependencies, groups: Sequence[DependencyGroup]) -> dict[str, Prices]:
    """The "bytes" and "macs" of all constants and the "units" of the groups, by how many units of each group go.

    Units of a group are taken to be of one size, which those of nearly all are.
    """
    counted = count_macs(found.graph)
    constants = list(dict.fromkeys(constant for scope in found.graph.scopes for constant in scope.constants))
    index = {constant: at for at, constant in enumerate(constants)}
    sizes = np.array([float(constant.nbytes) for constant in constants])
    macs = np.zeros(len(constants))
    readers: set[tuple[int, int]] = set()
    for each in found.slices:
        at, known = index[each.constant], counted.get(each.node)
        is_matrix = len(each.constant.shape) > 1 and each.constant.size > 1
        if known is not None and is_matrix and (at, id(each.node)) not in readers:
            readers.add((at, id(each.node)))
            macs[at] += known.count
    other = sum(each.count for each in counted.values() if each is not None) - macs.sum()
    shares = _shares(found, groups, index)
    units = np.array([group.units.size for group in groups], np.float64)
    return {
        "bytes": Prices(sizes, shares),
        "macs": Prices(np.append(macs, max(0.0, other)), np.pad(shares, ((0, 0), (0, 1), (0, 0)))),
        "units": Prices(units, np.diag(1 / units)[None]),
    }


def _shares(
    found: Dependencies, groups: Sequence[DependencyGroup], index: dict[Constant, int]
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """(axes, constants, groups): the share of a constant's axis that one unit of a group takes."""
    group_of = np.full(found.sets.count, -1, np.int64)
    for at, group in enumerate(groups):
        group_of[group.units] = at
    rank = max((len(each.shape) for each in index), default=1) or 1
    shares = np.zeros((rank, len(index), len(groups)))
    seen: set[tuple[int, int]] = set()
    for each in found.slices:
        for own, theirs in each.axes():
            if (index[each.constant], own) in seen:
                continue
            seen.add((index[each.constant], own))
            lines = np.moveaxis(found.sets.roots(each.numbers), theirs, 0).reshape(each.numbers.shape[theirs], -1)[:, 0]
            owners = group_of[lines]
            counts = np.bincount(owners[owners >= 0], minlength=len(groups))
            for at in np.flatnonzero(counts).tolist():
                shares[own, index[each.constant], at] = counts[at] / lines.size / groups[at].units.size
    return shares
