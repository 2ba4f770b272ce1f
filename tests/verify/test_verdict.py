"""Verdicts: what passes, what passes with a distance, and what a search adds up. No model runs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxcomp.verify.verdict import PART_FACTOR, OutputDivergence, Verdict, failure

LIMIT = 0.03


def verdict(divergence: float, interval: tuple[float, float] = (0.0, 0.0), **known: Any) -> Verdict:
    return Verdict(divergence=divergence, interval=interval, limit=LIMIT, samples=100, **known)


def output(value: float, high: float, measure: str = "squared error", *, is_squared: bool = False) -> OutputDivergence:
    return OutputDivergence("y", "values", measure, value, 0.0, high, is_squared)


@pytest.mark.parametrize("divergence", [0.0, LIMIT])
def test_what_is_within_the_limit_passes(divergence: float) -> None:
    assert verdict(divergence).passed


@pytest.mark.parametrize(
    "refused",
    [
        verdict(1.001 * LIMIT),
        verdict(math.nan),
        verdict(0.0, failed=True),
        verdict(0.0, beside=(1.001 * LIMIT, LIMIT)),
        verdict(0.0, unseen=("w",)),
        failure("a NaN", limit=math.inf, samples=9),
    ],
)
def test_one_fault_is_enough_not_to_pass(refused: Verdict) -> None:
    assert not refused.passed and not refused.passed_safely


def test_what_is_held_beside_may_be_at_its_limit() -> None:
    assert verdict(0.0, beside=(LIMIT, LIMIT)).passed


@pytest.mark.parametrize(("high", "is_safe"), [(0.03, True), (0.031, False)])
def test_what_passes_safely_has_its_whole_interval_within_the_limit(high: float, is_safe: bool) -> None:
    """The lower end, 0 here, says nothing."""
    whole = verdict(0.02, (0.0, high))
    of_outputs = verdict(0.02, (0.0, 0.02), outputs=(output(0.02, high),))
    for each in (whole, of_outputs):
        assert each.passed and each.passed_safely == is_safe
        assert each.safe_divergence == pytest.approx(high)


def test_the_least_certain_measure_decides_and_not_the_worst_by_its_estimate() -> None:
    sure, unsure = output(0.025, 0.026), output(0.01, 0.031)
    assert not verdict(0.025, (0.0, 0.026), outputs=(sure, unsure)).passed_safely
    assert verdict(0.025, (0.0, 0.026), outputs=(sure,)).passed_safely


@pytest.mark.parametrize("measure", ["class by class", "class balance", "worst channel", "worst samples"])
def test_the_worst_of_several_parts_keeps_a_distance_for_being_picked(measure: str) -> None:
    part = output(0.025, 0.025, measure)
    assert part.is_of_parts
    assert verdict(0.025, outputs=(part,)).safe_divergence == pytest.approx(PART_FACTOR * 0.025)
    assert not verdict(0.025, outputs=(part,)).passed_safely
    assert verdict(0.025, outputs=(output(0.025, 0.025),)).passed_safely


def test_an_unsure_part_counts_by_its_interval_where_that_is_more() -> None:
    assert verdict(0.01, outputs=(output(0.01, 0.05, "worst channel"),)).safe_divergence == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("known", "energy"),
    [
        ({}, 0.015),
        ({"outputs": (output(0.015, 0.0), output(0.024, 0.0))}, 0.024),
        ({"outputs": (output(0.015, 0.0, is_squared=True),)}, 0.0075),  # half the limit, a quarter squared
        ({"outputs": (output(0.06, 0.0, is_squared=True),)}, 0.12),
        ({"beside": (0.2, 0.4)}, 0.015),
        ({"beside": (0.4, 0.4)}, 0.03),  # at its own limit: in the unit of the divergence that is the limit, too
        ({"beside": (0.1, 0.4), "outputs": (output(0.024, 0.0),)}, 0.024),
    ],
)
def test_the_quadratic_divergence_is_the_worst_share_of_a_limit_squared_where_that_is_a_root(
    known: dict[str, Any], energy: float
) -> None:
    assert verdict(0.015, **known).quadratic_divergence == pytest.approx(energy)


def test_a_failure_is_infinitely_far_and_without_a_limit_it_is_the_divergence() -> None:
    assert failure("a NaN", limit=LIMIT, samples=9).quadratic_divergence == math.inf
    failed = Verdict(divergence=0.0, interval=(0.0, 0.0), limit=math.inf, samples=9, failed=True)
    assert failed.quadratic_divergence == math.inf
    for limit in (0.0, math.inf):
        assert Verdict(divergence=0.2, interval=(0.0, 0.0), limit=limit, samples=9).quadratic_divergence == 0.2


def test_half_the_interval_cannot_be_told_apart() -> None:
    assert verdict(0.02, (0.01, 0.04)).resolution == pytest.approx(0.015)


def test_receipts_have_no_number_where_there_is_none() -> None:
    described = failure("a NaN", limit=math.inf, samples=9).describe()
    assert described["divergence"] is None and described["interval"] == [None, None] and described["limit"] is None
    assert described["passed"] is False and described["reasons"] == ["a NaN"]
    nothing = verdict(0.0, verified=False).describe()
    assert (nothing["divergence"], nothing["interval"], nothing["resolution"]) == (None, [None, None], None)
    some = verdict(0.02, (0.01, 0.04), beside=(0.1, math.inf), agreement=0.5).describe()
    assert some["divergence"] == 0.02 and some["interval"] == [0.01, 0.04] and some["beside"] == [0.1, None]
    assert some["agreement"] == 0.5 and some["resolution"] == pytest.approx(0.015) and some["score"] is None


def test_of_an_output_the_worst_measure_leads_and_all_are_named() -> None:
    worst = output(math.inf, math.inf, "class balance")
    outputs = output(0.01, 0.02, "whole"), output(0.02, 0.03, "worst channel"), worst
    made = verdict(0.02, outputs=outputs).describe()["outputs"]
    assert made == {
        "y": {
            "kind": "values",
            "measure": "class balance",
            "divergence": None,
            "measures": {"class balance": None, "worst channel": 0.02, "whole": 0.01},
        }
    }


DOUBTS = {  # value, interval, samples -> how many tell; limit 0.1, the margin is 0.02
    "above the limit at one end": ((0.08, (0.06, 0.12)), 100, 400),  # twice too wide: four times as many
    "below it at one end, though over": ((0.12, (0.09, 0.15)), 100, 225),  # one and a half times too wide
    "all below": ((0.08, (0.06, 0.099)), 100, None),
    "all above": ((0.12, (0.11, 0.15)), 100, None),
    "at the limit itself": ((0.1, (0.06, 0.12)), 100, None),
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_how_many_samples_tell_on_which_side_of_the_limit_it_is(kind: str) -> None:
    (value, interval), samples, wanted = DOUBTS[kind]
    found = Verdict(divergence=value, interval=interval, limit=0.1, samples=samples)
    assert found.samples_that_tell == (None if wanted is None else pytest.approx(wanted, abs=1))
    assert bool(found.doubt) is (wanted is not None)


def test_a_doubt_is_said_in_numbers() -> None:
    found = Verdict(divergence=0.08, interval=(0.06, 0.1201), limit=0.1, samples=100)
    said = "100 samples leave the error between 0.06 and 0.12, on both sides of the limit: about 400 can tell"
    assert found.doubt == said


def test_a_failure_leaves_no_doubt() -> None:
    assert failure("broken", limit=0.1, samples=3).doubt == ""


def test_what_is_over_a_limit_is_said_in_the_metrics_unit() -> None:
    found = output(1e-3, 2e-3)
    assert found.over(1e-4, "sqnr") == "output y (values, by squared error): signal to noise 30 dB is under 40 dB"
    assert found.over(1e-4, "kl") == "output y (values, by squared error): kl 0.001 is over 0.0001"
