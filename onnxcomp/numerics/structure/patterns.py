"""Which values of matrices stay, given what each is worth: a share of all, a share of each row, or n of each m.

Each pattern is the projection onto what it allows: of all choices that it allows, the one of greatest worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Pattern(Protocol):
    """A rule of which values may stay. width: of the runs of columns that it cannot be applied to in parts."""

    @property
    def width(self) -> int: ...

    def kept(self, worth: Array) -> Array:
        """Where values stay (g, r, k) bool, by what they are worth (g, r, k); of equals the later ones stay."""


@dataclass(frozen=True)
class ShareOfAll:
    """All but the ``sparsity`` least of the matrices together, rounded to the nearest count."""

    sparsity: float
    width: ClassVar[int] = 1

    def kept(self, worth: Array) -> Array:
        count = round(self.sparsity * worth.size)
        return ~_least(worth.reshape(1, -1), count).reshape(worth.shape)


@dataclass(frozen=True)
class ShareOfRows:
    """All but the ``sparsity`` least of each row, as Wanda compares them."""

    sparsity: float
    width: ClassVar[int] = 1

    def kept(self, worth: Array) -> Array:
        count = round(self.sparsity * worth.shape[2])
        return ~_least(worth.reshape(-1, worth.shape[2]), count).reshape(worth.shape)


@dataclass(frozen=True)
class AtLeast:
    """Whatever is worth the threshold."""

    threshold: float
    width: ClassVar[int] = 1

    def kept(self, worth: Array) -> Array:
        return worth >= self.threshold


@dataclass(frozen=True)
class OfEach:
    """At most ``n`` of each ``m`` neighbours along the inputs; the last run may be shorter.

    inner: columns that belong to one input, one after another (the places under a convolution's kernel): neighbours are
    the values of ``m`` inputs at the same place.
    """

    n: int
    m: int
    inner: int = 1

    @property
    def width(self) -> int:
        return self.m * self.inner

    def kept(self, worth: Array) -> Array:
        groups, rows, columns = worth.shape
        inputs = columns // self.inner
        runs = -(-inputs // self.m)
        padded = np.full((groups, rows, runs * self.m, self.inner), -1.0, worth.dtype)
        padded[:, :, :inputs] = worth.reshape(groups, rows, inputs, self.inner)
        along = padded.reshape(groups, rows, runs, self.m, self.inner).swapaxes(3, 4)
        kept = ~_least(along.reshape(-1, self.m), self.m - self.n).reshape(along.shape)
        flat = kept.swapaxes(3, 4).reshape(groups, rows, runs * self.m, self.inner)
        return np.ascontiguousarray(flat[:, :, :inputs]).reshape(worth.shape)


def _least(worth: Array, count: int) -> Array:
    """The ``count`` least of each row (n, k); of equals the first ones."""
    if count <= 0:
        return np.zeros(worth.shape, bool)
    if count >= worth.shape[1]:
        return np.ones(worth.shape, bool)
    edge = np.partition(worth, count - 1, axis=1)[:, count - 1 : count]
    below, equal = worth < edge, worth == edge
    wanted = count - below.sum(axis=1, keepdims=True)
    is_tied = (equal.sum(axis=1, keepdims=True) > wanted)[:, 0]
    if is_tied.any():
        equal[is_tied] &= np.cumsum(equal[is_tied], axis=1) <= wanted[is_tied]
    least: Array = below | equal
    return least
