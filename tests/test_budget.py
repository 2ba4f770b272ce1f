"""onnxcomp.budget: the words of the command line."""

import pytest

from onnxcomp.budget import Budget, Drop, Goal, parse_drop, parse_latency, parse_size, parse_time
from onnxcomp.errors import ParameterError


@pytest.mark.parametrize(
    ("text", "limit"),
    [("4x", 250), ("25%", 250), ("5MB", 5e6), ("5MiB", 5 * 2**20), ("120000", 120_000), (" 1.5 kB ", 1500)],
)
def test_sizes(text: str, limit: float) -> None:
    assert parse_size(text).limit(1000) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "limit"), [("0.5x", 10), ("50%", 10), ("5ms", 5), ("200us", 0.2), ("1s", 1e3)]
)
def test_latencies(text: str, limit: float) -> None:
    assert parse_latency(text).limit(20) == pytest.approx(limit)


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90", 90), ("1h30m", 5400), ("0.5h", 1800)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "original", "limit"),
    [("0.01", 0.9, 0.01), ("1%", 0.9, 0.009), ("1%", None, 0.01), ("30dB", None, 1e-3), ("5e-3", 1.0, 5e-3)],
)
def test_drops(text: str, original: float | None, limit: float) -> None:
    assert parse_drop(text).limit(original) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("target_size", "0.5x"),
        ("target_size", "120%"),
        ("target_size", "five"),
        ("target_size", "5 parsecs"),
        ("target_latency", "2x"),
        ("target_latency", "5"),
        ("time_budget", "10q"),
        ("time_budget", "0s"),
        ("time_budget", "1.2.3s"),
        ("max_drop", "1 point"),
        ("max_drop", "-1"),
        ("max_drop", "1e400"),
        ("target_size", "3"),
        ("target_size", "1e400"),
        ("target_size", "1e309MB"),
        ("target_latency", "1e400ms"),
        ("time_budget", "9" * 400),
    ],
)
def test_refuses_with_the_option_and_the_value(option: str, text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Budget.parse(**{option: text})
    assert option.replace("_", "-") in str(caught.value)
    assert repr(text) in str(caught.value)


def test_whole_budget() -> None:
    budget = Budget.parse(max_drop="1%", target_size="4x", target_latency="0.5x", time_budget="10m")
    assert budget == Budget(
        max_drop=Drop(0.01, True),
        target_size=Goal(0.25, True),
        target_latency=Goal(0.5, True),
        time_budget_s=600,
    )
