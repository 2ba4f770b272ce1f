"""Allotment against trying every combination."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from onnxcomp.numerics.search import rate_allocation
from onnxcomp.numerics.search.rate_allocation import PricedOption, cost_of, harm_of, least_cost, least_harm


def drawn(seed: int, count: int = 5) -> list[list[PricedOption]]:
    """Items as weights are: bytes in proportion to the bits, harm falling by four for each."""
    rng = np.random.default_rng(seed)
    sizes, influence = rng.integers(20, 2000, count), 10.0 ** rng.uniform(-3, 0, count)
    return [
        [PricedOption(int(size * bits), float(harm * 4.0**-bits)) for bits in range(2, 9)]
        for size, harm in zip(sizes, influence, strict=True)
    ]


def everything(items: list[list[PricedOption]]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(each)) for each in items)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_cost_within_a_harm(seed: int, share: float) -> None:
    items = drawn(seed)
    limit = share * harm_of(items, [0] * 5)
    found = least_cost(items, limit)
    assert harm_of(items, found) <= limit
    best = min(cost_of(items, each) for each in everything(items) if harm_of(items, each) <= limit)
    assert cost_of(items, found) == best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_cost_of_many_within_a_harm(seed: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A multiplier reaches the convex hull only; single changes the rest."""
    monkeypatch.setattr(rate_allocation, "FEW_ITEMS", 0)
    items = drawn(seed)
    limit = share * harm_of(items, [0] * 5)
    found = least_cost(items, limit)
    assert harm_of(items, found) <= limit
    best = min(cost_of(items, each) for each in everything(items) if harm_of(items, each) <= limit)
    assert best <= cost_of(items, found) <= 1.1 * best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [2.5, 4.0, 6.3])
def test_harm_within_a_cost(seed: int, bits: float) -> None:
    items = drawn(seed)
    budget = int(bits / 2 * cost_of(items, [0] * 5))
    found = least_harm(items, budget)
    assert cost_of(items, found) <= budget
    best = min(harm_of(items, each) for each in everything(items) if cost_of(items, each) <= budget)
    assert harm_of(items, found) <= 1.2 * best


def test_what_fits_at_no_price_comes_as_near_as_can_be() -> None:
    items = drawn(1)
    assert least_cost(items, 0.0) == [6] * 5
    assert least_harm(items, 0) == [0] * 5
    assert least_cost(items, math.inf) == [0] * 5
    assert least_harm(items, 10**9) == [6] * 5


def test_no_items_no_choices() -> None:
    assert least_cost([], 1.0) == least_harm([], 1) == []


def test_an_infinite_harm_is_never_chosen_where_another_fits() -> None:
    items = [[PricedOption(10, math.inf), PricedOption(100, 0.1)]]
    assert least_cost(items, 1.0) == [1]
    assert least_harm(items, 200) == [1]
