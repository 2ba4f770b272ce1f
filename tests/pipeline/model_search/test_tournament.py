"""Trials: the fastest rewrite within the budget is kept, and the rest says why it lost. No clock decides here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.model_search import node_ablation as node_choice
from onnxcomp.pipeline.model_search import tournament
from onnxcomp.pipeline.model_search.contender import Contender, main_pass
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.model_search.tournament import Trials
from onnxcomp.pipeline.model_search.tuning import Ablation
from onnxcomp.receipt import Receipt, StepReport
from onnxcomp.recipe import Apply, Race, Recipe
from tests.pipeline.chain import FEATURES, chain

replaying = importlib.import_module("onnxcomp.pipeline.replay")


@dataclass(frozen=True, kw_only=True)
class TintNodes(Pass):
    """Put a Mul by one plus ``error`` before every MatMul, in the name of speed."""

    effect = Effect(shrinks=("latency",), exact=Exact.NOWHERE)

    error: float = parameter(0.0, help="how far from one")
    mark: str = parameter("fast", help="what the nodes are called after")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for node in list(graph.main.graph.nodes):
            if node.op != "MatMul" or not context.selects(node_key(graph.main, node)):
                continue
            factor = graph.constant(graph.main, "factor", np.float32(1 + self.error))
            made = graph.variable("tinted")
            graph.node(
                graph.main, "Mul", [node.inputs[0], factor], [made], name=f"{self.mark}_{node.name}", before=node
            )
            node.inputs[0] = made
            outcome.change(node_key(graph.main, node), "tinted")
        return outcome


@dataclass(frozen=True, kw_only=True)
class SlowDown(Pass):
    """Put an Identity without a name before the first node."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        first = graph.main.graph.nodes[0]
        made = graph.variable("same")
        graph.node(graph.main, "Identity", [first.inputs[0]], [made], before=first)
        first.inputs[0] = made
        outcome.change("n0", "slowed down")
        return outcome


@dataclass
class Stopwatch:
    """Latencies by what a model's nodes are called, instead of a clock."""

    took: Callable[[list[str]], float]
    races: list[int] = field(default_factory=list)

    def milliseconds(self, models: Mapping[str, Model]) -> dict[str, float]:
        self.races.append(len(models))
        return {name: self.took([node.name for node in each.proto.graph.node]) for name, each in models.items()}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], float]], Stopwatch]:
    def start(took: Callable[[list[str]], float]) -> Stopwatch:
        made = Stopwatch(took)
        monkeypatch.setattr(Course, "milliseconds", lambda self, models, seconds=0.0: made.milliseconds(models))
        return made

    return start


