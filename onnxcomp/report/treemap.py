"""A treemap as rectangles in percent of its frame: area for bytes, laid out by squarify.

Bruls, Huizing, van Wijk: Squarified Treemaps, https://doi.org/10.1007/978-3-7091-6783-0_4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import squarify

WIDTH, HEIGHT = 200.0, 100.0  # the frame's proportions
LEAST_SHARE = 5e-4  # what takes less of the whole is drawn with its like as one
NAMED = (10.0, 9.0)  # percent of width and height from which on there is room for a name
NOTED = (16.0, 18.0)  # and for a note below it
MOST_LINES = 3


@dataclass(frozen=True)
class Portion:
    """What a treemap is made of. size: its area; left: of that, what is filled; note: beside the name."""

    name: str
    size: float
    left: float = 0.0
    note: str = ""
    is_weight: bool = True


@dataclass(frozen=True)
class Tile:
    """A part and its place, in percent. filled: the share of its height that is filled."""

    part: Portion
    x: float
    y: float
    width: float
    height: float

    @property
    def filled(self) -> float:
        """Percent of the cell that is filled."""
        return 100 * min(1.0, self.part.left / self.part.size) if self.part.size else 0.0

    @property
    def is_named(self) -> bool:
        """Whether there is room for its name."""
        return self.width >= NAMED[0] and self.height >= NAMED[1]

    @property
    def lines(self) -> int:
        """Over how many lines its name may run."""
        return max(1, min(MOST_LINES, int(self.height / NAMED[1]) - 1))

    @property
    def is_noted(self) -> bool:
        """Whether there is room for its note."""
        return self.width >= NOTED[0] and self.height >= NOTED[1]


def treemap(parts: Sequence[Portion], *, rest: str) -> list[Tile]:
    """The cells, largest first. rest: what all that is too small to be seen is called together."""
    whole = sum(each.size for each in parts)
    if whole <= 0:
        return []
    seen = [each for each in parts if each.size >= LEAST_SHARE * whole]
    small = [each for each in parts if 0 < each.size < LEAST_SHARE * whole]
    if small:
        size, left = sum(each.size for each in small), sum(each.left for each in small)
        seen.append(Portion(f"{len(small):,} {rest}", size, left))
    seen.sort(key=lambda each: -each.size)
    areas = squarify.normalize_sizes([each.size for each in seen], WIDTH, HEIGHT)
    boxes = squarify.squarify(areas, 0, 0, WIDTH, HEIGHT)
    across, down = 100 / WIDTH, 100 / HEIGHT
    return [
        Tile(part, across * box["x"], down * box["y"], across * box["dx"], down * box["dy"])
        for part, box in zip(seen, boxes, strict=True)
    ]
