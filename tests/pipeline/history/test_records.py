"""What a receipt says of one application is enough to apply the pass again."""

from __future__ import annotations

import pytest

from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import RecipeError
from onnxcomp.pipeline.history.records import application, entries, pass_again, skipped, title
from onnxcomp.receipt import Application
from onnxcomp.registry import get_pass

QUANTIZE = get_pass("quantize-weights")
CHOICE = {"v": {"bits": 3}, "w": {"bits": 4}, "x": {"bits": 5}}


def outcome(*, is_cut_short: bool = False) -> Outcome:
    made = Outcome()
    made.change("x", "rounded", error=0.1)
    made.change("v", "rounded")
    made.skip("b", "too small")
    made.is_cut_short = is_cut_short
    return made


def test_what_was_asked_for_is_applied_again() -> None:
    context = Context(exclude=("b*",))
    plain = application(QUANTIZE(bits=6), context, outcome())
    assert (plain.rewrite, plain.parameters["bits"], plain.exclude, plain.choice) == (
        "quantize-weights", 6, ["b*"], None
    )  # fmt: skip
    assert application(QUANTIZE(), context, outcome(), CHOICE).choice == CHOICE


def test_of_a_pass_that_ran_out_of_time_only_what_it_came_to_is_applied_again() -> None:
    late = outcome(is_cut_short=True)
    assert application(QUANTIZE(), Context(), late).choice == {"x": {}, "v": {}}
    assert application(QUANTIZE(), Context(), late, CHOICE).choice == {"x": {"bits": 5}, "v": {"bits": 3}}
    assert application(QUANTIZE(), Context(), late, {"v": {"bits": 3}}).choice == {"v": {"bits": 3}}


def test_a_pass_is_made_again_from_its_parameters_and_no_others() -> None:
    made = application(QUANTIZE(bits=6), Context(), outcome())
    assert pass_again(QUANTIZE, made) == QUANTIZE(bits=6)
    with pytest.raises(RecipeError, match="quantize-weights: the receipt has shade"):
        pass_again(QUANTIZE, Application("quantize-weights", {"bits": 6, "shade": 1}))


def test_a_title_names_what_is_not_the_default() -> None:
    assert title([QUANTIZE(bits=6), get_pass("remove-noops")()]) == "quantize-weights bits=6 + remove-noops"
    assert title([QUANTIZE()]) == "quantize-weights"


def test_changes_and_what_was_left_alone_are_told_apart() -> None:
    changed, left = entries(outcome()), skipped(outcome())
    assert [(each.name, each.what, each.details) for each in changed] == [
        ("x", "rounded", {"error": 0.1}), ("v", "rounded", {})
    ]  # fmt: skip
    assert [(each.name, each.what) for each in left] == [("b", "too small")]
