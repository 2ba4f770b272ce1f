"""Choose one option for each item: cost against harm, by a Lagrange multiplier.

    minimize    sum of cost + price * sum of harm      cost: bytes, multiply-accumulates, or what these are worth

For one price every item chooses alone; the price is searched at which the whole meets the limit, and what the limit
then leaves is spent on single changes. Shoham & Gersho 1988, https://doi.org/10.1109/29.90373. Of few items the best
choice is found among all of them (``frontier``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from onnxcomp.numerics.search.frontier import Frontier

PRICES = (1e-3, 1e18)  # of one unit of harm, in units of cost
HALVINGS = 80
FEW_ITEMS = 16  # of which all undominated choices are a matter of milliseconds, and gaps in the hull matter most


class PricedOption(NamedTuple):
    """What an option of an item takes and what it does."""

    cost: float
    harm: float


Items = Sequence[Sequence[PricedOption]]


def least_cost(items: Items, most_harm: float) -> list[int]:
    """For each item the position of its option: as low a cost as the harm of all together allows."""
    if len(items) <= FEW_ITEMS:
        return Frontier(items).within_harm(most_harm)
    best, _ = _priced(items, lambda found: harm_of(items, found) <= most_harm, dear=True)
    slack = most_harm - harm_of(items, best)
    return _spent(items, best, slack, spends=lambda each: each.harm, gain=_cost_saved)


def least_harm(items: Items, most_cost: float) -> list[int]:
    """For each item the position of its option: as little harm as the cost of all together allows."""
    within, beyond = _priced(items, lambda found: cost_of(items, found) <= most_cost, dear=False)
    starts = [within] if beyond is None else [within, _cheaper(items, beyond, most_cost)]
    found = [_milder(items, start, most_cost) for start in starts if cost_of(items, start) <= most_cost]
    return min(found, key=lambda each: harm_of(items, each), default=within)


def _milder(items: Items, positions: Sequence[int], most_cost: float) -> list[int]:
    """The choices after changes of least harm that what is left of the cost pays for."""
    slack = most_cost - cost_of(items, positions)
    return _spent(items, positions, slack, spends=lambda each: each.cost, gain=_harm_saved)


def _cheaper(items: Items, positions: Sequence[int], most_cost: float) -> list[int]:
    """The choices after changes that add least harm for what they save of the cost that is too much."""
    best, over = list(positions), cost_of(items, positions) - most_cost
    while over > 0:
        moves = [
            ((option.harm - options[best[at]].harm) / min(over, options[best[at]].cost - option.cost), at, position)
            for at, options in enumerate(items)
            for position, option in enumerate(options)
            if option.cost < options[best[at]].cost
        ]
        if not moves:
            break
        _, at, position = min(moves)
        over -= items[at][best[at]].cost - items[at][position].cost
        best[at] = position
    return best


def cost_of(items: Items, positions: Sequence[int]) -> float:
    """What the chosen options take together."""
    return sum(options[position].cost for options, position in zip(items, positions, strict=True))


def harm_of(items: Items, positions: Sequence[int]) -> float:
    """What the chosen options do together."""
    return sum(options[position].harm for options, position in zip(items, positions, strict=True))


def _spent(
    items: Items,
    positions: Sequence[int],
    slack: float,
    *,
    spends: Callable[[PricedOption], float],
    gain: Callable[[PricedOption, PricedOption], float],
) -> list[int]:
    """The choices changed one by one, that of most gain first, as long as what the changes cost is within the slack."""
    best = list(positions)
    while True:
        present = [options[position] for options, position in zip(items, best, strict=True)]
        moves = [
            (gain(present[at], option), at, position)
            for at, options in enumerate(items)
            for position, option in enumerate(options)
            if gain(present[at], option) > 0 and spends(option) - spends(present[at]) <= slack
        ]
        if not moves:
            return best
        _, at, position = max(moves, key=lambda move: move[0])
        slack -= spends(items[at][position]) - spends(present[at])
        best[at] = position


def _cost_saved(present: PricedOption, other: PricedOption) -> float:
    return present.cost - other.cost


def _harm_saved(present: PricedOption, other: PricedOption) -> float:
    """Harm that a change saves for each unit of cost that it takes."""
    saved = present.harm - other.harm
    return saved / max(1, other.cost - present.cost)


def _priced(items: Items, fits: Callable[[list[int]], bool], *, dear: bool) -> tuple[list[int], list[int] | None]:
    """The choices at the price nearest to the other end at which the whole still fits, and those beyond it.

    dear: it fits at a high price and the lowest is sought; else the other way round. Where it fits at no price, the
    choices at the end where it should; beyond: None where it fits at any.
    """
    low, high = PRICES
    best, beyond = _at_price(items, high if dear else low), None
    for _ in range(HALVINGS):
        price = math.sqrt(low * high)
        found = _at_price(items, price)
        fitting = fits(found)
        if fitting:
            best = found
        else:
            beyond = found
        if fitting == dear:
            high = price
        else:
            low = price
    return best, beyond


def _at_price(items: Items, price: float) -> list[int]:
    return [
        min(range(len(options)), key=lambda each: options[each].cost + price * options[each].harm) for options in items
    ]
