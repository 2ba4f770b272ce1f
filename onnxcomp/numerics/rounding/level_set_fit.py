"""Codes and the scales or levels they stand for, set in turn to where the output error is least.

    codes of a lattice              rounding.round_matrices, rounding.improve_codes
    scale for given codes           s = (c H w) / (c H c),  c the levels less the offset, of one unit
    levels for given codes          A l = b,  A[l, m] = sum of s 1_l H 1_m s,  b[l] = sum of s 1_l H w

H is the second moment of the inputs, 1_l the positions of level l in a row; both fits are least squares.
All arrays of positions are (g, r, k): groups, rows (outputs), columns (inputs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import compute_dtype
from onnxcomp.numerics.quantizers.level_set import Lattice
from onnxcomp.numerics.rounding.coordinate_descent import (
    chunks,
    improve_codes,
    of_group,
    round_matrices,
    row_errors,
    successive_codes,
)

Array = NDArray[Any]

# Of the scales that fit the weights best: with few bits the outputs are nearest where more of the weights are cut off.
SHRINKS = (1.0, 0.88, 0.76, 0.64)
ROUNDS = 2  # of scales and codes in turn; a third gains less than a thousandth
MOST_LEVELS = 64  # whose values are fitted: each takes a product with H


@dataclass(frozen=True)
class Problem:
    """weights (g, r, k) of type ``dtype``, the second moment (g or 1, k, k) of their inputs, positive definite, and
    codes settled beforehand as in ``rounding``."""

    weights: Array
    moment: Array
    dtype: np.dtype[Any]
    fixed: Array | None = None

    def error(self, lattice: Lattice, codes: Array) -> Array:
        """The mean squared error of each output (g, r)."""
        return row_errors(lattice.values(codes) - self.weights, self.moment)


def fit_codes(problem: Problem, lattice: Lattice) -> tuple[Array, Lattice]:
    """Codes uint8 and the lattice, its scales drawn in and fitted, for weights that were not rounded before."""
    best, least = lattice, np.full(lattice.scale.shape, np.inf)
    for shrink in SHRINKS:
        tried = replace(lattice, scale=_stored(lattice.scale * shrink, lattice, problem.dtype))
        codes = successive_codes(problem.weights, problem.moment, tried, fixed=problem.fixed)
        found = _unit_errors(tried.unit, problem.error(tried, codes), lattice.scale.size)
        best = replace(best, scale=np.where(found < least, tried.scale, best.scale))
        least = np.minimum(found, least)
    codes = round_matrices(problem.weights, problem.moment, best, fixed=problem.fixed)
    return refined(problem, best, codes, scales=True)


def refined(
    problem: Problem, lattice: Lattice, codes: Array, *, scales: bool = False, levels: bool = False
) -> tuple[Array, Lattice]:
    """Scales (or levels) fitted to the codes and codes to them, in turn, as long as the error falls."""
    error = float(problem.error(lattice, codes).sum())
    for _ in range(ROUNDS):
        tried, start = lattice, codes
        if levels and lattice.level.size <= MOST_LEVELS:
            tried, start = refit_levels(problem, tried, start)
        if scales:
            tried = refit_scales(problem, tried, start)
        found = improve_codes(problem.weights, problem.moment, tried, start, fixed=problem.fixed)
        after = float(problem.error(tried, found).sum())
        if not after < error:
            break
        codes, lattice, error = found, tried, after
    return codes, lattice


def refit_scales(problem: Problem, lattice: Lattice, codes: Array) -> Lattice:
    """The lattice with the scales of least output error for these codes, in the type that decoders compute in.

    Units that share rows (blocks) are set one after another. A lattice is given back as it is where the units of
    one row lie in other columns than those of another.
    """
    for columns in _column_classes(lattice.unit, lattice.scale.size):
        wanted = lattice.scale + _scale_steps(problem, lattice, codes, columns)
        wanted = np.where(wanted * lattice.scale > 0, wanted, lattice.scale)
        lattice = replace(lattice, scale=_stored(wanted, lattice, problem.dtype))
    return lattice


def _scale_steps(problem: Problem, lattice: Lattice, codes: Array, columns: Array) -> Array:
    """By how much each unit's scale (units,) is to grow, of the units in these columns."""
    units = lattice.scale.size
    along, power = np.zeros(units), np.zeros(units)
    for where in chunks(codes.shape):
        part, moment = lattice.at(where), of_group(problem.moment, where[0])
        base = replace(part, scale=np.ones(units)).values(codes[where])
        difference, unit = base * part.scale[part.unit] - problem.weights[where], part.unit
        inner = moment
        if columns.size < codes.shape[2]:
            inner, moment = moment[:, columns][:, :, columns], moment[:, :, columns]
            unit, base = unit[:, :, columns], base[:, :, columns]
        along += np.bincount(unit.ravel(), (base * (difference @ moment)).ravel(), units)
        power += np.bincount(unit.ravel(), (base * (base @ inner)).ravel(), units)
    return np.where(power > 0, -along / np.where(power > 0, power, 1), 0.0)


