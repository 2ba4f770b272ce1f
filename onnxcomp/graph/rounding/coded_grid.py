"""Round a weight to a grid for an entropy coder: many levels, of which few are taken often.

    step  ->  codes of least output error  ->  likelier codes where that costs little  ->  scales fitted to them

What counts is not how many levels there are but how many bits their frequencies leave, so that the grid covers all
values and nothing is clipped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.rounding.codebook import DESCENDED_PRODUCTS
from onnxcomp.graph.rounding.grid import Rounded
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.arrays.channel_rows import along_axis, rows_of
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding, compute_dtype, short_scales
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.quantizers.level_set import Lattice, lattice_of, with_lattice
from onnxcomp.numerics.rounding.coordinate_descent import FREE, improve_codes, successive_codes
from onnxcomp.numerics.rounding.gram import CAUTIOUS_SHRINKAGE, relative_output_error, shrunk
from onnxcomp.numerics.rounding.level_set_fit import Problem, refit_scales
from onnxcomp.numerics.rounding.rate_distortion import likelier_codes

ALGORITHM = "rate-distortion"
MOST_STEPS = 127  # on each side of zero
SWEEPS = 3  # of single changes before bits are looked at
MOST_COLUMNS = 4096  # of a matrix whose second moment is factorized: larger ones start from the nearest codes


def grid_of_step(values: Array, step: float, axis: int | None) -> GridEncoding:
    """A grid that covers the values, of steps in standard deviations of the whole or of each index of ``axis``."""
    rows = rows_of(values, axis).astype(np.float64)
    spread, peak = rows.std(axis=1), np.abs(rows).max(axis=1, initial=0.0)
    size = np.maximum(step * spread, peak / MOST_STEPS)
    size = np.maximum(size, np.finfo(np.float32).tiny)
    scale = short_scales(size.astype(compute_dtype(values.dtype)))
    reach = int(min(MOST_STEPS, max(1, np.ceil((peak / scale).max(initial=0.0)))))
    point = np.full(scale.shape, reach, np.int64)
    return GridEncoding(
        dtype=str(values.dtype), levels=2 * reach + 1, axis=axis,
        scale=along_axis(scale, axis, values.ndim), zero_point=along_axis(point, axis, values.ndim),
    )  # fmt: skip


def round_for_coding(
    weight: Weight, encoding: GridEncoding | CodebookEncoding, trade: float, gram: Array | None = None,
    *, reference: Array | None = None, keep: Array | None = None,
) -> Rounded | None:  # fmt: skip
    """The weight on the levels of the encoding, or None where its float type is too coarse for the scale.

    trade: as in ``likelier_codes``. gram: (groups or 1, K, K) second moments of the inputs in its matrix form; None: to
    the nearest levels, since a trade that nothing leads ends with all values at zero. reference: of the weight's shape,
    what is rounded, by default its own values. keep: where values stay zero (bool, of that shape), which must then be a
    level.
    """
    wanted = np.asarray(weight.values) if reference is None else reference
    form = None if gram is None else matrix_form(weight)
    if form is None or gram is None:
        rows = wanted.reshape(1, -1, 1)
        moment = np.ones((1, 1, 1))
        trade = 0.0
    else:
        rows, moment = form.pack(wanted), shrunk(gram, CAUTIOUS_SHRINKAGE)
    lattice = lattice_of(encoding, weight.shape)
    lattice = replace(lattice, unit=lattice.unit.reshape(rows.shape) if form is None else form.pack(lattice.unit))
    fixed = None
    if keep is not None and keep.any():
        kept = keep.reshape(rows.shape) if form is None else form.pack(keep)
        zero = lattice.nearest(np.zeros(rows.shape)).astype(np.int16)
        fixed = np.where(kept, zero, FREE).astype(np.int16)
    problem = Problem(rows.astype(np.float64), moment, weight.dtype, fixed)
    codes = likelier_codes(problem, lattice, _of_least_error(problem, lattice), trade=trade)
    if encoding.scale is not None:
        lattice = refit_scales(problem, lattice, codes)
        lattice = replace(lattice, scale=short_scales(lattice.scale))
    made = with_lattice(encoding, lattice)
    values = made.decode(codes.reshape(weight.shape) if form is None else form.unpack(codes), weight.shape)
    if made.encode(values) is None:
        return None
    if form is None:
        return Rounded(values, made, ALGORITHM, relative_error(wanted, values), False)
    return Rounded(values, made, ALGORITHM, relative_output_error(rows, form.pack(values), moment), True)


def _of_least_error(problem: Problem, lattice: Lattice) -> Array:
    columns = problem.weights.shape[2]
    if columns == 1 or columns > MOST_COLUMNS:
        nearest = lattice.nearest(problem.weights)
        if problem.fixed is None:
            return nearest
        return np.where(problem.fixed == FREE, nearest, problem.fixed).astype(np.uint8)
    codes = successive_codes(problem.weights, problem.moment, lattice, fixed=problem.fixed)
    if codes.size * columns > DESCENDED_PRODUCTS:
        return codes
    return improve_codes(problem.weights, problem.moment, lattice, codes, fixed=problem.fixed, sweeps=SWEEPS)
