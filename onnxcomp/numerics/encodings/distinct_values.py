"""Which values an array holds, and which of them each element is, by their bits.

Few values are found by a table: a multiplication and a shift send each of them to a slot of its own
(the multiplier is searched for), so that an element costs two lookups instead of a binary search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 2**20
SAMPLE = 2**14
TABLE_BITS = 22  # of the largest table
TABLED = 2**11  # values up to this number are found by a table
TRIES = 64
WORD = np.dtype(np.uint32)


def bits_of_values(values: Array) -> Array:
    """(n,) unsigned integers: the bits of the elements, so that -0.0 and every NaN are values of their own."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays agree in shape, dtype and every bit (-0.0 differs from 0.0, NaN equals itself)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    kind = np.dtype(f"u{left.dtype.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(left).view(kind), np.ascontiguousarray(right).view(kind)))


def distinct(flat: Array, limit: int) -> Array | None:
    """The sorted distinct elements of (n,) unsigned integers, None where there are more than ``limit``.

    An array of which a sample is mostly new values is given up without a look at the rest.
    """
    sample = _sample_of(flat)
    book: Array = np.unique(sample)
    if book.size > limit or book.size > max(300, sample.size // 2):
        return None
    finder = Finder(book)
    for part in _chunks(flat):
        missing = part[book[finder.places(part)] != part]
        if missing.size:
            book = np.union1d(book, missing)
            if book.size > limit:
                return None
            finder = Finder(book)
    return book


def _sample_of(flat: Array) -> Array:
    """About ``SAMPLE`` elements, one of each stretch, always the same: at even steps they would be of few columns."""
    step = flat.size // SAMPLE
    if step < 2:
        return flat
    starts = np.arange(0, flat.size - step + 1, step)
    sample: Array = flat[starts + np.random.default_rng(0).integers(0, step, starts.size)]
    return sample


def codes_of(flat: Array, book: Array) -> Array:
    """(n,) uint8 or uint16: the place of each element in the book that holds them all."""
    finder = Finder(book)
    codes = np.empty(flat.size, np.uint8 if book.size <= 256 else np.uint16)
    for start in range(0, flat.size, CHUNK):
        codes[start : start + CHUNK] = finder.places(flat[start : start + CHUNK])
    return codes


def counts_of(codes: Array, levels: int) -> Array:
    """(levels,) how often each code occurs, without the wide copy that ``bincount`` makes of small integers."""
    counts = np.zeros(levels, np.int64)
    for part in _chunks(codes.reshape(-1)):
        counts += np.bincount(part, minlength=levels)
    return counts


class Finder:
    """Finds the places of elements in a sorted book."""

    def __init__(self, book: Array) -> None:
        self.book = book
        self._table: Array | None = None
        if book.size <= TABLED:
            self._make_table()

    def places(self, elements: Array) -> Array:
        """The place of each element; any place for one that the book does not have."""
        if self._table is None:
            return np.minimum(np.searchsorted(self.book, elements), self.book.size - 1)
        found: Array = self._table[self._slots(elements)]
        return found

    def _slots(self, elements: Array) -> Array:
        words = elements.astype(np.uint64) if self._wide else elements.astype(WORD)
        words *= words.dtype.type(self._multiplier)
        words >>= words.dtype.type(words.dtype.itemsize * 8 - self._bits)
        return words

    def _make_table(self) -> None:
        """Search for a multiplier that gives every value of the book its own slot; keep to searching if none does."""
        self._wide = self.book.dtype.itemsize > WORD.itemsize
        self._bits = min(TABLE_BITS, max(8, 2 * int(self.book.size).bit_length()))
        for multiplier in np.random.default_rng(0).integers(1, 2**63, TRIES, dtype=np.uint64):
            self._multiplier = int(multiplier | 1) if self._wide else int(multiplier | 1) & 0xFFFFFFFF
            slots = self._slots(self.book)
            if np.unique(slots).size == self.book.size:
                self._table = np.zeros(2**self._bits, np.uint16)
                self._table[slots] = np.arange(self.book.size)
                return


def _chunks(flat: Array) -> Iterator[Array]:
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
