"""Times between those that were measured, and what a model takes by them.

A few sizes are timed, and what lies between two of them takes a time between theirs. Times need not fall with sizes:
kernels take so many channels at once, and a smaller size may be slower. What is no faster than something milder is
left out, so that a search need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FASTER = 0.98  # of another's time that is told from noise: medians in turns repeat within a hundredth


def spread(count: int, most: int) -> list[int]:
    """Of ``count`` things in a row the places of so many, evenly apart, both ends among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(each) for each in np.linspace(0, count - 1, most)})


def between(sizes: Sequence[float] | Array, known: Sequence[float], times: Sequence[float]) -> Array:
    """Times of sizes by those of known ones, in proportion between two of them; beyond the ends, those of the ends."""
    order = np.argsort(known)
    return np.asarray(np.interp(sizes, np.asarray(known)[order], np.asarray(times)[order]))


def faster_ones(times: Sequence[float]) -> list[int]:
    """The places of what is faster than all before it, the first among them: mildest first, as it came."""
    found: list[int] = []
    for at, took in enumerate(times):
        if not found or took < FASTER * times[found[-1]]:
            found.append(at)
    return found


def undominated(times: Sequence[float], errors: Sequence[float]) -> list[int]:
    """The places of what nothing beats in both time and error, the slowest, which err least, first."""
    found: list[int] = []
    least = np.inf
    for at in sorted(range(len(times)), key=lambda each: (times[each], errors[each])):
        if errors[at] < least:
            found.append(at)
            least = errors[at]
    return found[::-1]


@dataclass(frozen=True, eq=False)
class TimePrices:
    """What a model takes with units gone: the sum of each node's time, times what its groups leave of it.

    times: (nodes,) with all units. shares: of each group (units + 1, nodes), the share of each node's time that is left
    with so many gone. fixed: what no group changes.
    """

    times: Array
    shares: Sequence[Array]
    fixed: float = 0.0

    def total(self, counts: Array) -> float:
        """With so many units of each group (groups,) gone."""
        left = np.ones(len(self.times))
        for own, count in zip(self.shares, counts.tolist(), strict=True):
            left *= own[count]
        return float(self.fixed + self.times @ left)
