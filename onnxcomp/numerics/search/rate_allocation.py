"""Choose one option for each item: bytes against harm, by a Lagrange multiplier.

    minimize    sum of bytes + price * sum of harm

For one price every item chooses alone; the price is searched at which the whole meets the limit, and what the limit
then leaves is spent on single changes. Shoham & Gersho 1988, https://doi.org/10.1109/29.90373.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

PRICES = (1e-3, 1e18)  # of one unit of harm, in bytes
HALVINGS = 80


class Choice(NamedTuple):
    """What an option of an item takes and what it does."""

    size_bytes: int
    harm: float


Items = Sequence[Sequence[Choice]]


def fewest_bytes(items: Items, most_harm: float) -> list[int]:
    """For each item the position of its option: as few bytes as the harm of all together allows."""
    best = _priced(items, lambda found: harm_of(items, found) <= most_harm, dear=True)
    slack = most_harm - harm_of(items, best)
    return _spent(items, best, slack, cost=lambda each: each.harm, gain=_bytes_saved)


def least_harm(items: Items, most_bytes: int) -> list[int]:
    """For each item the position of its option: as little harm as the bytes of all together allow."""
    best = _priced(items, lambda found: bytes_of(items, found) <= most_bytes, dear=False)
    slack = most_bytes - bytes_of(items, best)
    return _spent(items, best, slack, cost=lambda each: each.size_bytes, gain=_harm_saved)


def bytes_of(items: Items, positions: Sequence[int]) -> int:
    """What the chosen options take together."""
    return sum(options[position].size_bytes for options, position in zip(items, positions, strict=True))


def harm_of(items: Items, positions: Sequence[int]) -> float:
    """What the chosen options do together."""
    return sum(options[position].harm for options, position in zip(items, positions, strict=True))


def _spent(
    items: Items,
    positions: Sequence[int],
    slack: float,
    *,
    cost: Callable[[Choice], float],
    gain: Callable[[Choice, Choice], float],
) -> list[int]:
    """The choices changed one by one, that of most gain first, as long as what the changes cost is within the slack."""
    best = list(positions)
    while True:
        present = [options[position] for options, position in zip(items, best, strict=True)]
        moves = [
            (gain(present[at], option), at, position)
            for at, options in enumerate(items)
            for position, option in enumerate(options)
            if gain(present[at], option) > 0 and cost(option) - cost(present[at]) <= slack
        ]
        if not moves:
            return best
        _, at, position = max(moves, key=lambda move: move[0])
        slack -= cost(items[at][position]) - cost(present[at])
        best[at] = position


def _bytes_saved(present: Choice, other: Choice) -> float:
    return present.size_bytes - other.size_bytes


def _harm_saved(present: Choice, other: Choice) -> float:
    """Harm that a change saves for each byte that it takes."""
    saved = present.harm - other.harm
    return saved / max(1, other.size_bytes - present.size_bytes)


def _priced(items: Items, fits: Callable[[list[int]], bool], *, dear: bool) -> list[int]:
    """The choices at the price nearest to the other end at which the whole still fits.

    dear: it fits at a high price and the lowest is sought; else the other way round. Where it fits at no price, the
    choices at the end where it should.
    """
    low, high = PRICES
    best = _at_price(items, high if dear else low)
    for _ in range(HALVINGS):
        price = math.sqrt(low * high)
        found = _at_price(items, price)
        fitting = fits(found)
        if fitting:
            best = found
        if fitting == dear:
            high = price
        else:
            low = price
    return best


def _at_price(items: Items, price: float) -> list[int]:
    return [
        min(range(len(options)), key=lambda each: options[each].size_bytes + price * options[each].harm)
        for options in items
    ]
