"""Choose among a weight's levels by what its node's outputs lose: on a new grid, or on levels that it already has.

    reference W, levels -> codes        of least |(W - Q) x|^2 over the calibration inputs x

The levels are an affine grid's or a codebook's; their scales (and a codebook's values) are fitted along with the codes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.rounding.grid import GridSpec, Rounded, round_to_grid
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.numerics.quantizers.affine import fit_grid
from onnxcomp.numerics.quantizers.level_set import Lattice, LevelEncoding, lattice_of, with_lattice
from onnxcomp.numerics.rounding.coordinate_descent import FREE, improve_codes, round_matrices
from onnxcomp.numerics.rounding.gram import relative_output_error, shrunk
from onnxcomp.numerics.rounding.level_set_fit import Problem, fit_codes, refined

ALGORITHM = "output"
MOST_COLUMNS = 4096  # of a matrix whose second moment is factorized several times: each takes seconds from there on
UNEXPLAINED_ZEROS = 0.005  # share of the values from which on zeros are a mask's, not rounding's
LEAST_GAIN = 1e-4  # of the error: less is not worth a rewritten weight


def round_to_new_grid(weight: Weight, grid: GridSpec, gram: Array) -> Rounded | None:
    """The weight on a grid of its own, or None where its float type is too coarse for the scale.

    gram: (groups or 1, K, K) second moments of its inputs in its matrix form. The weight must have no obstacle.
    """
    if gram.shape[-1] > MOST_COLUMNS:
        return round_to_grid(weight, grid, "gptq", gram)
    old, axis = np.asarray(weight.values), grid.axis(weight)
    block_size = grid.block_size if grid.granularity == "block" else None
    scale, zero_point = fit_grid(
        old, bits=grid.bits, symmetric=grid.symmetric, axis=axis, block_size=block_size, search=grid.search_range
    )
    encoding = GridEncoding(
        dtype=str(weight.dtype), levels=2**grid.bits, scale=scale, zero_point=zero_point, axis=axis,
        block_size=block_size,
    )  # fmt: skip
    rounding = _Rounding(weight, encoding, old, gram, fixed=old == 0)
    return rounding.made(*fit_codes(rounding.problem, rounding.lattice))


def round_again(weight: Weight, encoding: LevelEncoding, reference: Array, gram: Array) -> Rounded | str:
    """The weight on the levels that it has, nearer to the outputs of ``reference``; or why it stays as it is.

    Zeros that rounding the reference does not explain are taken for a pruning mask, and all zeros then stay.
    """
    present = np.asarray(weight.values)
    codes = encoding.encode(present)
    if codes is None:
        return "its values are not those of its encoding"
    zeros = present == 0
    unexplained = zeros & (encoding.decode(encoding.nearest(reference), reference.shape) != 0)
    masked = np.mean(unexplained) > UNEXPLAINED_ZEROS
    rounding = _Rounding(weight, encoding, reference, gram, fixed=zeros if masked else reference == 0)
    found = rounding.improved(codes)
    if found is None:
        return f"{weight.dtype} is too coarse for its scale"
    if not found.error < (1 - LEAST_GAIN) * rounding.error(present):
        return "no other choice of its levels brings its outputs nearer"
    return found


class _Rounding:
    """One weight, its levels and the matrices that it is."""

    def __init__(self, weight: Weight, encoding: LevelEncoding, reference: Array, gram: Array, fixed: Array) -> None:
        form = matrix_form(weight)
        assert form is not None, "there are no second moments without a matrix form"
        self._form: MatrixForm = form
        self._weight = weight
        self._encoding = encoding
        self._wanted = form.pack(reference)
        self._moment = shrunk(gram)
        lattice = lattice_of(encoding, weight.shape)
        self.lattice = replace(lattice, unit=form.pack(lattice.unit))
        zero = self.lattice.nearest(np.zeros(self._wanted.shape)).astype(np.int16)
        self._fixed = np.where(form.pack(fixed), zero, FREE).astype(np.int16) if fixed.any() else None
        self.problem = Problem(self._wanted.astype(np.float64), self._moment, weight.dtype, self._fixed)

    def improved(self, codes: Array) -> Rounded | None:
        """The better of what comes from the present codes and from the reference; levels and scales then fitted."""
        problem, lattice, fixed = self.problem, self.lattice, self._fixed
        best = improve_codes(problem.weights, problem.moment, lattice, self._form.pack(codes), fixed=fixed)
        if problem.weights.shape[2] <= MOST_COLUMNS:
            anew = round_matrices(problem.weights, problem.moment, lattice, fixed=fixed)
            less = problem.error(lattice, anew) < problem.error(lattice, best)
            best = np.where(less[:, :, None], anew, best)
        scales, levels = self._encoding.scale is not None, isinstance(self._encoding, CodebookEncoding)
        return self.made(*refined(problem, lattice, best, scales=scales, levels=levels))

    def made(self, codes: Array, lattice: Lattice) -> Rounded | None:
        """The values that codes of the lattice make and their encoding, None where it does not find the codes again."""
        encoding = with_lattice(self._encoding, lattice)
        values = encoding.decode(self._form.unpack(codes), self._weight.shape)
        if encoding.encode(values) is None:
            return None
        return Rounded(values, encoding, ALGORITHM, self.error(values), True)

    def error(self, values: Array) -> float:
        """The squared error of the node's output relative to its power."""
        return relative_output_error(self._wanted, self._form.pack(values), self._moment)
