"""How many units of each group go, so that a model takes so little at the least error.

Greedy: one cut after another, each time the one that adds least error for what it saves. The errors of a group rise
faster and faster, as those of ``unit_elimination`` do, so that a group whose next cut is dear is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Prices:
    """What things take: the sum of each one's base times what is left of each of its axes.

    base: (things,). shares: (axes, things, groups), the part of an axis that one unit of a group takes.
    """

    base: Array
    shares: Array

    def total(self, counts: Array) -> float:
        """With so many units of each group (groups,) gone."""
        left = np.clip(1 - self.shares @ counts.astype(np.float64), 0, 1)
        return float(self.base @ left.prod(axis=0))


def allowed_counts(units: int, multiple: int) -> Array:
    """How many of a group's units may go, none among them, so that what stays is a multiple; one stays at least."""
    kept = np.arange(units, 0, -1)
    fits = kept[(kept % multiple == 0) | (kept == units)]
    return units - fits


def allocated(errors: Sequence[Array], allowed: Sequence[Array], prices: Prices, goal: float) -> Array:
    """How many units of each group go (groups,), so that the total is at most ``goal``, or as low as it can be.

    errors: of each group by the number that is gone, (n + 1,), rising. allowed: the numbers to choose from, rising from
    0. The last cuts that are not needed after all are given back.
    """
    at = np.zeros(len(errors), np.int64)
    counts = np.zeros(len(errors), np.int64)
    total = prices.total(counts)
    moves: list[int] = []
    while total > goal:
        best, saved = _cheapest(errors, allowed, prices, at, counts, total)
        if best < 0:
            break
        at[best] += 1
        counts[best] = allowed[best][at[best]]
        total -= saved
        moves.append(best)
    for move in reversed(moves):
        tried = counts.copy()
        tried[move] = allowed[move][max(0, at[move] - 1)]
        if at[move] and prices.total(tried) <= goal:
            at[move] -= 1
            counts = tried
    return counts


def _cheapest(
    errors: Sequence[Array], allowed: Sequence[Array], prices: Prices, at: Array, counts: Array, total: float
) -> tuple[int, float]:
    """The group whose next cut adds least error for what it saves, and that; -1 where no cut saves anything."""
    best, price, gain = -1, np.inf, 0.0
    for group, choices in enumerate(allowed):
        if at[group] + 1 >= len(choices):
            continue
        tried = counts.copy()
        tried[group] = choices[at[group] + 1]
        saved = total - prices.total(tried)
        added = errors[group][tried[group]] - errors[group][counts[group]]
        if saved > 0 and added / saved < price:
            best, price, gain = group, added / saved, saved
    return best, gain
