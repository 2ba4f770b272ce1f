"""cut_allocation against all numbers that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.search.cut_allocation import Prices, allocated, allowed_counts


def test_what_is_left_is_the_product_over_the_axes() -> None:
    """A matrix of 4 x 6, whose rows are units of one group and whose columns are three units of another."""
    prices = Prices(np.array([24.0]), np.array([[[0.25, 0.0]], [[0.0, 1 / 3]]]))
    assert prices.total(np.array([1, 1])) == pytest.approx(24 * 0.75 * 2 / 3)


@pytest.mark.parametrize(("units", "multiple", "expected"), [
    (4, 1, [0, 1, 2, 3]), (16, 8, [0, 8]), (20, 8, [0, 4, 12]), (6, 8, [0]), (1, 1, [0]),
])  # fmt: skip
def test_what_stays_is_a_multiple(units: int, multiple: int, expected: list[int]) -> None:
    assert allowed_counts(units, multiple).tolist() == expected


@pytest.mark.parametrize("seed", range(12))
def test_no_other_numbers_are_much_better(seed: int) -> None:
    """All combinations of three chains of products; of rising errors the search comes within a tenth of the best."""
    rng = np.random.default_rng(seed)
    units = [5, 6, 7]
    errors = [np.concatenate([[0], np.cumsum(np.sort(rng.random(count)) ** 2)]) for count in units]
    shares = np.zeros((2, 4, 3))
    for at, count in enumerate(units):
        shares[0, at, at] = shares[1, at + 1, at] = 1 / count
    prices = Prices(rng.random(4) + 0.2, shares)
    allowed = [allowed_counts(count, 1) for count in units]
    goal = 0.6 * prices.total(np.zeros(3))
    found = allocated(errors, allowed, prices, goal)
    assert prices.total(found) <= goal

    def error(counts: tuple[int, ...]) -> float:
        return float(sum(own[count] for own, count in zip(errors, counts, strict=True)))

    every = itertools.product(*(each.tolist() for each in allowed))
    best = min(error(counts) for counts in every if prices.total(np.array(counts)) <= goal)
    assert error(tuple(found.tolist())) <= 1.1 * best + 1e-12


def test_nothing_goes_where_the_goal_is_met() -> None:
    prices = Prices(np.array([10.0]), np.array([[[0.1]]]))
    assert allocated([np.arange(11.0)], [allowed_counts(10, 1)], prices, 10.0).tolist() == [0]


def test_all_that_may_goes_where_the_goal_cannot_be_met() -> None:
    prices = Prices(np.array([10.0]), np.array([[[0.1]]]))
    assert allocated([np.arange(11.0)], [allowed_counts(10, 1)], prices, 0.0).tolist() == [9]
