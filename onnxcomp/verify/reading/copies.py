"""Elements of an output that are copies of an input: a cache that is passed on with a new row.

    present = [past, new rows]       -> only the new rows are compared
    state'  = [state[1:], new row]   -> the same
    y = x                            -> nothing is

They carry no error and no information; counted in, they dilute both by the length of the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.runtime import Value

Array = NDArray[Any]
MOST_SHIFTS = 4096


@dataclass(frozen=True)
class Copy:
    """axis: along which the new rows lie. rows: how many there are, None: as many as the output is longer than the
    input. at_end: whether they come last; the whole output is a copy where ``rows`` is 0."""

    source: str
    axis: int
    rows: int | None
    at_end: bool = True

    def fresh(self, array: Array, source_shape: tuple[int, ...]) -> Array:
        """The part of the output that is no copy of an input of this shape."""
        edge = self._edge(array, source_shape)
        return self._part(array, slice(edge, None) if self.at_end else slice(0, edge))

    def kept(self, array: Array, source_shape: tuple[int, ...]) -> Array:
        """The part that is one."""
        edge = self._edge(array, source_shape)
        return self._part(array, slice(0, edge) if self.at_end else slice(edge, None))

    def _edge(self, array: Array, source_shape: tuple[int, ...]) -> int:
        size = array.shape[self.axis]
        rows = size - source_shape[self.axis] if self.rows is None else self.rows
        return size - rows if self.at_end else rows

    def _part(self, array: Array, chosen: slice) -> Array:
        return array[(*(slice(None),) * self.axis, chosen)]


def find_copies(batches: Iterable[tuple[Mapping[str, Value], Mapping[str, Array]]]) -> dict[str, Copy]:
    """For each output that is in part a copy of an input in all batches of (feeds, outputs), how.

    A copy shows by bits, and by elements that differ among themselves in at least one batch: states that are zero, or
    caches that are empty yet, tell nothing.
    """
    found: dict[str, list[Copy]] | None = None
    told: set[tuple[str, Copy]] = set()
    for feeds, outputs in batches:
        arrays = {name: each for name, each in feeds.items() if isinstance(each, np.ndarray)}
        if found is None:
            found = {name: list(_candidates(arrays, value)) for name, value in outputs.items()}
        for name, copies in found.items():
            kept = {each: _kept(each, arrays.get(each.source), outputs.get(name)) for each in copies}
            copies[:] = [each for each in copies if kept[each] is not None]
            told.update((name, each) for each in copies if _differ(kept[each]))
        if not any(found.values()):
            return {}
    shown = {name: [each for each in copies if (name, each) in told] for name, copies in (found or {}).items()}
    return {name: copies[0] for name, copies in shown.items() if copies}


def _candidates(feeds: Mapping[str, Array], output: Array) -> Iterator[Copy]:
    for name, value in feeds.items():
        if value.dtype != output.dtype or value.ndim != output.ndim or not value.ndim or not output.size:
            continue
        differing = [axis for axis in range(value.ndim) if value.shape[axis] != output.shape[axis]]
        if not differing:
            yield Copy(name, 0, 0)
            for axis, size in enumerate(value.shape):
                moved = (rows for rows in range(1, min(size, MOST_SHIFTS)) if _first(value, output, axis, rows))
                yield from (Copy(name, axis, rows) for rows in moved)
        elif len(differing) == 1 and output.shape[differing[0]] > value.shape[differing[0]]:
            yield Copy(name, differing[0], None)
            yield Copy(name, differing[0], None, at_end=False)


def _first(value: Array, output: Array, axis: int, rows: int) -> bool:
    """Whether the output may be the value moved on by so many rows: looked at in its first kept row only."""
    left, right = np.take(value, [rows], axis=axis), np.take(output, [0], axis=axis)
    return bool(np.array_equal(left, right)) and left.size > 0


def _kept(copy: Copy, value: Array | None, output: Array | None) -> Array | None:
    """What both have in common, where that is the same to the bit; else None."""
    if value is None or output is None or value.ndim != output.ndim:
        return None
    rows = output.shape[copy.axis] - value.shape[copy.axis] if copy.rows is None else copy.rows
    kept = output.shape[copy.axis] - rows
    if rows < 0 or kept < 0 or (kept == 0 and value.size):
        return None
    before = (slice(None),) * copy.axis
    old = value[(*before, slice(value.shape[copy.axis] - kept, None))] if copy.at_end else value
    same = output[(*before, slice(0, kept) if copy.at_end else slice(rows, None))]
    return old if old.shape == same.shape and np.array_equal(old, same) else None


def _differ(kept: Array | None) -> bool:
    """Whether there are elements that differ from each other."""
    return kept is not None and bool(kept.size) and bool((kept != kept.flat[0]).any())
