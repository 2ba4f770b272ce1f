"""What a run is to save: prices by the recipe's goal and the user's, goals as amounts."""

from __future__ import annotations

import math

import pytest

from onnxcomp.budget import Budget
from onnxcomp.contract import Quantity
from onnxcomp.pipeline.objective import Objective


@pytest.mark.parametrize(
    ("goal", "budget", "is_of_bytes"),
    [
        ("bytes", {}, True),
        ("latency", {}, False),
        ("bytes", {"target_latency": "0.5x"}, False),
        ("latency", {"target_size": "4x"}, True),
        ("bytes", {"target_size": "4x", "target_latency": "0.5x"}, True),
        ("latency", {"target_size": "4x", "target_latency": "0.5x"}, False),
    ],
)
def test_a_goal_of_one_kind_alone_says_what_to_save(goal: str, budget: dict[str, str], is_of_bytes: bool) -> None:
    assert Objective.of(goal, Budget.parse(**budget)).is_of_bytes == is_of_bytes


def test_a_cost_is_what_known_amounts_are_worth() -> None:
    amounts = {Quantity.BYTES: 300.0, Quantity.MACS: 7.0}
    assert Objective().cost(amounts) == 300
    assert Objective.of("latency", Budget()).cost(amounts) == pytest.approx(7 + 0.01 * 300)
    assert Objective().cost({}) == 0


def test_goals_are_amounts_of_the_whole_model() -> None:
    objective = Objective.of("bytes", Budget.parse(target_size="4x", target_latency="3ms"))
    assert objective.limit(Quantity.BYTES, 1000) == 250
    assert objective.limit(Quantity.LATENCY, 10) == 3
    assert Objective().limit(Quantity.BYTES, 1000) == math.inf
    assert objective.in_bytes().goals == objective.goals and objective.in_bytes().is_of_bytes
