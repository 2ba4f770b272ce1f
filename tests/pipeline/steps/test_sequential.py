"""Sequences judged at their end. The chain bears factors whose product is off by 5%, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.budget import Budget
from onnxcomp.contract import Effect, Exact, Pass
from onnxcomp.pipeline.steps import judged
from onnxcomp.recipe import Apply, Race, Recipe, Sequential, Step
from tests.pipeline.chain import FEATURES, chain

from .bending import (
    BendWeights,
    CopyInputs,
    FindNothing,
    HalveFirst,
    MendWeights,
    assert_replays,
    factors,
    optimize,
    run,
)


def end(*passes: Pass, **step: object) -> Sequential:
    return Sequential(tuple(map(Apply, passes)), "end", **step)  # type: ignore[arg-type]


def test_a_whole_that_holds_is_kept_though_its_first_part_breaks_the_budget(
    calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(calib, end(BendWeights(), MendWeights()))
    [report] = result.receipt.steps
    assert (report.rewrite, report.decision) == ("bend-weights + mend-weights", "kept")
    assert factors(result.model) == [1.001] * 3 and report.divergence is not None
    assert [each.rewrite for each in result.receipt.applied] == ["bend-weights", "mend-weights"]
    assert_replays(result, calib, monkeypatch)


def test_the_same_steps_judged_one_by_one_are_not_kept(calib: str) -> None:
    result = run(calib, Sequential((Apply(BendWeights()), Apply(MendWeights()))))
    assert [each.decision for each in result.receipt.steps] == ["taken back", "nothing to do"]
    assert factors(result.model) == [1.0] * 3


def test_what_breaks_the_budget_together_is_kept_in_part(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two alone holds; 1.03 twice is off by 6%."""
    passes = BendWeights(by=1.03, only="w0"), BendWeights(by=1.03, only="w2")
    for each in passes:
        assert run(calib, each).receipt.steps[0].decision == "kept"
    result = run(calib, end(*passes))
    [report] = result.receipt.steps
    assert report.decision == "kept in part" and report.reason.startswith("1 of 2 taken back: whole, output y")
    assert sorted(factors(result.model)) == [1.0, 1.0, 1.03]
    kept, taken = {each.name for each in report.changed}, {each.name for each in report.taken_back}
    assert len(kept) == len(taken) == 1 and kept | taken == {"w0", "w2"}
    assert result.receipt.verdict["passed"]
    assert_replays(result, calib, monkeypatch)


