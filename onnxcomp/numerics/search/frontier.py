"""The best choices of one option for each of a few items: all that are beaten by no other, by dynamic programming.

    frontier of items 1..n  =  undominated of  { (cost + c, harm + h) :  frontier of 1..n-1,  options (c, h) of n }

A Lagrange multiplier reaches the convex hull only (``rate_allocation``): with few items, of which one takes most of the
cost, what lies between two points of the hull is lost. Exact as long as no frontier has more than ``most`` points;
a longer one keeps as many of them, evenly, and the ends. Nemhauser & Ullmann 1969, https://doi.org/10.1287/mnsc.15.9.494.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 2048

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


class Frontier:
    """Choices for items of (cost, harm) options, the cheapest first, each with less harm than those before it.

    cost, harm: (points,). Raises ValueError for an item without options.
    """

    def __init__(self, items: Sequence[Sequence[tuple[float, float]]], *, most: int = MOST_POINTS) -> None:
        self.cost: Floats = np.zeros(1)
        self.harm: Floats = np.zeros(1)
        self._steps: list[tuple[Numbers, Numbers]] = []  # for each item the point before it and the option, by point
        for options in items:
            if not options:
                raise ValueError("an item has no options")
            self._add(np.array(options, np.float64), most)

    def _add(self, options: Floats, most: int) -> None:
        cost, harm = ((known[:, None] + each).reshape(-1)
                      for known, each in zip((self.cost, self.harm), options.T, strict=True))  # fmt: skip
        order = np.lexsort((harm, cost))
        least = np.minimum.accumulate(harm[order])
        is_better = np.r_[True, least[1:] < least[:-1]]
        kept = order[is_better]
        if kept.size > most:
            kept = kept[np.unique(np.linspace(0, kept.size - 1, most).round().astype(np.int64))]
        self.cost, self.harm = cost[kept], harm[kept]
        self._steps.append((kept // len(options), kept % len(options)))

    def within_harm(self, most: float) -> list[int]:
        """For each item the position of its option: the least cost whose harm is at most ``most``, the least harm where
        none is."""
        fitting = np.flatnonzero(self.harm <= most)
        return self._positions(int(fitting[0]) if fitting.size else self.harm.size - 1)

    def _positions(self, point: int) -> list[int]:
        found = []
        for before, option in reversed(self._steps):
            found.append(int(option[point]))
            point = int(before[point])
        return found[::-1]