@pytest.fixture
def calib(tmp_path: Path) -> str:
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).normal(size=(60, FEATURES)).astype(np.float32))
    return str(path)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replaying find the pass of this file."""
    shipped = replaying.get_pass
    monkeypatch.setattr(replaying, "get_pass", lambda name: TintNodes if name == "tint-nodes" else shipped(name))


def marked(names: list[str], mark: str) -> int:
    return sum(name.startswith(f"{mark}_") for name in names)


def run(
    calib: str, *trials: Pass | tuple[Pass, ...], length: int = 3, **options: object
) -> tuple[StepReport, Receipt, Model]:
    given = [each if isinstance(each, tuple) else (each,) for each in trials]
    recipe = Recipe("r", (Race.of(*given),), goal="latency")
    result = optimize(chain(length), recipe=recipe, calibration=calib, measure=False, **options)  # type: ignore[arg-type]
    return result.receipt.steps[0], result.receipt, result.model


def by_marks(**speedups: float) -> Callable[[list[str]], float]:
    """A model takes 1 ms, times the speed-up of each mark that its nodes carry."""
    return lambda names: float(np.prod([ratio for mark, ratio in speedups.items() if marked(names, mark)]))


def test_the_fastest_within_the_budget_is_kept(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(quick=0.5, quicker=0.4, slow=1.2))
    report, _, model = run(
        calib,
        TintNodes(mark="slow"),
        TintNodes(mark="quick"),
        TintNodes(mark="quicker"),
        TintNodes(error=9, mark="bad"),
    )
    assert report.decision == "kept" and report.latency_ratio == 0.4
    assert marked([node.name for node in model.proto.graph.node], "quicker") == 3
    outcomes = {each.name.split("mark=")[1]: each.outcome for each in report.tried}
    assert outcomes["quicker"] == "kept" and outcomes["slow"] == outcomes["bad"] == "no faster"
    assert outcomes["quick"] == "slower"


def test_what_breaks_the_budget_is_kept_in_part_where_that_is_faster(
    calib: str, watch: Callable[..., Stopwatch]
) -> None:
    watch(lambda names: 1 - 0.1 * marked(names, "bad"))
    report, receipt, model = run(calib, TintNodes(error=0.04, mark="bad"), length=4)
    assert report.decision == "kept in part"
    assert 0 < len(report.changed) < 4 and len(report.changed) + len(report.taken_back) == 4
    assert "divergence" in report.tried[0].outcome and report.tried[1].outcome == "kept"
    again = replay(chain(4), receipt, calibration=calib)
    assert again.model.to_bytes() == model.to_bytes()


def test_fallbacks_are_tried_where_the_fastest_breaks_the_budget(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(bad=0.4, good=0.6, spare=0.5))
    fallbacks = [[TintNodes(mark="spare")]]
    step = Race.of([TintNodes(error=9, mark="bad")], [TintNodes(mark="good")], fallbacks=fallbacks)
    options = {"calibration": calib, "measure": False}
    report = optimize(chain(1), recipe=Recipe("r", (step,)), **options).receipt.steps[0]  # type: ignore[arg-type]
    assert report.parameters["mark"] == "spare"
    step = Race.of([TintNodes(mark="good")], fallbacks=fallbacks)
    report = optimize(chain(1), recipe=Recipe("r", (step,)), **options).receipt.steps[0]  # type: ignore[arg-type]
    assert report.parameters["mark"] == "good" and len(report.tried) == 1


def with_ahead(calib: str, winner: TintNodes, *ahead: TintNodes) -> tuple[StepReport, Receipt, Model]:
    step = Race.of([winner], ahead=[[each] for each in ahead])
    result = optimize(chain(3), recipe=Recipe("r", (step,), goal="latency"), calibration=calib, measure=False)
    return result.receipt.steps[0], result.receipt, result.model


def test_passes_go_ahead_of_the_winner_as_long_as_the_budget_bears_them(
    calib: str, watch: Callable[..., Stopwatch]
) -> None:
    """Each in place of the one before it, and the first that breaks the budget is the last that is tried."""
    watch(by_marks(fast=0.5, mild=0.9, strong=0.8, harmful=0.7, unasked=0.6))
    ahead = [TintNodes(mark="mild"), TintNodes(mark="strong"), TintNodes(mark="harmful", error=9)]
    report, receipt, model = with_ahead(calib, TintNodes(mark="fast"), *ahead, TintNodes(mark="unasked"))
    assert report.latency_ratio == pytest.approx(0.4)
    assert [each.parameters["mark"] for each in receipt.applied] == ["strong", "fast"]
    outcomes = {each.name: each.outcome for each in report.tried}
    assert outcomes["tint-nodes mark=mild + tint-nodes"] == "slower"
    assert "divergence" in outcomes["tint-nodes error=9 mark=harmful + tint-nodes"] and len(outcomes) == 4
    assert replay(chain(3), receipt, calibration=calib).model.to_bytes() == model.to_bytes()


def test_nothing_goes_ahead_of_a_winner_that_uses_most_of_the_budget(
    calib: str, watch: Callable[..., Stopwatch]
) -> None:
    watch(by_marks(fast=0.5, mild=0.9))
    report, _, _ = with_ahead(calib, TintNodes(mark="fast", error=0.015), TintNodes(mark="mild"))
    assert report.divergence is not None and report.divergence > 0.5 * 0.03
    assert [each.outcome for each in report.tried] == ["kept"]


def test_nothing_goes_ahead_in_a_large_model(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(by_marks(fast=0.5, mild=0.8))
    monkeypatch.setattr(tournament, "values_of", lambda size_bytes: 2 * 10**6 + 1)
    report, _, _ = with_ahead(calib, TintNodes(mark="fast"), TintNodes(mark="mild"))
    assert report.latency_ratio == 0.5 and len(report.tried) == 1


def test_what_goes_ahead_and_gains_nothing_is_left_out(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(fast=0.5, mild=0.98))
    report, receipt, _ = with_ahead(calib, TintNodes(mark="fast"), TintNodes(mark="mild"))
    assert [each.parameters["mark"] for each in receipt.applied] == ["fast"]
    assert report.tried[-1].outcome == "slower"


def test_where_nothing_wins_what_goes_ahead_may_win_alone(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(even=1.0, mild=0.8))
    report, receipt, _ = with_ahead(calib, TintNodes(mark="even"), TintNodes(mark="mild"))
    assert [each.parameters["mark"] for each in receipt.applied] == ["mild"] and report.latency_ratio == 0.8


def test_nothing_faster_leaves_the_model_as_it_was(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(even=0.99))
    report, receipt, model = run(calib, TintNodes(mark="even"))
    assert report.decision == "taken back" and "nothing that was tried is faster" in report.reason
    assert not receipt.applied and model.proto == chain(3)


def test_of_two_as_fast_the_nearer_is_kept(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(near=0.502, far=0.5))
    report, _, _ = run(calib, TintNodes(error=0.01, mark="far"), TintNodes(error=0.005, mark="near"))
    assert report.parameters["mark"] == "near"


def test_of_two_as_fast_the_nearer_is_kept_though_neither_harms(calib: str, watch: Callable[..., Stopwatch]) -> None:
    """Both take up a small part of the budget; the nearer one is the larger file, and a little slower."""
    watch(by_marks(nearest_of_all=0.502, far=0.5))
    report, _, _ = run(calib, TintNodes(error=0.005, mark="far"), TintNodes(error=0.003, mark="nearest_of_all"))
    assert report.parameters["mark"] == "nearest_of_all"
    assert report.tried[0].outcome.startswith("as fast within noise; error ")


def test_of_two_as_fast_and_harmless_the_smaller_is_kept(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(s=0.502, longer_name=0.5))
    report, _, _ = run(calib, TintNodes(mark="longer_name"), TintNodes(error=1e-4, mark="s"))
    assert report.parameters["mark"] == "s"
    more = report.tried[0].bytes_after / report.tried[1].bytes_after - 1
    assert report.tried[0].outcome == f"as fast within noise; {100 * more:.2g}% more bytes"


def test_what_the_time_budget_leaves_out_is_not_built(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building a candidate takes a minute, nothing else takes any time."""
    watch(by_marks(one=0.5, two=0.4, three=0.3))
    built: list[str] = []
    shipped = TintNodes.apply

    seconds = [0.0]

    def building(self: TintNodes, graph: Graph, context: Context) -> Outcome:
        built.append(self.mark)
        seconds[0] += 60
        return shipped(self, graph, context)

    monkeypatch.setattr(TintNodes, "apply", building)
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    trials = [TintNodes(mark=mark) for mark in ("one", "two", "three")]
    report, _, _ = run(calib, *trials, budget=Budget(time_budget_s=100))
    late = [each.name for each in report.tried if each.outcome == "not tried: the time budget was used up"]
    assert built == ["one", "two"] and len(late) == 1 and report.parameters["mark"] in built


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Halve what a MatMul gives and double it behind."""

    effect = Effect(shrinks=("latency",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight, factor in zip(weights(graph), (0.5, 2.0), strict=False):
            weight.set(weight.values * np.float32(factor))
            outcome.change(weight.name, "scaled")
        return outcome


@dataclass(frozen=True, kw_only=True)
class Repair(Pass):
    """Put weights back to what the original has."""

    effect = Effect(shrinks=("latency",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        assert context.reference is not None
        before = {each.name: each.values for each in weights(open_graph(context.reference.model))}
        outcome = Outcome()
        for weight in weights(graph):
            weight.set(np.asarray(before[weight.name] * np.float32(1.001)))
            outcome.change(weight.name, "repaired")
        return outcome


def test_a_repair_sees_what_an_exact_pass_of_its_trial_left_and_so_it_replays(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(by_marks(fast=0.5))
    own = {each.pass_name(): each for each in (Equalize, TintNodes, Repair)}
    monkeypatch.setattr(replaying, "get_pass", lambda name: own[name])
    report, receipt, model = run(calib, (Equalize(), TintNodes(), Repair()))
    assert report.decision == "kept" and [each.rewrite for each in receipt.applied] == list(own)
    values = {each.name: numpy_helper.to_array(each) for each in model.proto.graph.initializer}
    original = {each.name: numpy_helper.to_array(each) for each in chain(3).graph.initializer}
    assert np.allclose(values["w0"], 0.5 * original["w0"], rtol=0.01)
    assert replay(chain(3), receipt, calibration=calib).model.to_bytes() == model.to_bytes()


def test_a_step_won_by_an_exact_pass_has_lost_nothing(calib: str, watch: Callable[..., Stopwatch]) -> None:
    """What repairs after it holds the model against that pass's result, in the run and in the replay."""
    watch(lambda names: 1.0)
    seen: list[Model | None] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(TintNodes):
        """Note what the reference is."""

        def apply(self, graph: Graph, context: Context) -> Outcome:
            seen.append(None if context.reference is None else context.reference.model)
            return super().apply(graph, context)

    watch(lambda names: 0.5 if any(name == "" for name in names) else 1.0)
    fast = Race.of([SlowDown()])
    optimize(chain(2), recipe=Recipe.of(fast, Watching(mark="x")), calibration=calib, measure=False)
    assert seen[0] is not None and any(node.op_type == "Identity" for node in seen[0].proto.graph.node)