def test_a_part_goes_through_all_passes(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mending leaves 3% to each of three weights, of which one can stay; what is bent and not mended is none."""
    result = run(calib, end(BendWeights(), MendWeights(left=0.03)))
    assert result.receipt.steps[0].decision == "kept in part"
    assert sorted(factors(result.model)) == [1.0, 1.0, 1.03]
    assert [each.choice for each in result.receipt.applied] == [{result.receipt.steps[0].changed[0].name: {}}] * 2
    assert_replays(result, calib, monkeypatch)


def test_a_name_that_one_pass_keeps_lets_no_other_pass_act(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight goes by the names of the nodes that read it, too; all nodes stay copied, and one weight bent."""
    result = run(calib, end(BendWeights(by=1.03), CopyInputs()))
    assert sorted(factors(result.model)) == [1.0, 1.0, 1.03]
    assert sum(node.op_type == "Identity" for node in result.model.proto.graph.node) == 3
    assert_replays(result, calib, monkeypatch)


def test_what_holds_in_no_part_is_taken_back_whole_and_named(calib: str) -> None:
    result = run(calib, end(BendWeights(), MendWeights(left=0.2)))
    [report] = result.receipt.steps
    assert (report.rewrite, report.decision) == ("bend-weights + mend-weights left=0.2", "taken back")
    assert "is over 0.03" in report.reason and not report.changed and not result.receipt.applied
    assert factors(result.model) == [1.0] * 3


def test_a_pass_that_finds_nothing_leaves_the_rest_to_go_on(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(calib, end(FindNothing(), BendWeights(), FindNothing(), MendWeights()))
    assert factors(result.model) == [1.001] * 3
    assert [each.rewrite for each in result.receipt.applied] == ["bend-weights", "mend-weights"]
    assert_replays(result, calib, monkeypatch)
    result = run(calib, end(FindNothing(), HalveFirst(), BendWeights(), MendWeights()))
    assert factors(result.model) == [0.5005, 2.002, 1.001]  # what lost nothing does not count as having lost something
    assert_replays(result, calib, monkeypatch)
    [report] = run(calib, end(FindNothing(), FindNothing())).receipt.steps
    assert report.decision == "nothing to do"


def test_repairs_see_what_exact_passes_of_the_sequence_left(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against the original, they would undo the halving and the doubling."""
    result = run(calib, end(HalveFirst(), BendWeights(), MendWeights()))
    assert factors(result.model) == [0.5005, 2.002, 1.001]
    assert_replays(result, calib, monkeypatch)


def test_exact_passes_are_no_part_to_take_back(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what one does would change the outputs."""
    result = run(calib, end(HalveFirst(), BendWeights(by=1.03)))
    assert result.receipt.steps[0].decision == "kept in part"
    assert factors(result.model) in ([0.515, 2.0, 1.0], [0.5, 2.06, 1.0], [0.5, 2.0, 1.03])
    assert_replays(result, calib, monkeypatch)


def test_what_no_sample_reaches_is_left_out_of_the_part_as_well(tmp_path: Path) -> None:
    """The fourth matrix multiplies a state that is zero."""
    model = chain(4)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", FEATURES]))
    model.graph.node[3].input[0] = "z"
    model.graph.node[3].output[0] = "t3"
    model.graph.node.append(helper.make_node("Add", ["t2", "t3"], ["y"], name="sum"))
    x = np.random.default_rng(1).normal(size=(60, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x, z=np.zeros_like(x))
    recipe = Recipe.of(end(BendWeights(by=1.03), FindNothing()))
    result = optimize(model, recipe=recipe, calibration=str(tmp_path / "c.npz"), measure=False)
    [report] = result.receipt.steps
    assert report.decision == "kept in part" and len(report.changed) == 1
    reasons = {each.name: each.what for each in report.taken_back}
    assert reasons.pop("w3") == "no sample reaches it" and len(reasons) == 2
    assert "w3: no sample reaches it; left as before" in result.receipt.notes


def test_exclusions_of_the_sequence_and_of_a_pass_in_it_hold(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Apply(BendWeights(by=1.02), exclude=("w0",)), Apply(BendWeights(by=1.03))
    result = run(calib, Sequential(steps[:1] * 2, "end", exclude=("w1",)))
    assert factors(result.model) == [1.0, 1.0, 1.02]
    result = run(calib, Sequential(steps, "end", exclude=("w1", "w2")))
    assert factors(result.model) == [1.03, 1.0, 1.0]
    assert_replays(result, calib, monkeypatch)


def test_what_there_is_no_time_for_is_left_out_and_said(
    calib: str, slow: Callable[[float], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(1.01)
    result = run(calib, end(BendWeights(by=1.01), MendWeights()), BendWeights(), budget=Budget(time_budget_s=1800))
    assert result.receipt.missed[:2] == [
        "time: mend-weights was left out, the time budget was used up",
        "time: bend-weights was left out, the time budget was used up",
    ]
    assert factors(result.model) == [1.01] * 3 and result.receipt.steps[0].decision == "kept in part"
    assert_replays(result, calib, monkeypatch)


@pytest.mark.parametrize(("hours", "bendings"), [(0.5, 1), (2.5, 3)])
def test_the_search_for_a_part_ends_when_time_is_up(
    calib: str, slow: Callable[[float], list[float]], hours: float, bendings: int
) -> None:
    """Bending takes an hour. There is a part that would hold, for which each weight is bent alone first."""
    bent = slow(1.03)
    steps = end(BendWeights(by=1.03), BendWeights(by=1.02, only="w0"))
    result = run(calib, steps, budget=Budget(time_budget_s=3600 * hours))
    [report] = result.receipt.steps
    assert report.decision == "taken back" and report.reason.endswith("there was no time for a part of it")
    assert len([each for each in bent if each == 1.03]) == bendings and factors(result.model) == [1.0] * 3
    assert run(calib, steps).receipt.steps[0].decision == "kept in part"


def test_a_sequence_that_claims_speed_and_gives_none_is_taken_back(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class BendFast(BendWeights):
        """Bend in the name of speed."""

        effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)

    monkeypatch.setattr(judged, "latency_ratio", lambda *given: 1.5)
    [report] = run(calib, end(BendFast(), MendWeights()), length=1).receipt.steps
    assert report.decision == "kept"  # it saves bytes, too, and these are the goal
    recipe = Recipe("r", (end(BendFast(), MendWeights()),), goal="latency")
    [report] = optimize(chain(1), recipe=recipe, calibration=calib, measure=False).receipt.steps
    assert report.decision == "taken back" and "no faster on cpu: latency ratio 1.50" in report.reason


def test_a_sequence_may_hold_steps_that_judge_for_themselves(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = end(BendWeights(only="w1"), MendWeights(left=0.01))
    steps: tuple[Step, ...] = (Apply(BendWeights(by=1.01, only="w0")), inner, Race.of([BendWeights(by=1.2)]))
    result = run(calib, Sequential(steps))
    assert [each.decision for each in result.receipt.steps] == ["kept", "kept", "taken back"]
    assert factors(result.model) == [1.01, 1.01, 1.0]
    assert_replays(result, calib, monkeypatch)
