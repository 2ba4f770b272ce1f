"""Move a weight to a codebook's levels by what its node's outputs lose.

    levels of the values, then in turn:    codes column by column, each error made up for by the columns to come
                                           scales and levels of least output error for these codes

A codebook of single values (with a scale for each channel, or none) or of vectors along the columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.rounding.grid import Rounded
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    VectorEncoding,
    compute_dtype,
    short_scales,
)
from onnxcomp.numerics.quantizers.level_set import Lattice, lattice_of, with_lattice
from onnxcomp.numerics.quantizers.product_quantization import nearest_vectors, refit_vectors
from onnxcomp.numerics.rounding.coordinate_descent import FREE, improve_codes, successive_codes
from onnxcomp.numerics.rounding.error_feedback import Turns, compensated_in
from onnxcomp.numerics.rounding.gram import CAUTIOUS_SHRINKAGE, OutputError, shrunk
from onnxcomp.numerics.rounding.level_set_fit import Problem, refit_levels, refit_scales

ALGORITHM = "output"
DESCENDED_PRODUCTS = 3 * 10**8  # multiplications of a sweep of single changes: larger weights go without
ROUNDS = 2  # of vectors' codes and their codebook in turn
SWEEPS = 3  # of single changes
FITTED_PRODUCTS = 2 * 10**9  # multiplications of one fit of the levels: larger weights keep those of their values


def round_to_codebook(
    weight: Weight,
    encoding: CodebookEncoding,
    gram: Array,
    *,
    keep: Array | None = None,
    reference: Array | None = None,
) -> Rounded:
    """The weight on the codebook, its levels and scales fitted to the outputs; the nearest values where that is worse.

    encoding: fitted to the values. gram: (groups or 1, K, K) second moments of the inputs. keep: where values stay
    zero (bool, of the weight's shape); zero must then be a level. reference: of that shape, what is rounded: by default
    the weight's own values, else those that make up for what was pruned. The error is that of the weight's outputs.
    """
    old = np.asarray(weight.values)
    reference = old if reference is None else reference
    form = _form(weight)
    moment = shrunk(gram, CAUTIOUS_SHRINKAGE)
    lattice = lattice_of(encoding, weight.shape)
    lattice = replace(lattice, unit=form.pack(lattice.unit))
    fixed = None if keep is None else _settled(lattice, form.pack(keep))
    problem = Problem(form.pack(reference).astype(np.float64), moment, weight.dtype, fixed)
    near = reference if keep is None else np.where(keep, old.dtype.type(0), reference)
    trials = _Trials(form, old, moment)
    trials.add(encoding, encoding.nearest(near))
    codes = successive_codes(problem.weights, moment, lattice, fixed=fixed)
    lattice, codes = _refitted(problem, encoding, lattice, codes)
    trials.add(with_lattice(encoding, lattice), form.unpack(codes))
    return trials.best()


def _refitted(
    problem: Problem, encoding: CodebookEncoding | GridEncoding, lattice: Lattice, codes: Array
) -> tuple[Lattice, Array]:
    """Levels of a codebook and scales of least output error for these codes; large weights keep their levels."""
    products = codes.size * codes.shape[2] * lattice.level.size
    if isinstance(encoding, CodebookEncoding) and products <= FITTED_PRODUCTS:
        lattice, codes = refit_levels(problem, lattice, codes)
    if encoding.scale is not None:
        lattice = refit_scales(problem, lattice, codes)
        lattice = replace(lattice, scale=short_scales(lattice.scale))
    return lattice, codes


def round_in_turn(
    weight: Weight,
    encoding: CodebookEncoding | GridEncoding,
    reference: Array,
    gram: Array,
    *,
    keep: Array | None = None,
) -> Rounded:
    """The weight on as many levels as it has, in their form, nearer to the outputs of ``reference``.

    reference: of the weight's shape, not rounded. gram, keep: as in ``round_to_codebook``; the error is relative to
    the reference's outputs. The present values where nothing is nearer.
    """
    form, present = _form(weight), np.asarray(weight.values)
    moment = shrunk(gram, CAUTIOUS_SHRINKAGE)
    lattice = lattice_of(encoding, weight.shape)
    lattice = replace(lattice, unit=form.pack(lattice.unit))
    fixed = None if keep is None else _settled(lattice, form.pack(keep))
    problem = Problem(form.pack(reference).astype(np.float64), moment, weight.dtype, fixed)
    trials = _Trials(form, reference, moment)
    trials.add(encoding, encoding.nearest(present))
    codes = successive_codes(problem.weights, moment, lattice, fixed=fixed)
    lattice, codes = _refitted(problem, encoding, lattice, codes)
    if codes.size * codes.shape[2] <= DESCENDED_PRODUCTS:
        codes = improve_codes(problem.weights, moment, lattice, codes, fixed=fixed, sweeps=SWEEPS)
        lattice, codes = _refitted(problem, encoding, lattice, codes)
    trials.add(with_lattice(encoding, lattice), form.unpack(codes))
    return trials.best()


def round_to_vectors(
    weight: Weight, encoding: VectorEncoding, gram: Array, *, reference: Array | None = None
) -> Rounded | None:
    """The weight on a codebook of vectors along the columns of its matrix form, or None where that is not their axis.

    reference: what it is to come near to; its own values by default.
    """
    old = np.asarray(weight.values if reference is None else reference)
    form = _form(weight)
    width = encoding.codebook.shape[1]
    moment = shrunk(gram, CAUTIOUS_SHRINKAGE)
    packed = form.pack(old)
    if not _runs_along_columns(form, encoding, old.shape) or packed.shape[2] % width:
        return None
    book = encoding.codebook.astype(np.float32)
    trials = _Trials(form, old, moment)
    trials.add(encoding, encoding.nearest(old))
    turns = Turns.of(moment, len(packed), width=width)
    codes = np.empty((*packed.shape[:2], packed.shape[2] // width), np.int64)
    for _ in range(ROUNDS):

        def rounded(target: Array, columns: Array, book: Array = book) -> Array:
            near = nearest_vectors(target, book)
            np.put_along_axis(codes, columns[:, None, :1] // width, near[:, :, None], axis=2)
            return book[near]

        compensated_in(turns, packed, rounded)
        trials.add_vectors(encoding, book, codes)
        book = refit_vectors(packed, moment, book, codes)
        trials.add_vectors(encoding, book, codes)
    return trials.best()


def _form(weight: Weight) -> MatrixForm:
    form = matrix_form(weight)
    assert form is not None, "there are no second moments without a matrix form"
    return form


def _settled(lattice: Lattice, keep: Array) -> Array:
    """The code of zero where values stay zero, FREE elsewhere; (g, r, k) int16."""
    zero = lattice.nearest(np.zeros(keep.shape)).astype(np.int16)
    return np.where(keep, zero, FREE).astype(np.int16)


class _Trials:
    """What was tried for a weight, each with how far its outputs are from those of ``wanted``."""

    def __init__(self, form: MatrixForm, wanted: Array, moment: Array) -> None:
        self._form, self._dtype = form, wanted.dtype
        self._error = OutputError(form.pack(wanted), moment)
        self._shape = wanted.shape
        self._tried: list[Rounded] = []

    def add(self, encoding: Encoding, codes: Array) -> None:
        """Try what codes of an encoding make."""
        self._add(encoding, encoding.decode(codes, self._shape))

    def add_vectors(self, encoding: VectorEncoding, book: Array, codes: Array) -> None:
        """Try vectors (n, d) at codes (g, r, k / d) in the matrix form."""
        rounded = book.astype(compute_dtype(self._dtype)).astype(self._dtype)
        values = self._form.unpack(rounded[codes].reshape(*codes.shape[:2], -1))
        distinct = np.unique(book.astype(compute_dtype(self._dtype)), axis=0).astype(self._dtype)
        self._add(replace(encoding, codebook=distinct), values)

    def _add(self, encoding: Encoding, values: Array) -> None:
        error = self._error.relative(self._form.pack(values))
        self._tried.append(Rounded(values, encoding, ALGORITHM, error, True))

    def best(self) -> Rounded:
        """The one of least error, the first of equal ones; infinite where the codes of none are found again."""
        for each in sorted(self._tried, key=lambda tried: tried.error):
            if each.encoding.encode(each.values) is not None:
                return each
        return replace(self._tried[0], error=np.inf)


def _runs_along_columns(form: MatrixForm, encoding: VectorEncoding, shape: tuple[int, ...]) -> bool:
    """Whether vectors along the encoding's axis are runs of neighbouring columns of the matrix form."""
    width = encoding.codebook.shape[1]
    places = np.arange(np.prod(shape)).reshape(shape)
    along = np.moveaxis(places, encoding.axis, -1).reshape(-1, width)
    place_in_vectors = np.empty(places.size, np.int64)
    place_in_vectors[along.ravel()] = np.arange(places.size)
    packed = form.pack(places)
    if packed.shape[2] % width:
        return False
    runs = place_in_vectors[packed.reshape(-1, width)]
    return bool((runs[:, 0] % width == 0).all() and (np.diff(runs, axis=1) == 1).all())
