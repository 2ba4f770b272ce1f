"""The formulas that undo ``packing``: planes of bytes -> indices -> rows of a table over all indices.

    index = plane0 + table4[plane1] + ...        values = (book[digits])[index]

``book[digits]`` is a table of levels^g rows with the g values of each index, so that one lookup gives g
values and no array of codes is ever made. The integer tables are the same for every weight of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from onnxcomp.numerics.encodings.expression import (
    Array,
    Literal,
    Shape,
    Term,
    binary,
    cast,
    counting,
    flatten,
    gather,
    literal,
    reshape,
)  # fmt: skip
from onnxcomp.numerics.encodings.packing import BitLayout

T = TypeVar("T")

INDEX = np.dtype(np.int32)  # the smaller of the two index types that Gather takes


class Memo:
    """Keeps what thunks have made until it is told to drop it: a weight is read to be weighed, then to be written."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._count = 0

    def __call__(self, make: Callable[[], T]) -> Callable[[], T]:
        """The same thunk, computed once until ``drop``."""
        key = self._count
        self._count += 1

        def get() -> T:
            if key not in self._held:
                self._held[key] = make()
            held: T = self._held[key]
            return held

        return get

    def drop(self) -> None:
        """Forget everything that was made; it is made again when asked for."""
        self._held.clear()


def looked_up(
    book: Term, planes: Callable[[], Sequence[Array]], count: int, layout: BitLayout, shape: Shape | None = None
) -> Term:
    """book[codes] of ``count`` packed codes and the padding: any shape that reads as (layout.padded(count), ...).

    book: (at least layout.levels, ...), any type. planes: what ``pack`` gives for the codes.
    shape: of the codes, if they have more than one axis; the result has it where that costs nothing.
    """
    if layout.group == 1:
        whole = shape if shape is not None and len(layout.widths) == 1 else (count,)
        return gather(book, indices(planes, count, layout, whole))
    index = indices(planes, count, layout)
    return gather(gather(book, digits(layout.levels, layout.group, layout.rows)), index)


def digits(levels: int, group: int, rows: int) -> Term:
    """(rows, group) int32: the digits of 0, 1, ... in base ``levels``, the highest first."""
    powers = np.array([levels**place for place in range(group - 1, -1, -1)], INDEX)
    column = reshape(counting(rows), (rows, 1))
    quotients = column if group == 1 else binary("Div", column, literal(powers))
    return binary("Mod", quotients, literal(levels, INDEX))


def indices(planes: Callable[[], Sequence[Array]], count: int, layout: BitLayout, shape: Shape | None = None) -> Term:
    """int32 indices of ``count`` packed codes, of any shape that reads as (layout.indices(count),)."""
    total, widths = layout.indices(count), layout.widths
    if len(widths) == 1:
        return cast(_plane(planes, 0, (total,) if shape is None else shape, widths[0]), INDEX)
    per = 8 // widths[1] if len(widths) == 2 else 1  # so shaped, two planes are added as they come
    index = cast(_plane(planes, 0, (total // per, per) if per > 1 else (total,), widths[0]), INDEX)
    multiplier = 256
    for position, width in enumerate(widths[1:], 1):
        bytes_of_plane = _plane(planes, position, (total * width // 8,), width)
        part = gather(_plane_table(width, multiplier), cast(bytes_of_plane, INDEX))
        index = binary("Add", index, part if per > 1 else flatten(part))
        multiplier <<= width
    return index


def _plane(planes: Callable[[], Sequence[Array]], position: int, shape: Shape, width: int) -> Literal:
    kind = np.dtype(np.uint16 if width > 8 else np.uint8)
    return Literal(shape, kind, lambda: planes()[position].reshape(shape))


def _plane_table(width: int, multiplier: int) -> Term:
    """(256, 8 / width) int32: the parts that a byte holds, times their weight in the index."""
    return binary("Mul", digits(2**width, 8 // width, 256), literal(multiplier, INDEX))
