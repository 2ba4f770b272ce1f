"""Times between those that were measured, against hand-made tables."""

from __future__ import annotations

import numpy as np

from onnxcomp.numerics.search.cut_allocation import allocated
from onnxcomp.numerics.search.time_curves import TimePrices, between, faster_ones, spread, undominated


def test_a_size_between_two_timed_ones_takes_a_time_between_theirs_in_proportion() -> None:
    assert between([16, 24, 40, 64], [64, 16, 32], [4.0, 1.0, 3.0]).tolist() == [1.0, 2.0, 3.25, 4.0]


def test_beyond_the_timed_sizes_nothing_is_extrapolated() -> None:
    assert between([1, 100], [16, 64], [1.0, 4.0]).tolist() == [1.0, 4.0]


def test_few_places_are_all_taken_and_of_many_both_ends() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(9, 3) == [0, 4, 8]
    assert spread(0, 3) == []


def test_what_is_no_faster_than_something_milder_is_left_out() -> None:
    """64 to 8 channels by eights of a kernel that takes sixteen at once; the last but one is slower."""
    assert faster_ones([4.0, 4.0, 3.0, 2.99, 2.0, 2.0, 2.5, 1.0]) == [0, 2, 4, 7]


def test_only_what_nothing_beats_in_time_and_error_is_left_and_the_slowest_comes_first() -> None:
    assert undominated([3.0, 1.0, 2.0, 2.5], [0.1, 0.5, 0.2, 0.3]) == [0, 2, 1]
    assert undominated([1.0, 1.0], [0.2, 0.1]) == [1]


def test_a_node_of_two_groups_takes_the_product_of_what_each_leaves() -> None:
    first = np.array([[1.0, 1.0], [0.5, 1.0], [0.25, 1.0]])
    second = np.array([[1.0, 1.0], [0.8, 0.5]])
    prices = TimePrices(np.array([10.0, 4.0]), [first, second], fixed=1.0)
    assert prices.total(np.array([0, 0])) == 15.0
    assert prices.total(np.array([2, 1])) == 10 * 0.25 * 0.8 + 4 * 0.5 + 1


def test_units_go_where_they_save_time_not_where_they_are_many() -> None:
    """One of the first group is as fast as none, two save half; one of the second saves a tenth, at the same error."""
    first, second = np.array([[1.0], [1.0], [0.5]]), np.array([[1.0], [0.9], [0.8]])
    prices = TimePrices(np.array([10.0]), [first, second])
    errors = [np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0])]
    allowed = [np.array([0, 2]), np.array([0, 1, 2])]
    assert allocated(errors, allowed, prices, 5.0).tolist() == [2, 0]
