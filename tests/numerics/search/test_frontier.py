"""The frontier against every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.search.frontier import Frontier

Items = list[list[tuple[float, float]]]


def drawn(seed: int, count: int = 4, options: int = 6) -> Items:
    """Costs and harms that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return [list(zip(rng.random(options).tolist(), rng.random(options).tolist(), strict=True)) for _ in range(count)]


def totals(items: Items) -> list[tuple[float, float]]:
    return [tuple(map(sum, zip(*found, strict=True))) for found in itertools.product(*items)]  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(5))
def test_it_has_what_no_other_beats(seed: int) -> None:
    items = drawn(seed)
    every = totals(items)
    best = {
        (cost, harm)
        for cost, harm in every
        if not any((c <= cost and h < harm) or (c < cost and h <= harm) for c, h in every)
    }
    found = Frontier(items)
    np.testing.assert_allclose(list(zip(found.cost, found.harm, strict=True)), sorted(best), rtol=1e-12)


@pytest.mark.parametrize("most_harm", [1.0, 1.5, 2.5, np.inf])
@pytest.mark.parametrize("seed", range(5))
def test_positions_are_those_of_the_least_cost_within_a_harm(seed: int, most_harm: float) -> None:
    items = drawn(seed)
    taken = [item[at] for item, at in zip(items, Frontier(items).within_harm(most_harm), strict=True)]
    cost, harm = (sum(each) for each in zip(*taken, strict=True))
    fitting = [each for each in totals(items) if each[1] <= most_harm]
    assert cost == pytest.approx(min(each[0] for each in fitting)) and harm <= most_harm


def test_where_nothing_fits_the_least_harm_is_taken() -> None:
    items = drawn(0)
    positions = Frontier(items).within_harm(-1.0)
    assert positions == [min(range(len(item)), key=lambda at: item[at][1]) for item in items]


@pytest.mark.parametrize("seed", range(3))
def test_a_thinned_frontier_is_near_the_whole(seed: int) -> None:
    items = [
        [(size * (8 - at), factor * 4.0**at) for at in range(7)]
        for size, factor in zip(*np.random.default_rng(seed).uniform(0.2, 1.0, (2, 8)).tolist(), strict=True)
    ]
    whole, thin = Frontier(items, most=10**6), Frontier(items, most=48)
    assert thin.cost.size == 48 < whole.cost.size / 4
    for share in (0.01, 0.1, 0.5):
        limit = share * whole.harm.max()
        costs = [sum(item[at][0] for item, at in zip(items, each.within_harm(limit), strict=True))
                 for each in (whole, thin)]  # fmt: skip
        assert costs[0] <= costs[1] <= 1.1 * costs[0]


def test_items_without_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no options"):
        Frontier([[]])
    assert Frontier([]).within_harm(0.0) == []
