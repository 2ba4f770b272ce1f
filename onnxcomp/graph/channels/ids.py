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
        self._parents = np.zeros(1, np.int64)
        self._reasons: dict[int, str] = {0: "its channels are not followed"}

    @property
    def count(self) -> int:
        """One more than the largest number given out."""
        return len(self._parents)

    def fresh(self, shape: Sequence[int]) -> Numbers:
        """New channel numbers, each in a set of its own."""
        numbers = np.arange(self.count, self.count + math.prod(shape), dtype=np.int64)
        self._parents = np.concatenate([self._parents, numbers])
        return numbers.reshape(shape)

    def roots(self, numbers: Numbers) -> Numbers:
        """For each number the one that stands for its set."""
        found = self._parents[numbers]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                return found
            found = above

    def join(self, first: Numbers, second: Numbers, reason: str) -> None:
        """Put pairs of channels in one set; both arrays are broadcast. reason: why those joined with 0 are fixed."""
        pairs = np.stack(np.broadcast_arrays(self.roots(first), self.roots(second)))
        for one, other in np.unique(pairs.reshape(2, -1), axis=1).T.tolist():
            if one == 0 or other == 0:
                self.fix(np.asarray(one or other), reason)
            else:
                self._join_pair(one, other)

    def _join_pair(self, one: int, other: int) -> None:
        one, other = (int(each) for each in self.roots(np.array([one, other])))
        if one == other:
            return
        self._parents[other] = one
        reason = self._reasons.pop(other, None)
        if reason is not None:
            self._reasons.setdefault(one, reason)

    def fix(self, numbers: Numbers, reason: str) -> None:
        """State that these channels must stay as they are; the first reason counts."""
        for root in np.unique(self.roots(numbers)).tolist():
            self._reasons.setdefault(root, reason)

    def is_fixed(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Which of the channels must stay as they are."""
        return np.isin(self.roots(numbers), np.fromiter(self._reasons, np.int64))

    def reason(self, numbers: Numbers) -> str:
        """Why the first fixed one of these channels is fixed; "" where none is."""
        found = (self._reasons.get(root) for root in self.roots(numbers).reshape(-1).tolist())
        return next((each for each in found if each is not None), "")


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