def _column_classes(unit: Array, units: int) -> list[Array]:
    """The columns (indices) that each unit of a row takes, the same in all rows; none where that is not so."""
    flat = unit.reshape(-1, unit.shape[2])
    _, leaders, inverse = np.unique(flat[0], return_index=True, return_inverse=True)
    class_of = np.full(units, -1)
    class_of[flat] = inverse
    if not (np.array_equal(flat, flat[:, leaders][:, inverse]) and (class_of[flat] == inverse).all()):
        return []
    return [np.flatnonzero(inverse == each) for each in range(leaders.size)]


def _unit_errors(unit: Array, errors: Array, units: int) -> Array:
    """What is to be least when a unit's scale is chosen (units,): the errors of the rows that it lies in, of the one
    row where it shares that with others, or of all rows where units share both."""
    flat, errors = unit.reshape(-1, unit.shape[2]), errors.reshape(-1)
    if (flat == flat[:, :1]).all():
        return np.bincount(flat[:, 0], errors, units)
    row_of = np.zeros(units, np.int64)
    rows = np.arange(len(flat))[:, None]
    row_of[flat] = rows
    return errors[row_of] if (row_of[flat] == rows).all() else np.full(units, errors.sum())


def _stored(scale: Array, lattice: Lattice, dtype: np.dtype[Any]) -> Array:
    """Scales as decoders hold them: of no level beyond the type's range, none denormal but where they were zero."""
    compute = compute_dtype(dtype)
    largest = float(ml_dtypes.finfo(dtype).max) * (1 - 1e-6)  # type: ignore[no-untyped-call]
    least = float(np.finfo(compute).tiny)
    size = np.clip(np.abs(scale), least, largest / np.maximum(lattice.reach, 1e-30))
    stored: Array = np.where(scale == 0, 0.0, np.copysign(size, scale)).astype(compute).astype(np.float64)
    return stored


def refit_levels(problem: Problem, lattice: Lattice, codes: Array) -> tuple[Lattice, Array]:
    """The lattice with the levels of least output error for these codes, in the weights' type, and the codes in their
    new order. A level of zero stays; where two levels would become one, all stay as they are."""
    count = lattice.level.size
    matrix, wanted = _normal_equations(problem, lattice, codes)
    free = (np.diagonal(matrix) > 0) & (lattice.level != 0)
    ridge = 1e-9 * np.trace(matrix) / count * np.eye(count)
    level = lattice.level.copy()
    level[free] = np.linalg.solve((matrix + ridge)[free][:, free], (wanted + ridge @ level)[free])
    level = level.astype(problem.dtype).astype(np.float64)
    if np.unique(level).size < count or not np.isfinite(level).all():
        return lattice, codes
    order = np.argsort(level)
    return replace(lattice, level=level[order]), np.argsort(order)[codes].astype(np.uint8)


def _normal_equations(problem: Problem, lattice: Lattice, codes: Array) -> tuple[Array, Array]:
    count = lattice.level.size
    matrix, wanted = np.zeros((count, count)), np.zeros(count)
    for where in chunks(codes.shape):
        part, moment = codes[where], of_group(problem.moment, where[0])
        scale = lattice.scale[lattice.unit[where]]
        for each in range(count):
            product = np.where(part == each, scale, 0.0) @ moment
            matrix[each] += np.bincount(part.ravel(), (product * scale).ravel(), count)
            wanted[each] += float(np.sum(product * problem.weights[where]))
    return matrix, wanted
