"""A weight as symbols: codes of few levels, a book of what they stand for, and what is done to the whole.

    weight = finish(book[codes])

The symbols come from the attached Encoding's term where its decode still equals the values bit for bit, or from
the values themselves where few of them are distinct.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from onnxcomp.numerics.encodings.code_path import SHORT_BYTES, CodePath, code_path, cut, narrowed
from onnxcomp.numerics.encodings.distinct_values import bits_of_values, codes_of, counts_of, distinct
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.encodings.expression import Array, Shape, Term, counting, evaluate, literal
from onnxcomp.numerics.encodings.table_decoder import Memo

MAX_DISTINCT = 2**16
BYTE_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Symbols:
    """Codes and their meaning.

    name: what the encoding is called in a receipt.
    codes: gives (count,) uint8 or uint16, each below len(counts) and each level in use where ``book`` is stored.
    counts: (levels,) how often each code occurs.
    shape: the codes' own shape; book: (at least levels, ...); book_values: (levels, ...) the same as an array.
    finish: (at least count, ...) looked-up rows, in any shape that reads so -> the weight.
    scaled: the finish changes values, not only the shape.
    numbers: where the codes are computed with, (shape) codes - offset in the ``compute`` type -> the weight.
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


def encoded_symbols(read: Callable[[], Array], encoding: Encoding, memo: Memo) -> Symbols | None:
    """The symbols of an attached encoding, or None where it does not make the values (or has no codes)."""
    if encoding.values_are_free:
        return None
    codes = memo(lambda: _encode(read(), encoding))
    if codes().size == 0:
        return None
    counts = counts_of(codes(), int(codes().max()) + 1)
    kept, trimmed = encoding.trimmed(np.flatnonzero(counts))
    path = code_path(trimmed, read().shape)
    levels = evaluate(path.book(literal(np.arange(kept.size))))
    symbols = Symbols(
        trimmed.label, _renumbered(codes, kept, memo), counts[kept], path.codes_shape, _book(path, levels),
        lambda: levels, path.finish, path.changes_values,
    )  # fmt: skip
    return _with_numbers(symbols, path) if path.is_computed else symbols


def _encode(values: Array, encoding: Encoding) -> Array:
    found = encoding.encode(values)
    return np.empty(0, np.uint8) if found is None else found.reshape(-1)


def _renumbered(codes: Callable[[], Array], kept: Array, memo: Memo) -> Callable[[], Array]:
    """The codes counted among the kept ones only."""
    first, last = int(kept[0]), int(kept[-1])
    kind = np.dtype(np.uint8 if kept.size <= 256 else np.uint16)
    if last + 1 == kept.size:
        return codes
    if last - first + 1 == kept.size:
        return memo(lambda: (codes() - codes().dtype.type(first)).astype(kind, copy=False))
    table = np.zeros(last + 1, kind)
    table[kept] = np.arange(kept.size)
    return memo(lambda: table[codes()])


def _book(path: CodePath, levels: Array) -> Term:
    """The book of these levels: computed from 0, 1, ... 255 where that takes less than to store it."""
    if path.is_computed and len(levels) <= BYTE_LEVELS and levels.nbytes > SHORT_BYTES:
        return path.book(counting(BYTE_LEVELS))
    return literal(levels) if path.is_scalar else narrowed(levels)


def _with_numbers(symbols: Symbols, path: CodePath) -> Symbols:
    steps, offset = path.numbering()
    numbers = partial(path.finish, start=steps)
    return replace(symbols, numbers=numbers, offset=offset, compute=path.steps[steps - 1].node.dtype)


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
    finish = partial(cut, shape=values.shape)
    return Symbols("distinct values", codes, counts, values.shape, literal(levels), lambda: levels, finish)
