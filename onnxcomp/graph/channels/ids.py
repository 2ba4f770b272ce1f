"""Numbers for channels, and which of them have to be scaled, or removed, as one.

A tensor's channels are an array of whole numbers that is broadcast against the tensor from its last axis on:

    (N, C, H, W) of a convolution   (C, 1, 1)          (N, L, C) of a matrix product   (C,)
    heads apart, (N, H, L, D)       (H, 1, D)          one number for all elements     ()

Number 0 stands for all that cannot be scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
NONE: Numbers = np.zeros((), np.int64)


class ChannelSets:
    """Disjoint sets of channel numbers; a set may be fixed, with the reason why."""

    def __init__(self) -> None:
        self._count = 1
        self._parents = np.zeros(1024, np.int64)  # the root of a set stands for it; longer than the count
        self._reason_at = np.zeros(1024, np.int64)  # for each root the first of the reasons, 0 where it is free
        self._reasons = ["", "its channels are not followed"]
        self._reason_at[0] = 1

    @property
    def count(self) -> int:
        """One more than the largest number given out."""
        return self._count

    def fresh(self, shape: Sequence[int]) -> Numbers:
        """New channel numbers, each in a set of its own."""
        first, last = self._count, self._count + math.prod(shape)
        if last > len(self._parents):
            room = np.zeros(max(last, 2 * len(self._parents)) - len(self._parents), np.int64)
            self._parents = np.concatenate([self._parents, room])
            self._reason_at = np.concatenate([self._reason_at, room])
        numbers = np.arange(first, last, dtype=np.int64)
        self._parents[first:last], self._count = numbers, last
        return numbers.reshape(shape)

    def roots(self, numbers: Numbers) -> Numbers:
        """For each number the one that stands for its set."""
        found = self._parents[numbers]
        above = self._parents[found]
        while not np.array_equal(above, found):
            found, above = above, self._parents[above]
            self._parents[numbers] = found
        return found

    def free_roots(self, numbers: Numbers) -> Numbers:
        """The same, with 0 for all that have to stay."""
        roots = self.roots(numbers)
        return np.where(self._reason_at[roots] > 0, 0, roots)

    def join(self, first: Numbers, second: Numbers, reason: str) -> None:
        """Put pairs of channels in one set; both arrays are broadcast. reason: why those joined with 0 are fixed."""
        one, other = (each.reshape(-1) for each in np.broadcast_arrays(self.roots(first), self.roots(second)))
        outside = (one == 0) | (other == 0)
        if outside.any():
            self.fix(np.maximum(one, other)[outside], reason)
        differ = ~outside & (one != other)
        if differ.any():
            self._unite(one[differ], other[differ])

    def _unite(self, one: Numbers, other: Numbers) -> None:
        """Put pairs of roots in one set."""
        names, places = np.unique(np.concatenate([one, other]), return_inverse=True)
        parts = connected(places[: one.size], places[one.size :], names.size)
        _, first = np.unique(parts, return_index=True)  # names are sorted: the least stands for all
        reasons, never = self._reason_at[names], len(self._reasons)
        earliest = np.full(first.size, never)
        np.minimum.at(earliest, parts, np.where(reasons > 0, reasons, never))
        self._parents[names] = names[first[parts]]
        self._reason_at[names[first]] = np.where(earliest < never, earliest, 0)

    def fix(self, numbers: Numbers, reason: str) -> None:
        """State that these channels must stay as they are; the first reason counts."""
        roots = self.roots(numbers).reshape(-1)
        free = roots[self._reason_at[roots] == 0]
        if free.size:
            self._reason_at[free] = len(self._reasons)
            self._reasons.append(reason)

    def is_fixed(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Which of the channels must stay as they are."""
        fixed: NDArray[np.bool_] = self._reason_at[self.roots(numbers)] > 0
        return fixed

    def reason(self, numbers: Numbers) -> str:
        """Why the first fixed one of these channels is fixed; "" where none is."""
        found = self._reason_at[self.roots(numbers)].reshape(-1)
        return self._reasons[found[np.flatnonzero(found)[0]]] if found.any() else ""


def connected(one: Numbers, other: Numbers, count: int) -> Numbers:
    """For each of so many things the number of the part that it is in, from 0, after these pairs were connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(one.size, np.bool_), (one, other)), shape=(count, count))
    parts: Numbers = connected_components(edges, directed=False)[1]
    return parts


def trimmed(numbers: Numbers) -> Numbers:
    """Without the leading axes of one element, which broadcasting adds again."""
    leading = next((i for i, size in enumerate(numbers.shape) if size != 1), numbers.ndim)
    return numbers.reshape(numbers.shape[leading:])


def padded(numbers: Numbers, rank: int) -> Numbers:
    """With leading axes of one element up to the rank of the tensor."""
    return numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)


def along(numbers: Numbers, axis: int, size: int) -> Numbers | None:
    """The (size,) channels along one axis, counted from the end (-1, -2, ..); None where another axis has some."""
    spread = padded(numbers, max(numbers.ndim, -axis))
    moved = np.moveaxis(spread, axis, -1)
    if math.prod(moved.shape[:-1]) != 1 or moved.shape[-1] not in (1, size):
        return None
    return np.broadcast_to(moved.reshape(-1), (size,))


def reformed(numbers: Numbers, old: Sequence[int | None], new: Sequence[int | None]) -> Numbers | None:
    """The channels after the elements got another shape in the same order; None where it cannot be told.

    A block of trailing axes with channels has to become a block of trailing axes of as many elements.
    """
    if not numbers.ndim:
        return numbers
    for count in range(numbers.ndim, len(old) + 1):
        block = old[len(old) - count :]
        if any(size is None for size in block):
            return None
        sizes = [int(size or 0) for size in block]
        tail = _tail(new, math.prod(sizes))
        if tail is not None:
            return condensed(np.broadcast_to(numbers, sizes).reshape(tail))
    return None


def _tail(shape: Sequence[int | None], size: int) -> list[int] | None:
    """The trailing axes of a shape that hold so many elements."""
    for start in range(len(shape), -1, -1):
        tail = shape[start:]
        if any(each is None for each in tail):
            return None
        sizes = [int(each or 0) for each in tail]
        if math.prod(sizes) == size:
            return sizes
    return None


def condensed(numbers: Numbers) -> Numbers:
    """Collapse axes along which the ids are constant to size 1."""
    for axis, size in enumerate(numbers.shape):
        first: Any = numbers.take([0], axis=axis) if size else numbers
        if size > 1 and np.array_equal(np.broadcast_to(first, numbers.shape), numbers):
            numbers = first
    return trimmed(numbers)
