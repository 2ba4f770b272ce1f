"""onnxcomp.numerics.metrics.intervals: exact ones against scipy's, bootstrapped ones by what they promise."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics.intervals import MAX_BOOTSTRAP_SAMPLES, Estimate

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(("count", "total"), [(0, 4), (4, 4), (1, 4), (0, 500), (3, 500), (250, 500), (499, 500)])
def test_shares_have_the_interval_of_clopper_and_pearson(count: int, total: int) -> None:
    got = metrics.share(count, total)
    exact = binomtest(count, total).proportion_ci(0.95, method="exact")
    assert got.value == count / total
    assert (got.low, got.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_a_share_of_nothing_may_be_anything() -> None:
    assert metrics.share(0, 0) == Estimate(0.0, 0.0, 1.0)


def test_a_drop_lies_between_the_outer_ends_of_what_was_lost_and_won() -> None:
    down, up = (binomtest(count, 200).proportion_ci(0.95, method="exact") for count in (9, 4))
    got = metrics.drop(9, 4, 200, distinct=200)
    assert got.value == pytest.approx(5 / 200)
    assert (got.low, got.high) == pytest.approx((down.low - up.high, down.high - up.low))


def test_four_samples_without_a_change_do_not_rule_out_half_the_accuracy() -> None:
    got = metrics.drop(0, 0, 4, distinct=4)
    assert got.value == 0
    assert got.high > 0.5 and got.low < -0.5


@pytest.mark.parametrize("limit", [0.3, 0.05, 0.005])
def test_samples_to_resolve_are_the_fewest_that_rule_the_limit_out(limit: float) -> None:
    """Where nothing changed: by the exact interval of no changes."""
    wanted = metrics.samples_to_resolve(limit, 0.0)
    assert metrics.share(0, wanted).high <= limit < metrics.share(0, wanted - 1).high


@pytest.mark.parametrize(("limit", "changed"), [(0.005, 0.01), (0.02, 0.3), (0.1, 0.5)])
def test_samples_to_resolve_make_the_normal_interval_of_the_drop_as_narrow_as_the_limit(
    limit: float, changed: float
) -> None:
    def half(samples: int) -> float:
        return 1.96 * math.sqrt(changed / samples)

    wanted = metrics.samples_to_resolve(limit, changed)
    assert half(wanted) <= limit < half(wanted - 1)


@pytest.mark.parametrize(("limit", "fewest"), [(0.0, 0), (-1.0, 0), (1.0, 1), (5.0, 1)])
def test_budgets_of_nothing_and_of_everything_need_no_samples(limit: float, fewest: int) -> None:
    assert metrics.samples_to_resolve(limit, 0.0) == fewest


def test_samples_that_are_repeated_narrow_no_interval() -> None:
    once, often = metrics.drop(3, 1, 20, distinct=20), metrics.drop(300, 100, 2000, distinct=20)
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    values = RNG.exponential(size=20)
    once, often = metrics.estimate(values), metrics.estimate(np.repeat(values, 50), repeats=50)
    assert often.value == pytest.approx(once.value)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), rel=0.1)


def test_interval_holds_the_mean_and_narrows_with_samples() -> None:
    few, many = RNG.exponential(size=50), RNG.exponential(size=5000)
    assert len(few) < MAX_BOOTSTRAP_SAMPLES < len(many)
    for values in (few, many):
        got = metrics.estimate(values)
        assert got.low < got.value < got.high
        assert got.value == pytest.approx(values.mean())
    wide, narrow = metrics.estimate(few), metrics.estimate(many)
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)


def test_intervals_are_fixed_by_the_seed() -> None:
    values = RNG.exponential(size=50)
    assert metrics.estimate(values, seed=1) == metrics.estimate(values, seed=1) != metrics.estimate(values, seed=2)


def test_intervals_hold_the_true_mean_nineteen_times_in_twenty() -> None:
    """Of 400 draws of 60 samples 380 are expected, at the bootstrap's known optimism a few less; 3 errors are 13."""
    held = 0
    for draw in range(400):
        got = metrics.estimate(np.random.default_rng(draw).normal(size=60), seed=draw)
        held += got.low <= 0 <= got.high
    assert 355 <= held <= 393


@pytest.mark.parametrize("count", [50, MAX_BOOTSTRAP_SAMPLES + 1])
def test_a_transform_is_of_the_mean_and_not_of_each_sample(count: int) -> None:
    values = RNG.exponential(size=count)
    plain, root = metrics.estimate(values), metrics.estimate(values, power=0.5)
    assert root.value == pytest.approx(np.sqrt(values.mean()))
    assert (root.low, root.high) == pytest.approx((np.sqrt(plain.low), np.sqrt(plain.high)), rel=1e-3)


def test_few_large_numbers_among_many_samples_leave_a_low_end_that_can_be() -> None:
    values = np.zeros(MAX_BOOTSTRAP_SAMPLES + 1)
    values[0] = 1.0
    assert metrics.estimate(values).low == 0


@pytest.mark.parametrize("count", [8, MAX_BOOTSTRAP_SAMPLES + 1])
def test_an_infinite_sample_leaves_the_upper_end_open(count: int) -> None:
    values = np.ones(count)
    values[3] = np.inf
    got = metrics.estimate(values)
    assert got.value == got.high == np.inf
    assert got.low <= 1


def test_no_samples_have_no_mean() -> None:
    assert metrics.estimate(np.zeros(0)) == Estimate(0.0, 0.0, 0.0)
