"""A weight as symbols: codes of few levels, a book of what they stand for, and what is done to the whole.

    weight = finish(book[codes])

The symbols come from the attached Encoding where its decode still equals the values bit for bit, or from
the values themselves where few of them are distinct.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcomp.numerics.encodings.distinct_values import bits_of_values, codes_of, counts_of, distinct
from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    RescaledEncoding,
    ScaledEncoding,
    VectorEncoding,
    compute_dtype,
    float_dtype,
    split_shape,
)  # fmt: skip
from onnxcomp.numerics.encodings.expression import (
    Array,
    Shape,
    Term,
    binary,
    cast,
    counting,
    first,
    flatten,
    literal,
    reshape,
    transpose,
)  # fmt: skip
from onnxcomp.numerics.encodings.table_decoder import Memo

MAX_DISTINCT = 2**16
COMPUTED_BOOK_BYTES = 100  # what it takes to compute a grid's book instead of storing it


@dataclass(frozen=True, eq=False)
class Symbols:
    """Codes and their meaning.

    name: what the encoding is called in a receipt.
    codes: gives (count,) uint8 or uint16, each below len(counts) and each level in use where ``book`` is stored.
    counts: (levels,) how often each code occurs.
    shape: the codes' own shape; book: (at least levels, ...); book_values: (levels, ...) the same as an array.
    finish: (at least count, ...) looked-up rows, in any shape that reads so -> the weight.
    scaled: the finish changes values, not only the shape.
    numbers: for a grid, (shape) codes - offset in the ``compute`` type -> the weight.
    """

    name: str
    codes: Callable[[], Array]
    counts: Array
    shape: Shape
    book: Term
    book_values: Callable[[], Array]
    finish: Callable[[Term], Term]
    scaled: bool = False
    numbers: Callable[[Term], Term] | None = None
    offset: int = 0
    compute: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    @property
    def levels(self) -> int:
        return int(self.counts.size)

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def is_scalar(self) -> bool:
        """Whether a code stands for one value, not for a row of them."""
        return len(self.book.shape) == 1

    @property
    def is_plain(self) -> bool:
        """Whether the book holds the weight's own values: looking for distinct values finds nothing better."""
        return self.is_scalar and self.scaled is False


def cut(term: Term, shape: Shape) -> Term:
    """The first elements of a padded term, in the shape."""
    size = int(np.prod(shape, dtype=np.int64))
    return reshape(term if term.size == size else first(flatten(term), size), shape)


def encoded_symbols(read: Callable[[], Array], encoding: Encoding, memo: Memo) -> Symbols | None:
    """The symbols of an attached encoding, or None where it does not make the values (or is only a mask)."""
    codes = memo(lambda: _encode(read(), encoding))
    found = codes()
    if found.size == 0:
        return None
    shape = read().shape
    if isinstance(encoding, RescaledEncoding):
        return _rescaled(_grid_symbols(codes, encoding.inner, shape, memo), encoding)
    if isinstance(encoding, GridEncoding):
        return _grid_symbols(codes, encoding, shape, memo)
    if isinstance(encoding, CodebookEncoding):
        return _book_symbols(codes, encoding, shape, memo)
    if isinstance(encoding, VectorEncoding):
        return _vector_symbols(codes, encoding, shape, memo)
    return None


def _encode(values: Array, encoding: Encoding) -> Array:
    found = encoding.encode(values)
    return np.empty(0, np.uint8) if found is None else found.reshape(-1)


# --- scalar books --------------------------------------------------------------------------------------


def _grid_symbols(codes: Callable[[], Array], encoding: GridEncoding, shape: Shape, memo: Memo) -> Symbols:
    compute = compute_dtype(float_dtype(encoding.dtype))
    low, high = int(codes().min()), int(codes().max())
    shifted = memo(lambda: codes() - np.uint8(low))
    points = encoding.zero_point.astype(np.int64) - low
    same_point = bool((points == points.flat[0]).all())
    offset = int(points.flat[0]) if same_point else 0
    numbers = (np.arange(high - low + 1) - offset).astype(compute)
    finish = _scaling(encoding, shape, None if same_point else points)
    levels, scale = numbers, None
    if same_point and (encoding.scale is None or encoding.scale.size == 1):
        scale = np.ones((), compute) if encoding.scale is None else encoding.scale.reshape(()).astype(compute)
        levels = (numbers * scale).astype(float_dtype(encoding.dtype))
    counts = counts_of(shifted(), high - low + 1)
    split = split_shape(shape, encoding.axis, encoding.block_size)
    return Symbols(
        "grid", shifted, counts, split, _grid_book(levels, compute, offset, scale), lambda: levels,
        finish if scale is None else _reshaping(shape), scale is None, finish, offset, compute,
    )  # fmt: skip


