"""Numbers as people read them."""

from __future__ import annotations

import pytest

from onnxcomp import formats


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (4.2e9, "4.2 GB")],
)
def test_sizes(value: float, words: str) -> None:
    assert formats.size(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (1e-17, "0"), (0.00123, "0.00123"), (0.0000123, "1.23e-05"), (1234.4, "1,234"), (12.34, "12.3")],
)
def test_three_digits(value: float, words: str) -> None:
    assert formats.significant(value) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (400, 100, "4x smaller"),
        (100, 120, "1.2x larger"),
        (1000, 1001, "1 B larger"),
        (9e6, 8.99e6, "10 kB smaller"),
        (7, 7, "same size"),
        (0, 5, "same size"),
    ],
)
def test_how_much_smaller(before: int, after: int, words: str) -> None:
    assert formats.smaller(before, after) == words


@pytest.mark.parametrize(("value", "words"), [(0.5, "0.5 s"), (75, "1 min 15 s"), (7300, "2 h 1 min")])
def test_seconds(value: float, words: str) -> None:
    assert formats.seconds(value) == words


def test_plurals() -> None:
    assert [formats.count(n, noun) for n, noun in ((1, "weight"), (2, "weight"), (3, "batch"))] == [
        "1 weight", "2 weights", "3 batches",
    ]  # fmt: skip


def test_long_names_keep_both_ends() -> None:
    found = formats.shortened("a" * 40 + "middle" + "z" * 40, 21)
    assert found == "a" * 9 + "..." + "z" * 9
    assert formats.shortened("short") == "short"


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.5, "2x faster"), (1.2, "1.2x SLOWER"), (1.0, "unchanged"), (0.96, "unchanged")]
)
def test_what_a_ratio_of_times_comes_to(ratio: float, words: str) -> None:
    assert formats.faster(ratio) == words


def test_a_ratio_within_the_noise_is_no_change() -> None:
    assert [formats.faster(ratio, 0.25) for ratio in (0.81, 1.24, 1.26)] == ["unchanged", "unchanged", "1.26x SLOWER"]


@pytest.mark.parametrize(
    ("before", "after", "words"), [(1000, 615, "-385 B"), (615, 1_000_615, "+1 MB"), (5, 5, "")]
)
def test_what_a_step_takes_away(before: int, after: int, words: str) -> None:
    assert formats.gained(before, after) == words


@pytest.mark.parametrize(("power", "words"), [(1e-3, "30 dB"), (0.1, "10 dB"), (0.0, "no noise")])
def test_noise_over_signal_in_decibels(power: float, words: str) -> None:
    assert formats.decibels(power) == words
