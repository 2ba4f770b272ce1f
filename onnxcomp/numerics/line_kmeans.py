"""One-dimensional k-means, near exact: cut a sorted line in k runs of least squared error.

On a line the best clusters are runs of neighbours, so a clustering is k - 1 cuts of the sorted values.
Three steps find them:

1. the exact optimum over the cuts between about 2048 cells, by dynamic programming over the number of runs.
   Where the last run of the first j cells begins grows with j (the costs are concave Monge, Wu 1991), so
   that a row takes O(cells log cells);
2. every cut may move to one of 17 places up to its neighbours; a dynamic program of k * 17 * 17 steps finds
   the best of all combinations, then again with a narrower reach;
3. Lloyd's iterations on the values themselves.

Where zero must stay a level, step 1 runs over the negative and over the positive values, and the run around
zero costs its plain sum of squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.sorted_line import SortedLine, Sums, run_costs

Array = NDArray[Any]

PLACES = 17
REACHES = (0.5, 0.5, 0.25, 0.25, 0.12, 0.06)


def best_levels(line: SortedLine, k: int) -> Array:
    """At most k levels, float64 ascending: the means of the runs that cut the line best."""
    cells = line.cells()
    program = _CutProgram(line.sums(cells), k)
    cuts = cells[program.cuts(program.most_runs, cells.size - 1)]
    return _settled(line, _moved_together(line, cuts, None), None)


def best_levels_with_zero(line: SortedLine, k: int) -> Array:
    """As ``best_levels`` with 0.0 as one of the levels; the line's shift must be 0."""
    cells = line.cells()
    zero_starts = int(np.searchsorted(line.values, 0, side="left"))
    zero_ends = int(np.searchsorted(line.values, 0, side="right"))
    negative = np.append(cells[cells < zero_starts], zero_starts)
    positive = np.append(zero_ends, cells[cells > zero_ends])
    left = _CutProgram(line.sums(negative), k - 1)
    right = _CutProgram(_mirrored(line.sums(positive)), k - 1)
    runs, left_end, right_end = _share_runs(left, right, k - 1)
    left_cuts = negative[left.cuts(runs[0], left_end)]
    right_cuts = positive[::-1][right.cuts(runs[1], right_end)][::-1]
    cuts = np.concatenate([left_cuts, right_cuts])
    return _settled(line, _moved_together(line, cuts, runs[0]), runs[0])


class _CutProgram:
    """The least error of the first j cells in t runs, for every j and every t up to ``most_runs``.

    sums: count, sum and sum of squares before each of the m + 1 bounds of the cells.
    """

    def __init__(self, sums: Sums, most_runs: int) -> None:
        self._sums = sums
        cells = sums[0].size - 1
        self.most_runs = min(most_runs, cells)
        self.errors = [np.where(np.arange(cells + 1) == 0, 0.0, np.inf)]
        self._begins = [np.zeros(cells + 1, np.int64)]
        if self.most_runs:
            first = (sums[0][0], sums[1][0], sums[2][0])
            self.errors.append(np.append(np.inf, run_costs(first, sums)[1:]))
            self._begins.append(np.zeros(cells + 1, np.int64))
        for runs in range(1, self.most_runs):
            errors, begins = self._row(self.errors[-1], runs)
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


def _mirrored(sums: Sums) -> Sums:
    """The sums of the cells in reverse order; runs depend on differences alone."""
    return -sums[0][::-1], sums[1][::-1], -sums[2][::-1]


def _share_runs(left: _CutProgram, right: _CutProgram, runs: int) -> tuple[tuple[int, int], int, int]:
    """How many runs each side gets, and the cell at which each side's part of the zero run begins."""
    left_ends, left_errors = left.best_to_zero()
    right_ends, right_errors = right.best_to_zero()
    left_runs = np.arange(left.most_runs + 1)
    right_runs = np.minimum(runs - left_runs, right.most_runs)
    best = int(np.argmin(left_errors + right_errors[right_runs]))
    return (best, int(right_runs[best])), int(left_ends[best]), int(right_ends[right_runs[best]])


def _moved_together(line: SortedLine, cuts: Array, zero: int | None) -> Array:
    """The cuts after moving all of them together within ever narrower reach; never worse than before."""
    for reach in REACHES:
        if cuts.size > 2:
            cuts = _moved_once(line, cuts, zero, reach)
    return cuts


def _moved_once(line: SortedLine, cuts: Array, zero: int | None, reach: float) -> Array:
    """One dynamic program over 17 places a cut: (k + 1,) cuts, of which the first and last stay."""
    widths = np.diff(cuts)
    offset = np.linspace(-reach, reach, PLACES)
    room = np.where(offset < 0, widths[:-1, None], widths[1:, None])
    places = np.rint(cuts[1:-1, None] + offset * room).astype(np.int64)
    ends = np.broadcast_to(cuts[[0, -1], None], (2, PLACES))
    places = np.concatenate([ends[:1], places, ends[1:]])
    sums = line.sums(places)
    left = (sums[0][:-1, :, None], sums[1][:-1, :, None], sums[2][:-1, :, None])
    right = (sums[0][1:, None, :], sums[1][1:, None, :], sums[2][1:, None, :])
    costs = run_costs(left, right)
    if zero is not None:
        costs[zero] = right[2][zero] - left[2][zero]
    costs[left[0] > right[0]] = np.inf
    return places[np.arange(cuts.size), _cheapest_path(costs)]


def _cheapest_path(costs: Array) -> Array:
    """costs: (steps, places, places) -> (steps + 1,) places of least sum."""
    error = np.zeros(costs.shape[1])
    came = np.empty(costs.shape[:2], np.int64)
    for step, cost in enumerate(costs):
        through = error[:, None] + cost
        came[step] = through.argmin(axis=0)
        error = through.min(axis=0)
    path = [int(error.argmin())]
    for step in range(len(costs) - 1, -1, -1):
        path.append(int(came[step, path[-1]]))
    return np.array(path[::-1])


def _settled(line: SortedLine, cuts: Array, zero: int | None) -> Array:
    """The levels of the runs after Lloyd's iterations, float64 ascending; 0.0 stays one where it was."""
    levels, error = _levels(line, cuts, zero)
    for _ in range(30):
        middles = (levels[1:] + levels[:-1]) / 2
        inner = np.searchsorted(line.values, middles.astype(line.values.dtype), side="right")
        place = None if zero is None else int(np.searchsorted(levels, 0.0))
        new_levels, new_error = _levels(line, np.concatenate([[0], inner, [line.size]]), place)
        if new_error >= error:
            break
        gained = error - new_error
        levels, error = new_levels, new_error
        if gained < 1e-6 * error:
            break
    return levels


def _levels(line: SortedLine, cuts: Array, zero: int | None) -> tuple[Array, float]:
    """The means of the runs, without the empty ones, and the squared error of all."""
    count, total, squares = line.sums(cuts)
    runs = np.diff(count)
    means = np.diff(total) / np.maximum(runs, 1) + line.shift
    costs = run_costs((count[:-1], total[:-1], squares[:-1]), (count[1:], total[1:], squares[1:]))
    keep = runs > 0
    if zero is not None:
        means[zero], costs[zero], keep[zero] = 0.0, squares[zero + 1] - squares[zero], True
    return np.sort(means[keep]), float(costs.sum())
