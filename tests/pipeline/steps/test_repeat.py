"""Rounds: the first that breaks the budget is the last. The chain bears factors whose product is off by 5%."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.model import Model
from onnxcomp.recipe import Apply, Race, Repeat
from onnxcomp.verify import Verdict, Verifier

from .bending import BendWeights, FindNothing, MendWeights, assert_replays, factors, run

FACTORS = [1.005, 1.01, 1.02, 1.015]
BEND = Apply(BendWeights())


@pytest.fixture
def bent(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The factors by which weights were bent, in order."""
    found: list[float] = []
    bend = BendWeights.apply

    def noting(self: BendWeights, graph: Graph, context: Context) -> Outcome:
        found.append(self.by)
        return bend(self, graph, context)

    monkeypatch.setattr(BendWeights, "apply", noting)
    return found


def test_the_round_before_the_one_that_breaks_the_budget_is_kept(
    calib: str, bent: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three weights by 1.02 are off by 6%; one of them would hold, but a round is kept whole or not at all."""
    result = run(calib, Repeat((BEND,), {"by": FACTORS}))
    assert factors(result.model) == [1.01] * 3 and bent == FACTORS[:3]
    reports = result.receipt.steps
    assert [each.rewrite for each in reports] == [f"round {i} (by={FACTORS[i - 1]}): bend-weights" for i in (1, 2, 3)]
    assert [each.parameters for each in reports] == [{"by": each} for each in FACTORS[:3]]
    assert [each.decision for each in reports] == ["kept", "kept", "taken back"]
    [note] = [each for each in result.receipt.notes if "round 3" in each]
    assert note.startswith("4 rounds of bend-weights: round 3 was taken back, the rounds after it were not tried: ")
    assert [each.parameters["by"] for each in result.receipt.applied] == FACTORS[:2]
    assert_replays(result, calib, monkeypatch)


def test_rounds_that_hold_are_all_kept(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(calib, Repeat((BEND,), {"by": FACTORS[:2]}))
    assert [each.decision for each in result.receipt.steps] == ["kept", "kept"] and not result.receipt.notes
    assert_replays(result, calib, monkeypatch)


def test_the_passes_of_a_round_are_judged_together(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"by": [1.5, 2.0, 3.0], "mend-weights.left": [0.002, 0.012, 0.05]}
    result = run(calib, Repeat((BEND, Apply(MendWeights())), schedule))
    assert [each.decision for each in result.receipt.steps] == ["kept", "kept", "taken back"]
    assert factors(result.model) == [1.012] * 3 and len(result.receipt.applied) == 4
    assert_replays(result, calib, monkeypatch)


def test_rounds_judged_at_the_end_may_break_the_budget_on_the_way(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for verify, wanted in (("end", 1.015), ("each", 1.01)):
        result = run(calib, Repeat((BEND,), {"by": FACTORS}, verify=verify))
        assert factors(result.model) == [wanted] * 3
    result = run(calib, Repeat((BEND,), {"by": FACTORS}, verify="end"))
    assert len(result.receipt.steps) == 1 and len(result.receipt.applied) == 4
    assert_replays(result, calib, monkeypatch)


def test_a_round_that_finds_nothing_does_not_end_them(calib: str) -> None:
    result = run(calib, Repeat((BEND,), {"by": [1.01, 1.01, 1.015]}))
    assert [each.decision for each in result.receipt.steps] == ["kept", "nothing to do", "kept"]
    idle = run(calib, Repeat((Apply(FindNothing()),), count=2))
    assert [each.decision for each in idle.receipt.steps] == ["nothing to do"] * 2


def test_rounds_end_when_time_is_up(
    calib: str, slow: Callable[[float], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bent = slow(1.01)
    result = run(calib, Repeat((BEND,), {"by": [1.005, 1.01, 1.012, 1.015]}), budget=Budget(time_budget_s=1800))
    assert factors(result.model) == [1.01] * 3 and bent == [1.005, 1.01]
    left_out = [each for each in result.receipt.missed if "left out" in each]
    assert len(left_out) == 1
    assert_replays(result, calib, monkeypatch)


def test_exclusions_hold_in_every_round(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(calib, Repeat((replace(BEND, exclude=("w0",)),), {"by": FACTORS[:2]}, exclude=("w1",)))
    assert factors(result.model) == [1.0, 1.0, 1.01]
    assert_replays(result, calib, monkeypatch)


def test_a_last_round_that_does_not_hold_in_the_end_goes_alone(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, seen = Verifier.check, list[Model]()

    def checking(self: Verifier, model: Model) -> Verdict:
        again = any(model is each for each in seen)
        seen.append(model)
        found = check(self, model)
        spoilt = again and factors(model) == [1.01] * 3
        return replace(found, divergence=9.0, outputs=(), reasons=("spoilt",)) if spoilt else found

    monkeypatch.setattr(Verifier, "check", checking)
    result = run(calib, Repeat((BEND,), {"by": FACTORS[:2]}))
    assert factors(result.model) == [1.005] * 3
    assert [each.decision for each in result.receipt.steps] == ["kept", "taken back"]


def test_rounds_may_take_part_in_a_race(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.pipeline.model_search.timing import Course

    rounds = Repeat((BEND, Apply(MendWeights())), count=2, verify="end")
    by_bends = {1.0: 1.0, 1.001: 0.5}
    monkeypatch.setattr(
        Course,
        "milliseconds",
        lambda self, models, seconds=0.0: {name: by_bends[factors(each)[0]] for name, each in models.items()},
    )
    result = run(calib, Race((rounds,)))
    [report] = result.receipt.steps
    assert report.decision == "kept" and report.latency_ratio == 0.5 and len(result.receipt.applied) == 4
    assert_replays(result, calib, monkeypatch)
