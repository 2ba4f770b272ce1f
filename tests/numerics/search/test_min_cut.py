"""Minimum cuts against trying every way to part the points."""

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.search.min_cut import UNCUT, Edge, minimum_cut


def cost(edges: list[Edge], side: tuple[bool, ...]) -> int:
    return sum(width for start, end, width in edges if side[start] and not side[end])


def cheapest(count: int, edges: list[Edge]) -> int:
    """Every subset of the points but 0 (the source) and 1 (the sink)."""
    rest = itertools.product((False, True), repeat=count - 2)
    return min(cost(edges, (True, False, *each)) for each in rest)


@pytest.mark.parametrize("seed", range(20))
def test_no_way_to_part_the_points_is_cheaper(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    edges = [
        (int(start), int(end), int(random.integers(0, 6)))
        for start, end in itertools.permutations(range(count), 2)
        if random.random() < 0.5
    ]
    side = minimum_cut(count, edges, source=0, sink=1)
    assert side[0] and not side[1]
    assert cost(edges, tuple(side)) == cheapest(count, edges)


def test_the_source_keeps_the_smallest_side_of_equally_cheap_ones() -> None:
    assert minimum_cut(3, [(0, 1, 2), (1, 2, 2)], source=0, sink=2).tolist() == [True, False, False]


def test_edges_between_the_same_points_add_up() -> None:
    edges = [(0, 1, 1), (0, 1, 1), (1, 2, 1)]
    assert minimum_cut(3, edges, source=0, sink=2).tolist() == [True, True, False]


def test_points_without_edges_belong_to_the_sink() -> None:
    assert minimum_cut(3, [], source=0, sink=1).tolist() == [True, False, False]


def test_what_must_not_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be parted"):
        minimum_cut(2, [(0, 1, UNCUT)], source=0, sink=1)
