"""How many units of each group go, so that a model takes so little at the least error.

Greedy: one cut after another, each time the one that adds least error for what it saves. The errors of a group rise
faster and faster, as those of ``unit_elimination`` do, so that a group whose next cut is dear is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Priced(Protocol):
    """What a model takes."""

    def total(self, counts: Array) -> float:
        """With so many units of each group (groups,) gone."""


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
    fits: Array = units - kept[(kept % multiple == 0) | (kept == units)]
    return fits


def allocated(errors: Sequence[Array], allowed: Sequence[Array], prices: Priced, goal: float) -> Array:
    """How many units of each group go (groups,), so that the total is at most ``goal``, or as low as it can be.

    errors: of each group by the number that is gone, (n + 1,), rising. allowed: the numbers to choose from, rising from
    0. Greedy steps overshoot; what is not needed after all is given back, and a cut is exchanged for one of another
    group where that adds less error.
    """
    search = _Allocation(errors, allowed, prices, goal)
    at = search.greedy(np.zeros(len(errors), np.int64))
    at = search.given_back(at)
    while (better := search.exchanged(at)) is not None:
        at = better
    return search.counts(at)


class _Allocation:
    """Positions (groups,) among the allowed numbers of each group."""

    def __init__(self, errors: Sequence[Array], allowed: Sequence[Array], prices: Priced, goal: float) -> None:
        self._errors = [each[choices] for each, choices in zip(errors, allowed, strict=True)]
        self._allowed, self._prices, self._goal = allowed, prices, goal

    def counts(self, at: Array) -> Array:
        """The numbers at these positions."""
        return np.array([choices[each] for choices, each in zip(self._allowed, at, strict=True)], np.int64)

    def total(self, at: Array) -> float:
        return self._prices.total(self.counts(at))

    def error(self, at: Array) -> float:
        return float(sum(errors[each] for errors, each in zip(self._errors, at, strict=True)))

    def greedy(self, at: Array) -> Array:
        """From these positions on until the goal is met, by the cuts that add least error for what they save."""
        total = self.total(at)
        while total > self._goal:
            prices = []
            for tried in self._further(at):
                saved = total - self.total(tried)
                if saved > 0:
                    prices.append(((self.error(tried) - self.error(at)) / saved, tried.tolist()))
            if not prices:
                break
            at = np.array(min(prices)[1], np.int64)
            total = self.total(at)
        return at

    def given_back(self, at: Array) -> Array:
        """Without what the goal does not need, the cuts of most error first."""
        while self.total(at) <= self._goal:
            fewer = [tried for tried in self._fewer(at) if self.total(tried) <= self._goal]
            if not fewer:
                break
            at = min(fewer, key=self.error)
        return at

    def exchanged(self, at: Array) -> Array | None:
        """The best of all that come of giving back a cut of one group and going on; None where none is better."""
        if self.total(at) > self._goal:
            return None
        found = [self._instead(tried, tried != at) for tried in self._fewer(at)]
        better = [each for each in found if self.total(each) <= self._goal and self.error(each) < self.error(at)]
        return min(better, key=self.error, default=None)

    def _instead(self, at: Array, barred: Array) -> Array:
        """Go on until the goal is met, by the least error of all that a group alone can do; else step by step."""
        ways = []
        for group in np.flatnonzero(~barred).tolist():
            tried = at.copy()
            while self.total(tried) > self._goal and tried[group] + 1 < len(self._allowed[group]):
                tried[group] += 1
            if self.total(tried) <= self._goal:
                ways.append(tried)
        return min(ways, key=self.error, default=at)

    def _further(self, at: Array) -> Iterator[Array]:
        for group, choices in enumerate(self._allowed):
            if at[group] + 1 < len(choices):
                tried = at.copy()
                tried[group] += 1
                yield tried

    def _fewer(self, at: Array) -> Iterator[Array]:
        for group in np.flatnonzero(at).tolist():
            tried = at.copy()
            tried[group] -= 1
            yield tried
