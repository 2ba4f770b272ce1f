"""Round matrices to given levels so that what they do to their inputs changes least.

    minimize over codes    sum over rows of d H d^T,    d = q - w,   q = (level[code] - offset) * scale

H = E[x x^T] is the second moment of the input columns, so that this is the mean squared error of the outputs.
It is the objective of AdaRound (Nagel et al. 2020, https://arxiv.org/abs/2004.10568), and the levels may lie
anywhere. Two starts are led by coordinate descent to where no change of a single code helps, and the better one
is taken row by row:

- the successive rounding of GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323);
- gradual rounding: coordinate descent on values that are drawn ever closer to their levels, which does what
  AdaRound's relaxed rounding does, without its gradient steps. On ResNet-8's layers of 144 and more inputs at 3
  and 4 bits it leaves 8 to 13% less error than successive rounding, as much as 3000 steps of AdaRound do.

No randomness. Letters: g groups of matrices, r rows (outputs), k columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.quantizers.level_set import Lattice, Places
from onnxcomp.numerics.rounding.error_feedback import compensated

Array = NDArray[Any]
Move = Callable[[Array, Array, int], Array]  # values and gradient (g, r) of a column, its index -> change (g, r)

FREE = -1  # in the place of a code that is to be found
BLOCK = 64  # columns between two updates of the whole gradient by a matrix product
SWEEPS = 30  # over all columns, at most; descents end after 5 to 15
LEAST_GAIN = 1e-10  # of a row's error: a smaller one is rounding and could go back and forth
GRADUAL_SWEEPS = 32
LAST_SHARPNESS = 12.0  # of gradual rounding: values within 1/24 of a step of the middle are still between levels
GRADUAL_VALUES, GRADUAL_ROWS = 400, 8  # at least so many of both are worth its time, which is some 5 ms a column
GRADUAL_PRODUCTS = 6 * 10**9  # multiplications that gradual rounding may take; it gains little on large matrices
CHUNK_VALUES = 2**22  # of a matrix that are worked on together: five arrays of float64


def round_matrices(weights: Array, moment: Array, lattice: Lattice, *, fixed: Array | None = None) -> Array:
    """The codes (g, r, k) uint8 of least output error, of which none can be changed alone for the better.

    weights: (g, r, k). moment: (g or 1, k, k), positive definite (see ``second_moment.shrunk``).
    fixed: (g, r, k) int16, the codes that are settled beforehand, FREE where none is.
    """
    return by_chunks(weights, moment, lattice, fixed, lambda part, where: part.best())


def successive_codes(weights: Array, moment: Array, lattice: Lattice, *, fixed: Array | None = None) -> Array:
    """The codes of successive rounding alone, fast enough for trying scales; as in ``round_matrices``."""
    return by_chunks(weights, moment, lattice, fixed, lambda part, where: part.successive())


def improve_codes(
    weights: Array, moment: Array, lattice: Lattice, codes: Array, *, fixed: Array | None = None, sweeps: int = SWEEPS
) -> Array:
    """Codes led by single changes to where none helps any more; as in ``round_matrices``, from a given start.

    sweeps: over all columns, at most; three bring four fifths of what there is to gain.
    """
    return by_chunks(weights, moment, lattice, fixed, lambda part, where: part.descended(codes[where], sweeps))


def by_chunks(
    weights: Array,
    moment: Array,
    lattice: Lattice,
    fixed: Array | None,
    find: Callable[[Descent, tuple[slice, slice]], Array],
) -> Array:
    """Codes (g, r, k), found chunk by chunk; as in ``round_matrices``."""
    codes = np.empty(weights.shape, np.uint8)
    for where in chunks(weights.shape):
        inner = None if fixed is None else fixed[where]
        part = Descent(weights[where], of_group(moment, where[0]), lattice.at(where), inner)
        codes[where] = find(part, where)
    return codes


def row_errors(difference: Array, moment: Array) -> Array:
    """d H d^T of each row (g, r) of differences (g, r, k): the mean squared error of its output."""
    error = np.empty(difference.shape[:2])
    for where in chunks(difference.shape):
        part = np.asarray(difference[where], np.float64)
        error[where] = np.einsum("grk,grk->gr", part @ of_group(moment, where[0]), part)
    return error


def chunks(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Groups and rows of (g, r, k) in parts of at most CHUNK_VALUES: whole groups, or rows of one group."""
    groups, rows, size = shape
    if rows * size <= CHUNK_VALUES:
        step = max(1, CHUNK_VALUES // max(1, rows * size))
        return [(slice(at, at + step), slice(0, rows)) for at in range(0, groups, step)]
    step = max(1, CHUNK_VALUES // size)
    return [(slice(one, one + 1), slice(at, at + step)) for one in range(groups) for at in range(0, rows, step)]


def of_group(moment: Array, group: slice) -> Array:
    """The moments of some groups, where all groups may share one."""
    return moment if len(moment) == 1 else moment[group]


def _by_column(matrices: Array) -> Array:
    """(k, g, r) of (g, r, k): what is worked on together lies together."""
    return matrices.transpose(2, 0, 1).copy()


def _by_row(columns: Array) -> Array:
    """The inverse."""
    return np.ascontiguousarray(columns.transpose(1, 2, 0))


class Descent:
    """The search on one chunk: weights (g, r, k) and moment (g or 1, k, k) in float64, codes uint8."""

    def __init__(self, weights: Array, moment: Array, lattice: Lattice, fixed: Array | None) -> None:
        self._weights = np.asarray(weights, np.float64)
        self._moment = moment
        self._places = Places(lattice)
        self._columns = Places(replace(lattice, unit=_by_column(lattice.unit)))
        self._fixed = None if fixed is None else fixed != FREE
        self._settled: Array = self._weights if fixed is None else self._places.values(np.maximum(fixed, 0))

    def best(self) -> Array:
        """The better descent of the two starts, row by row."""
        codes = self.descended(self.successive())
        if not self._is_worth_gradual():
            return codes
        other = self.descended(self._gradual())
        first, second = (self._errors(each) for each in (codes, other))
        return np.where((second < first)[:, :, None], other, codes)

    def _is_worth_gradual(self) -> bool:
        size, columns = self._weights.size, self._weights.shape[2]
        is_large_enough = size >= GRADUAL_VALUES and size >= GRADUAL_ROWS * columns
        return is_large_enough and GRADUAL_SWEEPS * size * columns <= GRADUAL_PRODUCTS

    def successive(self) -> Array:
        """Column after column to its nearest level, the error made up for by the columns that are still free."""

        def rounded(target: Array, columns: Array) -> Array:
            groups = np.arange(len(columns))[:, None, None]
            at = groups, np.arange(target.shape[1])[None, :, None], columns[:, None, :]
            if len(columns) == 1:  # columns as they lie in memory
                values = self._columns.rounded(target.transpose(2, 0, 1), columns[0]).transpose(1, 2, 0)
            else:
                values = self._places.rounded(target, at)
            return values if self._fixed is None else np.where(self._fixed[at], self._settled[at], values)

        return self._places.codes(compensated(self._weights, self._moment, rounded))

    def descended(self, codes: Array, sweeps: int = SWEEPS) -> Array:
        """The codes after single changes, each the best of its column, until none helps."""
        start = self._places.values(codes)
        values, gradient = _by_column(start), _by_column((start - self._weights) @ self._moment)
        least = LEAST_GAIN * np.einsum("grk,grk->gr", self._weights @ self._moment, self._weights)

        def move(present: Array, slope: Array, column: int) -> Array:
            """To the best level of the column given the others: the error is a parabola in each value, so the level
            nearest to its minimum is the best. 0 where that gains nothing."""
            curvature = self._moment[:, None, column, column]
            change = self._columns.rounded(present - slope / curvature, column) - present
            gain = -change * (2 * slope + change * curvature)
            return np.where(gain > least, change, 0.0)

        for _ in range(sweeps):
            if not self._sweep(values, gradient, move):
                break
        return _by_row(self._columns.codes(values))

    def traded(self, codes: Array, lengths: Array, price: Array) -> Array:
        """The codes after one sweep of single changes, each to where the column's error and what its code's bits cost
        are least together: to the level that is best for the error, to one of the two next to it on the way to the
        shortest code, or to that.

        lengths: (n,) bits of each code. price: (g, r) of a bit, in units of the row's error.
        """
        start = self._places.values(codes)
        values, gradient = _by_column(start), _by_column((start - self._weights) @ self._moment)
        shortest = int(np.argmin(lengths))

        def move(present: Array, slope: Array, column: int) -> Array:
            curvature = self._moment[:, None, column, column]
            wanted = present - slope / curvature
            own = self._columns.codes(present, column).astype(np.intp)
            near = self._columns.codes(wanted, column).astype(np.intp)
            towards = np.sign(shortest - near)
            best, least = present, curvature * (present - wanted) ** 2 + price * lengths[own]
            within = np.minimum(np.abs(shortest - near), 2)
            for code in (near, near + towards, near + towards * within, np.full_like(near, shortest)):
                value = self._columns.values(code, column)
                total = curvature * (value - wanted) ** 2 + price * lengths[code]
                best, least = np.where(total < least, value, best), np.minimum(total, least)
            return best - present

        self._sweep(values, gradient, move)
        return _by_row(self._columns.codes(values))

    def _gradual(self) -> Array:
        """Values that start as the weights and are drawn to their levels, each sweep closer; codes at the end."""
        start = self._weights if self._fixed is None else np.where(self._fixed, self._settled, self._weights)
        values, gradient = _by_column(start), _by_column((start - self._weights) @ self._moment)
        for sharpness in np.geomspace(1.0, LAST_SHARPNESS, GRADUAL_SWEEPS):

            def move(present: Array, slope: Array, column: int, sharpness: float = sharpness) -> Array:
                wanted = present - slope / self._moment[:, None, column, column]
                return self._columns.drawn(wanted, sharpness, column) - present

            self._sweep(values, gradient, move)
        return _by_row(self._columns.codes(values))

    def _sweep(self, values: Array, gradient: Array, move: Move) -> bool:
        """Change column after column as ``move`` says, but for what is fixed; whether anything changed.

        values, gradient: (k, g, r), changed in place.
        """
        changed = False
        for start in range(0, len(values), BLOCK):
            block = slice(start, min(start + BLOCK, len(values)))
            near, moves = gradient[block].copy(), np.zeros(values[block].shape)
            inner = np.ascontiguousarray(self._moment[:, block, block].transpose(1, 2, 0))[..., None]
            for at, column in enumerate(range(start, block.stop)):
                change = move(values[column], near[at], column)
                if self._fixed is not None:
                    change = np.where(self._fixed[:, :, column], 0.0, change)
                if change.any():
                    moves[at] = change
                    values[column] += change
                    near[at + 1 :] += change * inner[at, at + 1 :]
            if moves.any():
                beyond = np.matmul(self._moment[:, block].swapaxes(1, 2), moves.swapaxes(0, 1))
                gradient += beyond.swapaxes(0, 1)
                changed = True
        return changed

    def _errors(self, codes: Array) -> Array:
        return row_errors(self._places.values(codes) - self._weights, self._moment)
