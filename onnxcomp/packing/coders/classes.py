"""Symbols of an ordered alphabet as a class, which is coded in context, and a place in it, which is not.

    symbol  <->  sign and distance from the center  <->  class c in -m .. m, place

Classes of nearer symbols are narrower: each holds about as much as all beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_CLASSES = 8  # on one side
SHARE = 0.3  # of what is not in nearer classes, at least, that a class holds
ZERO_SHARE = 0.25  # of all symbols, at least, where the center has a class of its own
MAGNITUDE = 4  # of one step of distance


@dataclass(frozen=True)
class ClassScheme:
    """How the symbols 0 to levels - 1 are classes.

    center: the symbol of class 0 where ``has_zero``; else the first one of those on the positive side. widths: of the
    classes 1, 2, ... on both sides; the last one takes all that is further out.
    """

    levels: int
    center: int
    has_zero: bool
    widths: tuple[int, ...]

    @cached_property
    def signed_distances(self) -> Array:
        """(levels,) int64 distances from the center: 0 for the center alone, where it is a class."""
        found = np.arange(self.levels, dtype=np.int64) - self.center
        return found if self.has_zero else np.where(found >= 0, found + 1, found)

    @cached_property
    def starts(self) -> Array:
        """(m + 1,) the distance from which each class 1 to m is, after a 0 for class 0."""
        return np.cumsum([0, 1, *self.widths[:-1]])

    @cached_property
    def classes(self) -> Array:
        """(levels,) int8 signed classes."""
        distances = self.signed_distances
        sizes = np.searchsorted(self.starts, np.abs(distances), side="right") - 1
        return np.asarray(np.sign(distances) * sizes, np.int8)

    @cached_property
    def places(self) -> Array:
        """(levels,) the symbols' places in their classes."""
        return np.asarray(np.abs(self.signed_distances) - self.starts[np.abs(self.classes)])

    @cached_property
    def room(self) -> Array:
        """(m + 1,) places in the classes, by size; those of the larger side."""
        found = np.ones(len(self.starts), np.int64)
        np.maximum.at(found, np.abs(self.classes), self.places + 1)
        return found

    @cached_property
    def magnitudes(self) -> Array:
        """(m + 1,) int64: about four times the distance of each class."""
        widths = np.array([1, *self.widths[:-1], *self.widths[-2:-1]] if len(self.widths) > 1 else [1, 1])
        return np.asarray(MAGNITUDE * self.starts + (MAGNITUDE // 2) * (widths[: len(self.starts)] - 1))

    def symbols(self, classes: Array, places: Array) -> Array:
        """The symbols of (n,) classes and places. Raises IndexError where there is none."""
        distances = np.sign(classes).astype(np.int64) * (self.starts[np.abs(classes)] + places)
        found = distances + self.center - (0 if self.has_zero else (distances > 0))
        if found.size and not (found.min() >= 0 and found.max() < self.levels):
            raise IndexError("a place outside its class")
        return np.asarray(found, np.int32)

    @property
    def farthest(self) -> tuple[int, int]:
        """The farthest class on the negative and on the positive side; 0 where there is none."""
        return max(0, -int(self.classes.min())), max(0, int(self.classes.max()))


def scheme_of(counts: Array, *, share: float = SHARE) -> ClassScheme:
    """Classes for (levels,) counts of ordered symbols."""
    total = int(counts.sum())
    peak = int(counts.argmax())
    has_zero = bool(counts[peak] >= ZERO_SHARE * total)
    center = peak if has_zero else int(np.searchsorted(np.cumsum(counts), total / 2))
    bare = ClassScheme(len(counts), center, has_zero, (1,))
    distances = np.abs(bare.signed_distances)
    held = np.bincount(distances, weights=counts)[1:]
    widths: list[int] = []
    start = 0
    while start < held.size and len(widths) < MOST_CLASSES:
        rest = np.cumsum(held[start:])
        enough = int(np.searchsorted(rest, share * rest[-1])) + 1
        is_last = len(widths) == MOST_CLASSES - 1 or start + enough >= held.size
        widths.append(held.size - start if is_last else enough)
        start += widths[-1]
    return ClassScheme(len(counts), center, has_zero, tuple(widths) or (1,))
