"""A treemap: areas are bytes, nothing overlaps, nothing is left empty."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxcomp.report.treemap import Portion, Tile, treemap

WHOLE = 100.0 * 100.0


def overlap(one: Tile, other: Tile) -> float:
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(0.0, across) * max(0.0, down)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
@example([2, 677744822])
@example([1, 10**9])
def test_areas_are_bytes_and_cells_fill_the_frame(sizes: list[int]) -> None:
    cells = treemap([Portion(str(index), size) for index, size in enumerate(sizes)], rest="small ones")
    assert sum(each.part.size for each in cells) == pytest.approx(sum(sizes))
    for each in cells:
        assert each.width * each.height == pytest.approx(WHOLE * each.part.size / sum(sizes), rel=1e-6)
        # A cell of a billionth is narrower than what is left of its column's digits.
        assert min(each.x, each.y) >= -1e-6 and max(each.x + each.width, each.y + each.height) <= 100 + 1e-3
    assert all(overlap(one, other) < 1e-3 for one, other in itertools.combinations(cells, 2))


def test_what_cannot_be_seen_is_drawn_as_one() -> None:
    cells = treemap([Portion("large", 10**6), *(Portion(str(n), 10, 5) for n in range(100))], rest="smaller ones")
    assert [(each.part.name, each.part.size, each.part.left) for each in cells] == [
        ("large", 10**6, 0.0),
        ("100 smaller ones", 1000, 500),
    ]


def test_a_cell_is_filled_by_what_is_left_of_it_and_no_further() -> None:
    first, second = treemap([Portion("a", 200, 50), Portion("b", 100, 150)], rest="")
    assert (first.filled, second.filled) == (25.0, 100.0)


def test_nothing_gives_nothing() -> None:
    assert treemap([], rest="") == treemap([Portion("empty", 0)], rest="") == []
