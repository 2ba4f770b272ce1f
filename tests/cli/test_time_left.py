"""How long what is under way still takes, told from how far it has come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from onnxcomp.cli.printing.screen import progress
from onnxcomp.cli.printing.time_left import TimeLeft, in_words


class Clock:
    """A clock that stands until it is put forward."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def told(*events: tuple[float, int, int]) -> list[float]:
    """What is left after each of (seconds since the one before, done, total)."""
    clock = Clock()
    left = TimeLeft(clock)
    found = []
    for seconds, done, total in events:
        clock.seconds += seconds
        found.append(left.told(done, total))
    return found


def test_a_count_goes_on_as_it_went() -> None:
    assert told((0, 0, 10), (10, 1, 10), (10, 2, 10), (20, 3, 10)) == [0, 0, 80, pytest.approx(40 / 3 * 7)]


def test_nothing_is_told_of_what_has_just_begun() -> None:
    assert told((0, 0, 100), (1, 1, 100), (1, 2, 100), (1, 3, 100), (2, 4, 100)) == [0, 0, 0, 0, pytest.approx(120)]


def test_time_that_passes_within_a_part_is_counted_down() -> None:
    assert told((0, 0, 4), (10, 1, 4), (10, 2, 4), (5, 0, 1), (100, 0, 1)) == [0, 0, 20, 15, 0]


def test_of_counts_inside_each_other_the_longer_one_is_told() -> None:
    weights = [(0.0, 0, 5), (2.0, 1, 5), (2.0, 2, 5), (2.0, 3, 5), (2.0, 4, 5)]
    *_, left = told((0, 0, 30), *weights, (2, 1, 30), *weights, (2, 2, 30), *weights[:4])
    assert left == 10 * 28 - 6


def test_a_count_that_begins_anew_is_another_one() -> None:
    *_, before, after = told((0, 0, 8), (10, 1, 8), (10, 2, 8), (10, 0, 8))
    assert (before, after) == (60, 0)


def test_what_is_no_count_ends_those_at_their_last_part() -> None:
    assert told((0, 0, 4), (10, 1, 4), (10, 2, 4), (0, 0, 1), (10, 3, 4), (1, 0, 1))[-3:] == [20, 10, 0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, ""), (4.9, ""), (5, "about 10 s left"), (44, "about 40 s left"), (94, "about 90 s left"),
        (95, "about 2 min left"), (3599, "about 60 min left"), (2 * 3600, "about 2.0 h left"),
    ],
)  # fmt: skip
def test_words_are_no_more_exact_than_they_can_be(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_lines_say_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr("onnxcomp.clock.time", SimpleNamespace(monotonic=clock))
    with progress(quiet=False) as tell:
        for done in range(4):
            tell(done, 4, f"measuring w{done}")
            clock.seconds += 10
        tell(0, 1, "store-compact")
    assert capsys.readouterr().err.splitlines() == [
        "   10 s  measuring w1 (1 of 4)",
        "   20 s  measuring w2 (2 of 4), about 20 s left",
        "   30 s  measuring w3 (3 of 4), about 10 s left",
        "   40 s  store-compact",
    ]
