"""One-dimensional k-means, near exact: cut a sorted line in k runs of least squared error.

On a line the best clusters are runs of neighbours, so a clustering is k - 1 cuts of the sorted values.
Three steps find them:

1. the exact optimum over the cuts between about 2048 cells (``cut_program``); for more than 64 levels of at
   most 65,536 values, runs of equal share of the best levels (``sorted_line``), which is near the optimum;
2. every cut may move to one of 17 or 33 places, up to 16 runs away; a dynamic program of k * 33 * 33 steps
   finds the best of all combinations, then again with ever narrower reach;
3. Lloyd's iterations on the values themselves.

Where zero must stay a level, step 1 runs over the negative and over the positive values, and the run around
zero costs its plain sum of squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.quantizers.prefix_sums import CELLS, MOST_SINGLE_SUMS, SortedLine, Sums, run_costs
from onnxcomp.numerics.quantizers.segmentation_dp import CutProgram, mirrored, share_runs

Array = NDArray[Any]

MOST_EXACT_LEVELS = 64
PLACES = 17
PLACES_OF_FEW = 33  # where single values matter; sums are cheap there
FAR_REACHES = (16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0)
NEAR_REACHES = (1.0, 0.5, 0.5, 0.25, 0.12, 0.06)
NEAR_VALUES = 24
MOST_VALUE_MOVES = 12


def best_levels(line: SortedLine, k: int) -> Array:
    """At most k levels, float64 ascending: the means of the runs that cut the line best."""
    moves = _Moves(line, None)
    if _starts_near(line, k):
        return _settled(line, moves.far(line.cells(k)), None)[0]
    cells = line.cells(_cell_count(k))
    program = CutProgram(line.sums(cells), k)
    cuts = cells[program.cuts(program.most_runs, cells.size - 1)]
    return _settled(line, moves.near(cuts), None)[0]


def best_levels_with_zero(line: SortedLine, k: int) -> Array:
    """As ``best_levels`` with 0.0 as one of the levels; the line's shift must be 0."""
    if _starts_near(line, k):
        return _with_one_held(line, k)
    zeros = [int(np.searchsorted(line.values, 0, side=side)) for side in ("left", "right")]
    cells = line.cells(_cell_count(k))
    negative, positive = np.append(cells[cells < zeros[0]], zeros[0]), np.append(zeros[1], cells[cells > zeros[1]])
    left = CutProgram(line.sums(negative), k - 1)
    right = CutProgram(mirrored(line.sums(positive)), k - 1)
    runs, left_end, right_end = share_runs(left, right, k - 1)
    right_cuts = positive[::-1][right.cuts(runs[1], right_end)][::-1]
    cuts = np.concatenate([negative[left.cuts(runs[0], left_end)], right_cuts])
    return _settled(line, _Moves(line, runs[0]).near(cuts), runs[0])[0]


def _cell_count(k: int) -> int:
    return CELLS // 2 if k <= MOST_EXACT_LEVELS else CELLS


def _starts_near(line: SortedLine, k: int) -> bool:
    """Whether equal shares will do for a start: cheap, and as good for small weights, of which there are many."""
    return k > MOST_EXACT_LEVELS and line.size <= MOST_SINGLE_SUMS


def _with_one_held(line: SortedLine, k: int) -> Array:
    """The best levels with one held at 0: of the free ones, either neighbour of zero is tried."""
    free = _Moves(line, None).far(line.cells(k))
    above = int(np.searchsorted(_settled(line, free, None)[0], 0))
    found = []
    for zero in {max(above - 1, 0), min(above, free.size - 2)}:
        found.append(_settled(line, _Moves(line, zero).far(free), zero))
    return min(found, key=lambda each: each[1])[0]


class _Moves:
    """Cuts moved together to where their error is least. They are never worse afterwards.

    Where there are few distinct values, cuts count them and stand between them; else they count all values.
    zero: the index of the run whose level is held at 0, or None.
    """

    def __init__(self, line: SortedLine, zero: int | None) -> None:
        self._line = line
        self._zero = zero
        self._starts = line.value_starts
        self._start_sums = None if self._starts is None else line.sums(self._starts)
        self._places = PLACES_OF_FEW if line.size <= MOST_SINGLE_SUMS else PLACES

    def far(self, cuts: Array) -> Array:
        """The cuts after moves across many runs, and then as ``near``."""
        return self._moved(cuts, FAR_REACHES + NEAR_REACHES)

    def near(self, cuts: Array) -> Array:
        """The cuts after moves up to their neighbours."""
        return self._moved(cuts, NEAR_REACHES)

    def _moved(self, cuts: Array, reaches: tuple[float, ...]) -> Array:
        if cuts.size <= 2:
            return cuts
        if self._starts is not None:
            cuts = np.searchsorted(self._starts, cuts)
        for reach in reaches:
            cuts = self._best(cuts, self._around(cuts, reach))
        if self._starts is None:
            return cuts
        if self._starts.size < NEAR_VALUES * cuts.size:
            cuts = self._moved_by_values(cuts)
        return self._starts[cuts]

    def _around(self, cuts: Array, reach: float) -> Array:
        """(k - 1, places) places for the inner cuts, evenly from ``reach`` runs below to as many above."""
        rank = np.arange(cuts.size)
        return np.rint(np.interp(rank[1:-1, None] + np.linspace(-reach, reach, self._places), rank, cuts))

    def _moved_by_values(self, cuts: Array) -> Array:
        """The cuts after moves across up to 24 values, until none gains."""
        for _ in range(MOST_VALUE_MOVES):
            places = np.clip(cuts[1:-1, None] + np.arange(-NEAR_VALUES, NEAR_VALUES + 1), cuts[0], cuts[-1])
            moved = self._best(cuts, places)
            if np.array_equal(moved, cuts):
                break
            cuts = moved
        return cuts

    def _best(self, cuts: Array, places: Array) -> Array:
        """The best of all combinations of one place for each inner cut."""
        ends = np.broadcast_to(cuts[[0, -1], None], (2, places.shape[1]))
        places = np.concatenate([ends[:1], places.astype(np.int64), ends[1:]])
        sums = self._sums(places)
        left = (sums[0][:-1, :, None], sums[1][:-1, :, None], sums[2][:-1, :, None])
        right = (sums[0][1:, None, :], sums[1][1:, None, :], sums[2][1:, None, :])
        costs = run_costs(left, right)
        if self._zero is not None:
            costs[self._zero] = right[2][self._zero] - left[2][self._zero]
        costs[left[0] > right[0]] = np.inf
        return places[np.arange(cuts.size), _cheapest_path(costs)]

    def _sums(self, places: Array) -> Sums:
        if self._start_sums is None:
            return self._line.sums(places)
        count, total, squares = self._start_sums
        return count[places], total[places], squares[places]


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


def _settled(line: SortedLine, cuts: Array, zero: int | None) -> tuple[Array, float]:
    """The levels of the runs after Lloyd's iterations, float64 ascending, and their error.

    0.0 stays one where it was.
    """
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
    return levels, error


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
