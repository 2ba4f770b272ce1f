"""A time budget is kept, by decisions alone: a clock that only the work of a run puts forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import Budget, CalibrationData, Context, Recipe, optimize, replay
from onnxcomp.calibration.statistics.watch import watch
from onnxcomp.contract import Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.costs import Costs
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.safe_changes import apply_safely
from onnxcomp.pipeline.time_budget import LEAST_S, TimeBudget
from onnxcomp.recipe import Apply
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.verify import Verifier

WIDTH, LAYERS, SAMPLES = 64, 4, 60
CHECK_S, WEIGHT_S, RACE_S, MEASURE_S = 2.0, 0.25, 1.5, 8.0  # what work takes by the clock of these tests


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def layered() -> onnx.ModelProto:
    """Turned by one matrix after another, a Tanh between: of a size that storing codes pays."""
    rng = np.random.default_rng(0)
    nodes, weights_, x = [], [], "x"
    for index in range(LAYERS):
        values, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
        weights_.append(numpy_helper.from_array(values.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{index}"], [f"m{index}"], name=f"n{index}"))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"r{index}"]))
        x = f"r{index}"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights_)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calib") / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((SAMPLES, WIDTH)).astype(np.float32))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of runs, which stands but for their work: checks, weights that are rounded, races, measuring."""
    made = Clock()
    monkeypatch.setattr("onnxcomp.clock.time", SimpleNamespace(monotonic=made))

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*given: Any, **options: Any) -> Any:
            made.seconds += seconds
            return function(*given, **options)

        return slowly

    monkeypatch.setattr(Verifier, "check", taking(CHECK_S, Verifier.check))
    monkeypatch.setattr(Course, "milliseconds", taking(RACE_S, lambda self, models, **_: by_size(models)))
    monkeypatch.setattr("onnxcomp.pipeline.steps.judged.latency_ratio", taking(RACE_S, lambda *_: 0.9))
    costs = Costs()
    monkeypatch.setattr("onnxcomp.pipeline.api.compare_costs", taking(MEASURE_S, lambda *_: costs))
    for name in ("quantize-weights", "cluster-weights"):
        kind = get_pass(name)
        monkeypatch.setattr(kind, "edit", taking(WEIGHT_S, kind.edit))  # type: ignore[attr-defined]
    return made


def by_size(models: dict[str, Any]) -> dict[str, float]:
    return {name: float(each.size_bytes) for name, each in models.items()}


# --- what a budget leaves for what ---


def test_what_the_end_takes_is_kept_free(clock: Clock) -> None:
    time = TimeBudget(900.0, 1000.0, check_s=10.0, exact_s=20.0, open_s=5.0)
    assert time.end == 1900.0 and time.spent_s == 100.0
    assert time.measuring_s == 1 + 6 * 5.5
    assert time.deadline == 1900 - 3 * 10 - 20 - 34
    assert dataclasses.replace(time, is_measured=False).deadline == 1900 - 30 - 20
    assert dataclasses.replace(time, limit_s=100.0).deadline == 1000 - 30 - 20 - 10  # measuring gets a tenth at most


def test_an_exact_pass_may_begin_where_the_longest_so_far_would_fit(clock: Clock) -> None:
    time = TimeBudget(900.0, 200.0, is_measured=False, check_s=10.0)
    time.note_exact(30.0)
    time.note_exact(5.0)
    assert (time.exact_s, time.longest_s) == (35.0, 30.0)
    clock.seconds = 1100.0 - 2 * 10 - 30
    assert time.has_time_for_exact
    clock.seconds += 0.1
    assert not time.has_time_for_exact
    assert dataclasses.replace(time, exact_s=0.9 * LEAST_S).has_time_for_exact


def test_what_must_be_is_given_a_moment_after_the_end(clock: Clock) -> None:
    assert TimeBudget(900.0, 150.0).last_moment == 1050.0
    assert TimeBudget(900.0, 50.0).last_moment == 1000.0 + LEAST_S


