"""The exact optimum over the cuts between cells, by dynamic programming over the number of runs.

Where the last run of the first j cells begins grows with j (the costs are concave Monge, Wu 1991), so that
a row takes O(cells log cells). Of few cells the costs of all runs are made once, and a row is one sum and one minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.quantizers.prefix_sums import Sums, run_costs

Array = NDArray[Any]

FEW_CELLS = 256  # up to which a table of all runs is the shorter way


class CutProgram:
    """The least error of the first j cells in t runs, for every j and every t up to ``most_runs``.

    sums: count, sum and sum of squares before each of the m + 1 bounds of the cells.
    """

    def __init__(self, sums: Sums, most_runs: int) -> None:
        self._sums = sums
        cells = sums[0].size - 1
        self.most_runs = min(most_runs, cells)
        self.errors = [np.where(np.arange(cells + 1) == 0, 0.0, np.inf)]
        self._begins = [np.zeros(cells + 1, np.int64)]
        costs = self._costs() if self.most_runs > 1 and cells <= FEW_CELLS else None
        if self.most_runs:
            first = (sums[0][0], sums[1][0], sums[2][0])
            self.errors.append(np.append(np.inf, run_costs(first, sums)[1:]))
            self._begins.append(np.zeros(cells + 1, np.int64))
        for runs in range(1, self.most_runs):
            row = self._row(self.errors[-1], runs) if costs is None else _row_of_few(costs, self.errors[-1], runs)
            errors, begins = row
            self.errors.append(errors)
            self._begins.append(begins)

    def cuts(self, runs: int, end: int) -> Array:
        """The runs + 1 bounds (indices of cells) of the best way to cut the first ``end`` cells."""
        found = [end]
        for begins in self._begins[runs:0:-1]:
            found.append(int(begins[found[-1]]))
        return np.array(found[::-1])

    def best_to_zero(self) -> tuple[Array, Array]:
        """For each number of runs: where the rest, at level 0, best begins, and the error of all."""
        squares = self._sums[2]
        errors = np.stack(self.errors) + (squares[-1] - squares)
        return errors.argmin(axis=1), errors.min(axis=1)

    def _costs(self) -> Array:
        """(end, begin): the error of the run of the cells between; infinite where there are none."""
        count, total, squares = self._sums
        length = count[:, None] - count[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            costs = squares[:, None] - squares[None, :] - (total[:, None] - total[None, :]) ** 2 / length
        places = np.arange(count.size)
        return np.where(places[:, None] > places[None, :], costs, np.inf)

    def _row(self, before: Array, runs: int) -> tuple[Array, Array]:
        """Errors and begins of the last run for ``runs`` + 1 runs, from the errors for ``runs``.

        Ends are taken at halving distance; the begin of each lies between those of its neighbours.
        """
        last = before.size - 1
        size = 1 << last.bit_length()
        begins = np.full(size + 1, last - 1)
        begins[0] = runs
        errors = np.full(last + 1, np.inf)
        step = size // 2
        while step:
            ends = np.arange(step, last + 1, 2 * step)
            begins[ends[ends <= runs]] = runs
            ends = ends[ends > runs]
            if ends.size:
                low = np.maximum(begins[ends - step], runs)
                high = np.maximum(np.minimum(begins[ends + step], ends - 1), low)
                errors[ends], begins[ends] = self._least(before, ends, low, high)
            step //= 2
        return errors, begins[: last + 1]

    def _least(self, before: Array, ends: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """For each end the least error over begins from low to high, and the first begin that has it."""
        count, total, squares = self._sums
        length = high - low + 1
        start = np.cumsum(length) - length
        begin = np.arange(int(length.sum())) + np.repeat(low - start, length)
        end = np.repeat(ends, length)
        difference = total[end] - total[begin]
        error = before[begin] + (squares[end] - squares[begin] - difference**2 / (count[end] - count[begin]))
        least = np.minimum.reduceat(error, start)
        hits = np.flatnonzero(error == np.repeat(least, length))
        chosen = np.empty(ends.size, np.int64)
        owner = np.searchsorted(start, hits, side="right") - 1
        chosen[owner[::-1]] = begin[hits[::-1]]
        return least, chosen


def _row_of_few(costs: Array, before: Array, runs: int) -> tuple[Array, Array]:
    """As ``CutProgram._row``, from the costs of all runs."""
    sums = costs[:, runs:] + before[runs:]
    begins = sums.argmin(axis=1) + runs
    errors = sums[np.arange(len(sums)), begins - runs]
    few = np.arange(len(sums)) <= runs
    return np.where(few, np.inf, errors), np.where(few, runs, begins)


def mirrored(sums: Sums) -> Sums:
    """The sums of the cells in reverse order; runs depend on differences alone."""
    return -sums[0][::-1], sums[1][::-1], -sums[2][::-1]


def share_runs(left: CutProgram, right: CutProgram, runs: int) -> tuple[tuple[int, int], int, int]:
    """How many runs each side gets, and the cell at which each side's part of the zero run begins."""
    left_ends, left_errors = left.best_to_zero()
    right_ends, right_errors = right.best_to_zero()
    left_runs = np.arange(left.most_runs + 1)
    right_runs = np.minimum(runs - left_runs, right.most_runs)
    best = int(np.argmin(left_errors + right_errors[right_runs]))
    return (best, int(right_runs[best])), int(left_ends[best]), int(right_ends[right_runs[best]])
