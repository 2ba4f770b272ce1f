"""What a run minimizes and what is enough: quantities, each with its price and its goal.

    cost of a choice    sum over quantities of price * amount           what the one allocator minimizes
    goal                the amount at which a quantity is low enough    what a search stops at

Divergence is no quantity of this kind: it is what the accuracy budget limits and an allocation calls harm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcomp.budget import Budget, Goal
from onnxcomp.contract import Quantity

# What a unit of each quantity is worth where a run is to be small, or fast. Bytes break ties among options that
# multiply as often.
PRICES: Mapping[str, Mapping[Quantity, float]] = {
    "bytes": {Quantity.BYTES: 1.0},
    "packed": {Quantity.BYTES: 1.0},
    "latency": {Quantity.MACS: 1.0, Quantity.BYTES: 0.01},
}
REACHED = 0.97  # of a goal: what is estimated or timed at more than this has not surely reached it


@dataclass(frozen=True)
class Objective:
    """prices: of what options take. goals: of the whole model, by quantity. coded: whether bytes are counted as
    ``onnxcomp pack`` codes them instead of as store-compact stores them."""

    prices: Mapping[Quantity, float] = field(default_factory=lambda: PRICES["bytes"])
    goals: Mapping[Quantity, Goal] = field(default_factory=dict)
    coded: bool = False

    @classmethod
    def of(cls, goal: str, budget: Budget) -> Objective:
        """That of a recipe's goal and the user's: a goal of one kind alone says what to save."""
        asked = {Quantity.BYTES: budget.target_size, Quantity.LATENCY: budget.target_latency}
        goals = {quantity: each for quantity, each in asked.items() if each is not None}
        if len(goals) == 1:
            goal = "latency" if Quantity.LATENCY in goals else "bytes"
        return cls(PRICES[goal], goals, goal == "packed")

    @property
    def is_of_bytes(self) -> bool:
        """Whether nothing but bytes is worth anything."""
        return set(self.prices) == {Quantity.BYTES}

    def in_bytes(self) -> Objective:
        """The same goals where options differ in bytes only."""
        return Objective(goals=self.goals, coded=self.coded)

    def cost(self, amounts: Mapping[Quantity, float]) -> float:
        """What these amounts are worth; one that is not known counts nothing."""
        return sum(price * amounts.get(quantity, 0.0) for quantity, price in self.prices.items())

    def has_goal(self, quantity: Quantity) -> bool:
        """Whether there is an amount that is enough."""
        return quantity in self.goals

    def limit(self, quantity: Quantity, original: float) -> float:
        """The amount of the whole model that is enough, infinite where there is no goal. original: of the model as it
        was before the run."""
        goal = self.goals.get(quantity)
        return math.inf if goal is None else goal.limit(original)
