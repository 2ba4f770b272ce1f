"""onnxcomp.numerics.metrics.held_out: the decision against the distribution that it has, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from onnxcomp.numerics.metrics.held_out import is_gain

ROUNDS = 20_000


def share_of_gains(count: int, mean: float) -> float:
    """How often normal gains (of standard deviation 1) with that mean are taken for some."""
    rng = np.random.default_rng(count)
    before = rng.normal(mean, 1, (ROUNDS, count))
    return float(np.mean([is_gain(each, np.zeros(count)) for each in before]))


@pytest.mark.parametrize("count", [2, 5, 20, 100])
@pytest.mark.parametrize("errors", [-2.0, 0.0, 1.0, 3.0])
def test_gains_are_taken_as_often_as_student_s_distribution_says(count: int, errors: float) -> None:
    """mean / (std / sqrt n) of normal gains has a noncentral t distribution. errors: standard errors of the mean."""
    expected = stats.nct.sf(1.0, count - 1, errors) if errors else stats.t.sf(1.0, count - 1)
    spread = math.sqrt(0.25 / ROUNDS)
    assert share_of_gains(count, errors / math.sqrt(count)) == pytest.approx(expected, abs=4 * spread)


def test_one_sample_that_gains_much_is_not_enough() -> None:
    before, after = np.ones(20), np.ones(20)
    before[7] = 100
    assert not is_gain(before, after)
    assert is_gain(before + np.linspace(0.1, 0.2, 20), np.minimum(after, before))


def test_units_and_order_make_no_difference() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        before, after = rng.random(9), rng.random(9)
        order = rng.permutation(9)
        assert is_gain(before, after) == is_gain(1e6 * before, 1e6 * after) == is_gain(before[order], after[order])
        assert not (is_gain(before, after) and is_gain(after, before))


def test_no_change_is_no_gain() -> None:
    assert not is_gain(np.ones(5), np.ones(5))


@pytest.mark.parametrize(("before", "after"), [([1.0], [0.5]), ([], []), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_what_tells_nothing_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more samples"):
        is_gain(np.array(before), np.array(after))