def test_what_fits_in_is_allowed(clock: Clock) -> None:
    time = TimeBudget(990.0, 30.0)
    assert time.allows(20.0) and not time.allows(20.1)


def test_work_is_noted_by_what_it_took(clock: Clock) -> None:
    time = TimeBudget()
    with time.noting("check_s"):
        clock.seconds += 7
    assert time.check_s == 7.0


# --- whole runs ---


@pytest.mark.parametrize("limit_s", [1, 25, 45, 90, 250])
@pytest.mark.parametrize("recipe", ["default"])
def test_a_budget_is_kept_and_never_gives_nothing(recipe: str, limit_s: float, clock: Clock, calib: Path) -> None:
    result = optimize(layered(), recipe=recipe, calibration=calib, budget=Budget(time_budget_s=limit_s))
    took = clock.seconds - 1000
    assert took <= max(1.1 * limit_s, limit_s + 5, least(calib))
    assert result.receipt.result["ratio"] < 0.35
    again = replay(layered(), result.receipt, calibration=calib)
    assert again.model.to_bytes() == result.model.to_bytes()


def least(calib: Path) -> float:
    """What a run takes in any case here: its exact part verified, one candidate, verified in whole and in part, the
    nodes looked at, stored and verified."""
    return 6 * CHECK_S + LAYERS * WEIGHT_S


@pytest.mark.parametrize("limit_s", [1, 20, 45, 100])
def test_the_budget_of_a_race_is_kept(limit_s: float, clock: Clock, calib: Path) -> None:
    optimize(layered(), recipe="fast", calibration=calib, budget=Budget(time_budget_s=limit_s))
    assert clock.seconds - 1000 <= max(1.1 * limit_s, limit_s + 5, 6 * CHECK_S + 4 * RACE_S)


def test_without_time_weights_are_held_to_their_noise_and_the_receipt_says_so(clock: Clock, calib: Path) -> None:
    receipt = optimize(layered(), calibration=calib, budget=Budget(time_budget_s=1)).receipt
    assert [each for each in receipt.notes if "held to the noise of 8 bits, as without data" in each]
    assert "load time and latency were not measured: the time budget was used up" in receipt.notes
    [step] = [each for each in receipt.steps if each.rewrite.startswith("quantize-weights")]
    assert {each.what.split(" per ")[0] for each in step.changed} <= {"8 bits", "8 bits, a codebook"}


def test_a_search_that_was_cut_short_is_said(clock: Clock, calib: Path) -> None:
    receipt = optimize(layered(), calibration=calib, budget=Budget(time_budget_s=25)).receipt
    assert "quantize-weights | cluster-weights: the time budget ended the search" in receipt.notes


def test_more_time_gives_no_larger_result(clock: Clock, calib: Path) -> None:
    sizes = [
        optimize(layered(), calibration=calib, budget=Budget(time_budget_s=limit)).receipt.result["bytes"]
        for limit in (1, 120, 10**6)
    ]
    assert sizes[0] >= sizes[1] >= sizes[2] and sizes[0] > sizes[2]


def test_without_a_budget_nothing_is_left_out(clock: Clock, calib: Path) -> None:
    receipt = optimize(layered(), calibration=calib).receipt
    assert receipt.missed == [] and not [each for each in receipt.notes if "time" in each]


def test_the_budget_counts_from_when_the_command_started(clock: Clock, calib: Path) -> None:
    limit = Budget(time_budget_s=500)
    early = optimize(layered(), recipe="lossless", budget=limit, started=1000.0 - 800).receipt
    assert early.measured["seconds"] > 800 and [each for each in early.missed if each.startswith("time: 8")]


# --- exact passes ---