def test_a_trial_that_ruins_what_no_sample_reaches_leaves_that_out(
    tmp_path: Path, watch: Callable[..., Stopwatch]
) -> None:
    """The second matrix multiplies a state that is zero; speed is had at the first alone."""
    watch(lambda names: 1.0 - 0.3 * marked(names, "fast"))
    model = chain(2)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", FEATURES]))
    model.graph.node[1].input[0] = "z"
    model.graph.node[1].output[0] = "t1"
    model.graph.node.append(helper.make_node("Add", ["t0", "t1"], ["y"], name="sum"))
    x = np.random.default_rng(1).normal(size=(60, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x, z=np.zeros_like(x))
    recipe = Recipe("r", (Race.of([TintNodes()]),), goal="latency")
    result = optimize(model, recipe=recipe, calibration=str(tmp_path / "c.npz"), measure=False)
    [report] = result.receipt.steps
    assert [each.name for each in report.changed] == ["n0"] and report.taken_back[0].name == "n1"
    assert "w1: no sample reaches it; left as before" in result.receipt.notes
    again = replay(model, result.receipt, calibration=str(tmp_path / "c.npz"))
    assert again.model.to_bytes() == result.model.to_bytes()


def test_a_latency_goal_that_is_reached_leaves_accuracy(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(near=0.7, far=0.5))
    trials = TintNodes(error=0.01, mark="far"), TintNodes(error=0.005, mark="near")
    report, _, _ = run(calib, *trials, budget=Budget.parse(target_latency="0.8x"))
    assert report.parameters["mark"] == "near"
    report, _, _ = run(calib, *trials, budget=Budget.parse(target_latency="0.6x"))
    assert report.parameters["mark"] == "far"


def test_passes_in_turn_are_one_trial_and_replay(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(first=0.8, second=0.8))
    both = TintNodes(mark="first"), TintNodes(mark="second")
    report, receipt, model = run(calib, both[0], both)
    assert report.latency_ratio == pytest.approx(0.64)
    assert [each.parameters["mark"] for each in receipt.applied] == ["first", "second"]
    assert replay(chain(3), receipt, calibration=calib).model.to_bytes() == model.to_bytes()


def test_what_several_trials_begin_with_is_applied_once(calib: str, watch: Callable[..., Stopwatch]) -> None:
    applied: list[str] = []

    @dataclass(frozen=True, kw_only=True)
    class CountedTint(TintNodes):
        """Notes that it was applied."""

        def apply(self, graph: Graph, context: Context) -> Outcome:
            applied.append(self.mark)
            return super().apply(graph, context)

    watch(by_marks(first=0.8, second=0.9, third=0.7))
    first = CountedTint(mark="first")
    report, receipt, _ = run(calib, (first, CountedTint(mark="second")), first, (first, CountedTint(mark="third")))
    assert applied[:3] == ["first", "second", "third"]  # what comes after is at fewer nodes
    assert [each.parameters["mark"] for each in receipt.applied] == ["first", "third"]
    assert sorted(each.latency_ratio or 0 for each in report.tried) == pytest.approx([0.56, 0.72, 0.8])


def test_a_pass_that_finds_nothing_ends_its_trial(calib: str, watch: Callable[..., Stopwatch]) -> None:
    from onnxcomp.registry import get_pass

    watch(by_marks(fast=0.5))
    report, _, _ = run(calib, (get_pass("fuse-pad")(), TintNodes(mark="fast")))
    assert report.tried[0].outcome.startswith("nothing to do for fuse-pad")


@dataclass(frozen=True, kw_only=True)
class SkipNodes(TintNodes):
    """Leave every MatMul alone, all but the first for one reason."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for index, node in enumerate(graph.main.graph.nodes):
            outcome.skip(node_key(graph.main, node), "too narrow" if index else "too early")
        return outcome


def test_a_trial_that_changes_nothing_gives_the_reason_that_it_has_most_often(
    calib: str, watch: Callable[..., Stopwatch]
) -> None:
    watch(by_marks(fast=0.5))
    report, _, _ = run(calib, SkipNodes(), (TintNodes(mark="fast"), SkipNodes()))
    assert [each.outcome for each in report.tried] == ["nothing to do for skip-nodes: too narrow"] * 2


FAST, EXACT_FAST, PLAIN = TintNodes(), Equalize(), SlowDown()


@pytest.mark.parametrize(
    ("passes", "main"),
    [
        ([PLAIN, PLAIN], 1),
        ([PLAIN, EXACT_FAST, PLAIN], 1),
        ([FAST, EXACT_FAST], 0),
        ([FAST, PLAIN, FAST, Repair(), PLAIN], 3),
    ],
)
def test_a_trial_is_about_the_last_pass_for_speed_that_is_not_exact(passes: list[Pass], main: int) -> None:
    """It is the one that acts at fewer nodes where these are chosen."""
    assert main_pass(passes) == (main,)


def test_nodes_that_lose_are_left_out(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tinting helps but at n0 and n3, both at a border."""
    gains = {"fast_n0": 1.3, "fast_n1": 0.6, "fast_n2": 0.6, "fast_n3": 1.1}

    def took(names: list[str]) -> float:
        return sum(gains.get(f"fast_n{i}", 1.0) if f"fast_n{i}" in names else 1.0 for i in range(4))

    def profile(self: Course, model: Model) -> dict[str, float]:
        names = [node.name for node in model.proto.graph.node]
        return {f"n{i}": gains[f"fast_n{i}"] if f"fast_n{i}" in names else 1.0 for i in range(4)}

    watch(took)
    monkeypatch.setattr(Course, "profile", profile)
    report, receipt, model = run(calib, TintNodes(), length=4)
    assert [each.name for each in report.changed] == ["n1", "n2"]
    assert {each.name for each in report.taken_back} == {"n0", "n3"}
    assert report.tried[0].outcome == "slower" and report.tried[1].name.endswith("at 2 nodes")
    assert receipt.applied[0].choice == {"n1": {}, "n2": {}}
    assert replay(chain(4), receipt, calibration=calib).model.to_bytes() == model.to_bytes()


def test_a_winner_at_some_nodes_stays_at_these_behind_what_goes_ahead(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {"fast_n0": 1.3, "fast_n1": 0.6, "fast_n2": 0.6, "fast_n3": 1.1}

    def nodes(names: list[str]) -> dict[str, float]:
        return {f"n{i}": gains[f"fast_n{i}"] if f"fast_n{i}" in names else 1.0 for i in range(4)}

    watch(lambda names: sum(nodes(names).values()) * (0.8 if marked(names, "mild") else 1.0))
    monkeypatch.setattr(
        Course, "profile", lambda self, model: nodes([node.name for node in model.proto.graph.node])
    )
    step = Race.of([TintNodes()], ahead=[[TintNodes(mark="mild")]])
    result = optimize(chain(4), recipe=Recipe("r", (step,), goal="latency"), calibration=calib, measure=False)
    applied = [(each.parameters["mark"], each.choice) for each in result.receipt.applied]
    assert applied == [("mild", None), ("fast", {"n1": {}, "n2": {}})]
    assert result.receipt.steps[0].latency_ratio == pytest.approx(0.8 * 3.2 / 4)
    assert replay(chain(4), result.receipt, calibration=calib).model.to_bytes() == result.model.to_bytes()


def test_a_rewrite_that_is_slower_as_a_whole_may_be_faster_in_part(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {0: 1.9, 1: 0.5}

    def took(names: list[str]) -> float:
        return sum(gains[i] if f"fast_n{i}" in names else 1.0 for i in gains)

    def profile(self: Course, model: Model) -> dict[str, float]:
        names = [node.name for node in model.proto.graph.node]
        return {f"n{i}": gains[i] if f"fast_n{i}" in names else 1.0 for i in gains}

    watch(took)
    monkeypatch.setattr(Course, "profile", profile)
    report, _, _ = run(calib, TintNodes(), length=2)
    assert [each.name for each in report.changed] == ["n1"] and report.latency_ratio == 0.75
    assert report.tried[0].outcome == "no faster"


def test_nodes_that_all_gain_are_not_timed_again(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch = watch(by_marks(fast=0.4))

    def profile(self: Course, model: Model) -> dict[str, float]:
        gain = 0.4 if any(node.name.startswith("fast") for node in model.proto.graph.node) else 1.0
        return {f"n{i}": gain for i in range(3)}

    monkeypatch.setattr(Course, "profile", profile)
    run(calib, TintNodes())
    assert stopwatch.races == [2, 3, 2]  # the heat, the final with the original, and the result beside it, once


def test_a_result_slower_than_the_original_is_not_handed_back(calib: str, watch: Callable[..., Stopwatch]) -> None:
    """A step that saves bytes only makes the model slower."""
    stopwatch = watch(lambda names: 1.5 if "" in names else 1.0)
    recipe = Recipe("r", (Apply(SlowDown()),), goal="latency")
    result = optimize(chain(3), recipe=recipe, calibration=calib, measure=False)
    assert result.model.proto == chain(3) and not result.receipt.applied
    assert [(each.decision, each.changed) for each in result.receipt.steps] == [("taken back", [])]
    assert result.receipt.steps[0].bytes_after == result.model.size_bytes
    assert "1.50x the original's latency" in result.receipt.notes[-1]
    assert stopwatch.races == [2, 2], "what would be discarded is measured twice"


def test_among_what_is_small_enough_the_fastest_is_kept(calib: str, watch: Callable[..., Stopwatch]) -> None:
    """The names of the fast one's nodes take more bytes than the goal leaves."""
    watch(by_marks(quick_but_of_a_long_name=0.4, quick=0.8, middle=0.6))
    trials = TintNodes(mark="quick_but_of_a_long_name"), TintNodes(mark="quick"), TintNodes(mark="middle")
    report, _, _ = run(calib, *trials)
    assert report.parameters["mark"] == "quick_but_of_a_long_name"
    sizes = {each.name: each.bytes_after for each in report.tried}
    goal = sizes["tint-nodes mark=middle"]
    assert goal is not None
    report, receipt, _ = run(calib, *trials, budget=Budget.parse(target_size=f"{goal}B"))
    assert report.parameters["mark"] == "middle" and not receipt.missed
    assert report.tried[0].outcome == "larger than the size asked for"
    smallest = sizes["tint-nodes mark=quick"]
    assert smallest is not None and smallest < goal
    report, receipt, _ = run(calib, *trials, budget=Budget.parse(target_size=f"{smallest}B"))
    assert report.parameters["mark"] == "quick" and not receipt.missed


def test_a_size_that_nothing_reaches_leaves_the_fastest(calib: str, watch: Callable[..., Stopwatch]) -> None:
    watch(by_marks(fast=0.5, slow=0.8))
    budget = Budget.parse(target_size="10B")
    report, receipt, _ = run(calib, TintNodes(mark="slow"), TintNodes(mark="fast"), budget=budget)
    assert report.parameters["mark"] == "fast" and receipt.missed[0].startswith("size")


def test_receipts_with_what_was_tried_are_read_back(
    calib: str, watch: Callable[..., Stopwatch], tmp_path: Path
) -> None:
    watch(by_marks(fast=0.5))
    _, receipt, _ = run(calib, TintNodes())
    path = tmp_path / "r.json"
    path.write_text(receipt.to_json())
    assert Receipt.read(path).steps[0].tried == receipt.steps[0].tried


def test_proposals_differ_and_leave_something() -> None:
    from onnxcomp.graph.ir.reader import open_graph
    from onnxcomp.graph.report.profile_segments import Segments

    names = ["n0", "n1", "n2"]
    segments = Segments(open_graph(load(chain(3))), names)
    shares = {"n0": 1.5, "n1": 1.2, "n2": 0.2}
    found = node_choice._proposals(names, segments, shares, Ablation(), first=True)
    assert found == [["n1", "n2"], ["n0", "n2"], ["n2"]]


FAR = TintNodes(error=0.04, mark="bad")  # of four: 11.6 times the limit; two of them are within it


@pytest.mark.parametrize("is_large", [False, True])
def test_in_a_large_model_nothing_is_saved_of_what_is_far_over(
    is_large: bool, calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part nor a fallback is looked for, nor nodes chosen, and the reason names what was faster."""
    watch(lambda names: 1 - 0.1 * marked(names, "bad") - 0.05 * marked(names, "spare"))
    if is_large:
        monkeypatch.setattr(tournament, "values_of", lambda size_bytes: 10**9)
    step = Race.of([FAR], fallbacks=[[TintNodes(mark="spare")]])
    recipe = Recipe("r", (step,), goal="latency")
    report = optimize(chain(4), recipe=recipe, calibration=calib, measure=False).receipt.steps[0]
    if not is_large:
        assert report.parameters["mark"] == "spare" and report.tried[-1].name.endswith("nodes")
        return
    assert len(report.tried) == 1 and report.decision == "taken back"
    assert report.reason.startswith("what is faster breaks the budget, many times over: tint-nodes error=0.04")
    assert report.reason.endswith("divergence 0.348 is over 0.03")


def test_what_is_a_little_over_is_saved_in_a_large_model_too(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(lambda names: 1 - 0.1 * marked(names, "bad"))
    monkeypatch.setattr(tournament, "values_of", lambda size_bytes: 10**9)
    report, _, _ = run(calib, TintNodes(error=0.02, mark="bad"), length=4)
    assert report.decision == "kept in part" and len(report.changed) > 1


@dataclass(frozen=True)
class Fixed:
    """A verdict's figures."""

    divergence: float
    limit: float
    beside: tuple[float, float] | None = None


@pytest.mark.parametrize(
    ("verdict", "far"),
    [
        (Fixed(0.2, 0.03), False),
        (Fixed(0.22, 0.03), True),
        (Fixed(float("inf"), 0.03), False),
        (Fixed(0.0, 0.03, (0.22, 0.03)), True),
        (Fixed(0.0, 0.03, (0.2, 0.03)), False),
        (Fixed(0.5, 0.0), False),
    ],
)
def test_far_over_is_seven_times_a_limit_that_allows_something(verdict: Fixed, far: bool) -> None:
    trial = Contender(made=None, verdict=verdict)  # type: ignore[arg-type]
    trials = Trials(*[None] * 9)  # type: ignore[arg-type]
    assert trials._is_far_over(trial) is far


def test_the_choice_of_nodes_ends_where_its_models_come_to_the_cap() -> None:
    tuning = Ablation(most_values=5e8, fewest=4)
    assert [tuning.most(4 * values) for values in (10**6, 10**7, 58 * 10**6, 10**9)] == [500, 50, 8, 4]


def test_no_more_nodes_are_left_out_than_the_cap_allows(
    calib: str, watch: Callable[..., Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {f"n{i}": 1.0 + 0.1 * (i + 1) for i in range(6)}
    built: list[Sequence[str]] = []

    def rebuild(names: Sequence[str]) -> Model:
        built.append(names)
        return load(chain(len(names)))

    def profile(self: Course, model: Model) -> dict[str, float]:
        return gains

    monkeypatch.setattr(Course, "profile", profile)
    monkeypatch.setattr(Course, "fault", lambda self, model: None)
    watch(lambda names: float(len(names)))
    model, course = load(chain(6)), Course(None, None)  # type: ignore[arg-type]
    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    for most in (1, 3):
        built.clear()
        tuning = Ablation(most_values=0, fewest=most)
        node_choice.faster_nodes(model, load(chain(6)), list(gains), rebuild, course, silent, tuning)
        assert len(built) == most