def _rescaled(symbols: Symbols, encoding: RescaledEncoding) -> Symbols:
    """A grid's symbols whose finish multiplies with one more factor."""

    def after(finish: Callable[[Term], Term]) -> Callable[[Term], Term]:
        def finished(rows: Term) -> Term:
            values = finish(rows)
            scaled = binary("Mul", values, narrowed(encoding.factor.astype(values.dtype)))
            return cast(scaled, float_dtype(encoding.dtype))

        return finished

    assert symbols.numbers is not None
    return replace(symbols, finish=after(symbols.finish), numbers=after(symbols.numbers), scaled=True)


def _grid_book(levels: Array, compute: np.dtype[Any], offset: int, scale: Array | None) -> Term:
    """The book of a grid: stored where it is short, else computed from 0, 1, ... 255."""
    if levels.nbytes <= COMPUTED_BOOK_BYTES:
        return literal(levels)
    book = cast(counting(256), compute)
    if offset:
        book = binary("Sub", book, literal(offset, compute))
    if scale is not None:
        book = binary("Mul", book, literal(scale))
    return cast(book, levels.dtype)


def _book_symbols(codes: Callable[[], Array], encoding: CodebookEncoding, shape: Shape, memo: Memo) -> Symbols:
    used, numbered, counts = _renumbered(codes, memo)
    levels = encoding.codebook[used]
    finish, scaled = _scaling(encoding, shape, None), True
    if encoding.scale is None or encoding.scale.size == 1:
        if encoding.scale is not None:
            levels = levels * encoding.scale.reshape(()).astype(levels.dtype)
        levels, finish, scaled = levels.astype(float_dtype(encoding.dtype)), _reshaping(shape), False
    split = split_shape(shape, encoding.axis, encoding.block_size)
    return Symbols("codebook", numbered, counts, split, literal(levels), lambda: levels, finish, scaled)


def _renumbered(codes: Callable[[], Array], memo: Memo) -> tuple[Array, Callable[[], Array], Array]:
    """The levels in use, the codes counted among these only, and how often each occurs."""
    counts = counts_of(codes(), int(codes().max()) + 1)
    used = np.flatnonzero(counts)
    if used.size == counts.size:
        return used, codes, counts
    table = np.zeros(counts.size, np.uint8 if used.size <= 256 else np.uint16)
    table[used] = np.arange(used.size)
    return used, memo(lambda: table[codes()]), counts[used]


def _reshaping(shape: Shape) -> Callable[[Term], Term]:
    return lambda rows: cut(rows, shape)


def _scaling(encoding: ScaledEncoding, shape: Shape, points: Array | None) -> Callable[[Term], Term]:
    """((numbers - points) * scale) in the compute type, then in the weight's own type and shape."""
    split = split_shape(shape, encoding.axis, encoding.block_size)

    def finish(rows: Term) -> Term:
        values = cut(rows, split)
        if points is not None:
            values = binary("Sub", values, cast(literal(points.astype(_narrowest(points))), values.dtype))
        if encoding.scale is not None:
            values = binary("Mul", values, narrowed(encoding.scale.astype(values.dtype)))
        return reshape(cast(values, float_dtype(encoding.dtype)), shape)

    return finish


def _narrowest(integers: Array) -> np.dtype[Any]:
    low, high = integers.min(initial=0), integers.max(initial=0)
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    return next(
        (np.dtype(kind) for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max),
        np.dtype(np.int64),
    )


def narrowed(values: Array) -> Term:
    """The values, stored as float16 where nothing is lost and the cast is paid for."""
    if values.dtype.kind == "f" and values.nbytes > COMPUTED_BOOK_BYTES:
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if half.astype(values.dtype).tobytes() == values.tobytes():
            return cast(literal(half), values.dtype)
    return literal(values)


# --- vectors -------------------------------------------------------------------------------------------


def _vector_symbols(codes: Callable[[], Array], encoding: VectorEncoding, shape: Shape, memo: Memo) -> Symbols:
    used, numbered, counts = _renumbered(codes, memo)
    rows = encoding.codebook[used]
    axis, width = encoding.axis, rows.shape[1]
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    order = (*range(axis), len(shape) - 1, *range(axis, len(shape) - 1))

    def finish(found: Term) -> Term:
        return transpose(cut(found, moved), order)

    split = (*moved[:-1], moved[-1] // width)
    return Symbols(f"vectors of {width}", numbered, counts, split, narrowed(rows), lambda: rows, finish)


# --- from the values -----------------------------------------------------------------------------------


def distinct_symbols(read: Callable[[], Array], memo: Memo, most: int = MAX_DISTINCT) -> Symbols | None:
    """The distinct values as a codebook, or None where there are more than ``most``, or too many to gain."""
    values = read()
    book = distinct(bits_of_values(values), min(most, max(2, values.size // 4)))
    if book is None:
        return None
    codes = memo(lambda: codes_of(bits_of_values(read()), book))
    levels = book.view(values.dtype)
    counts = counts_of(codes(), book.size)
    return Symbols(
        "distinct values", codes, counts, values.shape, literal(levels), lambda: levels, _reshaping(values.shape)
    )