@dataclass(frozen=True, kw_only=True)
class Dawdle(Pass):
    """Take a minute and change a name."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        CLOCK[0].seconds += 60
        return Outcome()


CLOCK: list[Clock] = []


@pytest.mark.parametrize(("limit_s", "done"), [(50, 1), (125, 2), (190, 3), (250, 4)])
def test_exact_passes_end_with_the_time(limit_s: float, done: int, clock: Clock) -> None:
    CLOCK[:] = [clock]
    recipe = Recipe("slow", tuple(Apply(Dawdle()) for _ in range(4)))
    receipt = optimize(layered(), recipe=recipe, budget=Budget(time_budget_s=limit_s)).receipt
    assert len(receipt.steps) == done
    late = [each for each in receipt.missed if each.startswith("time: dawdle was left out")]
    assert bool(late) == (done < 4)


# --- what is under way when the deadline comes ---


def open_data(calib: Path) -> CalibrationData:
    return CalibrationData.open(str(calib), Session(layered().SerializeToString()).inputs)


@dataclass(frozen=True, kw_only=True)
class Looks(Context):
    """A context whose deadline comes after some looks at the clock."""

    looks: list[int] = dataclasses.field(default_factory=lambda: [0])

    def is_over(self) -> bool:
        self.looks[0] -= 1
        return self.looks[0] < 0


@pytest.mark.parametrize("name", ["quantize-static", "quantize-weights", "cluster-weights", "round-weights"])
def test_a_pass_whose_samples_have_not_all_run_changes_nothing(name: str, calib: Path) -> None:
    model, data = load(layered()), dataclasses.replace(open_data(calib), batch_size=8)
    after, outcome = apply_pass(model, get_pass(name)(), Looks(calibration=data, looks=[3]))
    assert after is model and outcome.is_cut_short and not outcome.changed


def test_what_was_half_observed_is_not_remembered(calib: Path) -> None:
    model, data = load(layered()), dataclasses.replace(open_data(calib), batch_size=8)
    apply_pass(model, get_pass("quantize-static")(), Looks(calibration=data, looks=[4]))
    once, _ = apply_pass(model, get_pass("quantize-static")(), Context(calibration=data))
    fresh, _ = apply_pass(load(layered()), get_pass("quantize-static")(), Context(calibration=data))
    assert once.to_bytes() == fresh.to_bytes()


def test_codes_are_stored_for_as_many_weights_as_there_is_time(calib: Path) -> None:
    rewrite = get_pass("store-integers")(bits=8, min_elements=2)
    _, outcome = apply_pass(load(layered()), rewrite, Looks(looks=[2]))
    assert len(outcome.changed) == 2 and outcome.is_cut_short


@dataclass(frozen=True, kw_only=True)
class Scramble(Pass):
    """Add a lot to every weight that may be touched."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for each in weights(graph):
            if context.selects(each.name):
                each.set(each.values + np.float32(0.5))
                outcome.change(each.name, "scrambled")
        return outcome


@pytest.mark.parametrize(("limit_s", "reason"), [(14, "there was no time for a part of it"), (10**6, "")])
def test_the_part_of_a_step_that_holds_is_sought_while_there_is_time(
    limit_s: float, reason: str, clock: Clock, calib: Path
) -> None:
    recipe = Recipe("r", (Apply(Scramble()),))
    [step] = optimize(layered(), recipe=recipe, calibration=calib, budget=Budget(time_budget_s=limit_s)).receipt.steps
    assert step.decision == "taken back" and step.reason.endswith(reason or step.reason)


def test_weights_that_nobody_had_time_to_look_at_are_not_changed(clock: Clock, calib: Path) -> None:
    model = load(layered())
    reach = Reach(Verifier(model, open_data(calib), target=Target.of("cpu")))
    held = apply_safely(model, Scramble(), Context(deadline=clock.seconds + 3 * CHECK_S), reach)
    assert held.model is model and held.outcome.is_cut_short and not held.outcome.changed
    held = apply_safely(model, Scramble(), Context(), reach)
    assert len(held.outcome.changed) == LAYERS and not held.outcome.is_cut_short


def test_watching_tells_before_each_batch(calib: Path) -> None:
    data, told = dataclasses.replace(open_data(calib), batch_size=30), []
    watch(load(layered()), ["m0"], data, lambda *_: None, progress=lambda done, total, what: told.append((done, total)))
    assert told == [(0, 60), (30, 60)]
