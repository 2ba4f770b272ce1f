"""The promises of the pipeline: within the budget, taken back by name, repeatable to the byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.errors import ModelError, RecipeError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.pipeline import Result, optimize, replay
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Apply, Choose, Recipe
from onnxcomp.registry import get_pass
from onnxcomp.target import Target

FEATURES, CLASSES = 16, 4


def classifier(seed: int = 0) -> onnx.ModelProto:
    """Two layers; the weight "idle" adds next to nothing to the scores, "busy" makes them."""
    rng = np.random.default_rng(seed)
    busy = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    idle = (5e-3 * rng.normal(size=(FEATURES, CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "busy"], ["a"]),
        helper.make_node("MatMul", ["x", "idle"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return made(nodes, {"busy": busy, "idle": idle})


def made(nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calib") / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).normal(size=(200, FEATURES)).astype(np.float32))
    return path


@dataclass(frozen=True, kw_only=True)
class ShiftWeights(Pass):
    """Add a constant to every weight."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    amount: float = parameter(1.0, help="what is added")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if context.selects(weight.name):
                weight.set(weight.values + np.float32(self.amount))
                outcome.change(weight.name, "shifted")
        return outcome


@dataclass(frozen=True, kw_only=True)
class ZeroWeights(Pass):
    """Set every weight to zero."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if context.selects(weight.name):
                weight.set(np.zeros_like(weight.values), MaskEncoding(dtype="float32"))
                outcome.change(weight.name, "zeroed")
        return outcome


@dataclass(frozen=True, kw_only=True)
class ShrinkWeights(Pass):
    """Leave six tenths of every weight."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if context.selects(weight.name):
                weight.set(np.float32(0.6) * weight.values)
                outcome.change(weight.name, "shrunk")
        return outcome


@dataclass(frozen=True, kw_only=True)
class SpoilOutputs(Pass):
    """Claim to be exact and double every weight."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    by: float = parameter(2.0, help="the factor")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            weight.set(weight.values * np.float32(self.by))
            outcome.change(weight.name, "multiplied")
        return outcome


@dataclass(frozen=True, kw_only=True)
class SpoilBusy(Pass):
    """Claim to be exact and double the busy weight; the other gets the values that it has."""

    effect = Effect(shrinks=("bytes",), exact=True)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if context.selects(weight.name):
                weight.set(weight.values * np.float32(2 if weight.name == "busy" else 1))
                outcome.change(weight.name, "set")
        return outcome


def test_of_an_exact_pass_only_what_breaks_the_model_is_taken_back(calib: Path) -> None:
    result = optimize(classifier(), recipe=Recipe.of(SpoilBusy()), calibration=str(calib), measure=False)
    report = result.receipt.steps[0]
    assert report.decision == "kept in part" and "1 of 2 taken back" in report.reason
    assert [each.name for each in report.changed] == ["idle"]
    assert [each.name for each in report.taken_back] == ["busy"]
    assert result.receipt.applied[0].exclude == ["busy"]


def test_what_breaks_the_budget_is_taken_back_and_named(calib: Path) -> None:
    original = classifier()
    result = optimize(original, recipe=Recipe.of(ShrinkWeights()), calibration=str(calib), measure=False)
    report = result.receipt.steps[0]
    assert report.decision == "kept in part"
    assert [each.name for each in report.changed] == ["idle"]
    assert [each.name for each in report.taken_back] == ["busy"]
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
        for proto in (original, result.model.proto)
    )
    np.testing.assert_array_equal(after["busy"], before["busy"])
    np.testing.assert_array_equal(after["idle"], np.float32(0.6) * before["idle"])
    assert report.node_errors == {"idle": pytest.approx(0.16, rel=0.1), "busy": 0.0}


def test_what_the_outputs_hardly_show_is_bounded_at_the_node(calib: Path) -> None:
    """Without "idle" the scores are nearly the same, and its node has nothing left."""
    result = optimize(classifier(), recipe=Recipe.of(ZeroWeights()), calibration=str(calib), measure=False)
    assert result.receipt.steps[0].decision == "taken back" and not result.receipt.applied
    assert any("idle" in note and "off by over" in note for note in result.receipt.notes)
    loose = optimize(
        classifier(), recipe=Recipe.of(ZeroWeights()), calibration=str(calib), exclude=["busy"],
        budget=Budget.parse(max_drop="1"), measure=False,
    )  # fmt: skip
    assert [each.name for each in loose.receipt.steps[0].changed] == ["idle"]


def test_a_search_leaves_a_little_error_where_the_outputs_hardly_show_more(calib: Path) -> None:
    """What the outputs tolerate of "hidden" makes its node wrong: it then takes few bits, as without data, not all."""
    rng = np.random.default_rng(2)
    hidden, out = (rng.normal(size=size).astype(np.float32) for size in ((FEATURES, 64), (64, CLASSES)))
    nodes = [
        helper.make_node("MatMul", ["x", "hidden"], ["h"]),
        helper.make_node("MatMul", ["h", "out"], ["s"]),
        helper.make_node("MatMul", ["x", "direct"], ["d"]),
        helper.make_node("Add", ["s", "d"], ["y"]),
    ]
    direct = 30 * rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    model = made(nodes, {"hidden": hidden, "out": 0.02 * out, "direct": direct})
    recipe = Recipe("auto", (Choose((get_pass("cluster-weights")(),)),))
    result = optimize(model, recipe=recipe, calibration=str(calib), measure=False)
    taken_back, kept = result.receipt.steps
    assert taken_back.decision == "taken back"
    assert "hidden" in {each.name for each in kept.changed}
    assert 0 < kept.node_errors["hidden"] < 0.25


def test_errors_that_interact_are_judged_together(calib: Path) -> None:
    """x @ (p + q) with p = q: zeroing one halves the output, which counts a quarter of what zeroing both does."""
    rng = np.random.default_rng(3)
    whole = 0.05 * rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    half = np.float32(0.5) * whole
    nodes = [
        helper.make_node("MatMul", ["x", "p"], ["a"]),
        helper.make_node("MatMul", ["x", "q"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = made(nodes, {"p": half, "q": half})
    single = optimize(
        model, recipe=Recipe.of(ZeroWeights()), calibration=str(calib), exclude=["q"],
        budget=Budget.parse(max_drop="5"), measure=False,
    )  # fmt: skip
    assert single.receipt.steps[0].decision == "kept"
    both = optimize(
        model, recipe=Recipe.of(ZeroWeights()), calibration=str(calib),
        budget=Budget.parse(max_drop="5"), measure=False,
    )  # fmt: skip
    report = both.receipt.steps[0]
    assert report.decision == "kept in part"
    assert len(report.changed) == len(report.taken_back) == 1


def test_when_nothing_bears_the_step_the_original_is_handed_back(calib: Path) -> None:
    model = classifier()
    result = optimize(
        model, recipe=Recipe.of(ShiftWeights(amount=9.0)), calibration=str(calib), exclude=["idle"], measure=False
    )
    assert result.receipt.steps[0].decision == "taken back"
    assert result.model.proto == model


def test_an_exact_pass_that_is_not_exact_is_taken_back(calib: Path) -> None:
    good = get_pass("remove-noops")()
    result = optimize(classifier(), recipe=Recipe.of(good, SpoilOutputs()), calibration=str(calib), measure=False)
    by_name = {each.rewrite: each for each in result.receipt.steps}
    assert by_name["spoil-outputs"].decision == "taken back"
    assert "changed the outputs" in by_name["spoil-outputs"].reason
    assert by_name["remove-noops"].decision == "nothing to do"


def test_a_nan_is_refused_whatever_the_budget(calib: Path) -> None:
    result = optimize(
        classifier(), recipe=Recipe.of(ShiftWeights(amount=float("inf"))), calibration=str(calib),
        budget=Budget.parse(max_drop="1000000"), measure=False,
    )  # fmt: skip
    assert result.receipt.steps[0].decision == "taken back"


def wide_classifier() -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    first = rng.normal(size=(FEATURES, 256)).astype(np.float32)
    second = (rng.normal(size=(256, CLASSES)) / 16).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "second"], ["y"]),
    ]
    return made(nodes, {"first": first, "second": second})


def auto_recipe() -> Recipe:
    cluster, store = get_pass("cluster-weights")(), get_pass("store-compact")()
    return Recipe("auto", (Choose((cluster,)), Apply(store)))


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "m.onnx"
    onnx.save(wide_classifier(), path)
    return path


@pytest.fixture(scope="module")
def searched(wide_file: Path, calib: Path) -> Result:
    """One search, which many tests look at."""
    return optimize(wide_file, recipe=auto_recipe(), calibration=str(calib), measure=False)


def test_the_search_meets_the_limit_and_saves_bytes(searched: Result) -> None:
    verdict = searched.receipt.verdict
    assert verdict["passed"] and 0 < verdict["divergence"] <= verdict["limit"]
    assert searched.model.size_bytes < 0.3 * load(wide_classifier()).size_bytes


def test_a_size_goal_stops_the_search_early(searched: Result, calib: Path) -> None:
    enough = optimize(
        wide_classifier(), recipe=auto_recipe(), calibration=str(calib), measure=False,
        budget=Budget.parse(target_size="3x"),
    )  # fmt: skip
    assert not enough.receipt.missed
    assert enough.receipt.verdict["divergence"] < searched.receipt.verdict["divergence"]


def test_a_missed_goal_is_named(calib: Path) -> None:
    result = optimize(
        wide_classifier(), recipe=auto_recipe(), calibration=str(calib), measure=False,
        budget=Budget.parse(target_size="100x"),
    )  # fmt: skip
    assert any(each.startswith("size:") for each in result.receipt.missed)


def test_without_data_no_weight_falls_below_eight_bits_noise() -> None:
    result = optimize(wide_classifier(), recipe=auto_recipe(), measure=False)
    assert result.receipt.data["random"]
    original = {each.name: numpy_helper.to_array(each) for each in wide_classifier().graph.initializer}
    cluster_only = Recipe("cluster", auto_recipe().steps[:1])
    plain = optimize(wide_classifier(), recipe=cluster_only, measure=False).model
    for tensor in plain.proto.graph.initializer:
        before, after = original[tensor.name].astype(np.float64), numpy_helper.to_array(tensor)
        scale = np.abs(before).max(axis=0) / 127  # channels are columns here
        rounded = np.rint(before / scale) * scale
        allowed = np.sum((rounded - before) ** 2) * 10**0.05
        assert np.sum((after - before) ** 2) <= allowed


def test_replaying_a_receipt_makes_the_same_bytes(
    searched: Result, wide_file: Path, calib: Path, tmp_path: Path
) -> None:
    files = searched.save(tmp_path / "out.onnx")
    again = replay(wide_file, Receipt.read(files[-1]), calibration=str(calib))
    assert again.model.to_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_replaying_what_was_taken_back_makes_the_same_bytes(calib: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(classifier(), source)
    prune = get_pass("prune-weights")(sparsity=0.9, scope="weight")
    result = optimize(source, recipe=Recipe.of(prune), calibration=str(calib), measure=False)
    files = result.save(tmp_path / "out.onnx")
    again = replay(source, Receipt.read(files[-1]))
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_replaying_keeps_to_the_processor_that_the_receipt_names(calib: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(classifier(), source)
    recipe = Recipe.of(get_pass("quantize-static")(all_nodes=True))
    codes = {}
    for cpu in "vnni", "haswell":
        target = Target.of("cpu", cpu=cpu)
        result = optimize(source, recipe=recipe, calibration=str(calib), target=target, measure=False)
        files = result.save(tmp_path / f"{cpu}.onnx")
        assert result.receipt.target_cpu == target.cpu
        again = replay(source, Receipt.read(files[-1]), calibration=str(calib))
        assert again.model.to_bytes() == (tmp_path / f"{cpu}.onnx").read_bytes()
        arrays = [numpy_helper.to_array(each) for each in again.model.proto.graph.initializer]
        codes[cpu] = max(np.abs(each.astype(int)).max() for each in arrays if each.dtype == np.int8)
    assert codes == {"vnni": 127, "haswell": 64}


def test_replaying_on_another_model_is_refused(calib: Path, tmp_path: Path) -> None:
    result = optimize(classifier(), recipe=Recipe.of(ZeroWeights()), calibration=str(calib), measure=False)
    with pytest.raises(ModelError, match="belongs to another model"):
        replay(classifier(seed=1), result.receipt)


def test_the_same_run_twice_gives_the_same_bytes(searched: Result, wide_file: Path, calib: Path) -> None:
    again = optimize(wide_file, recipe=auto_recipe(), calibration=str(calib), measure=False)
    assert searched.model.to_bytes() == again.model.to_bytes()


def test_labels_in_the_data_make_accuracy_the_metric(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(400, FEATURES)).astype(np.float32)
    weights_of = {each.name: numpy_helper.to_array(each) for each in classifier().graph.initializer}
    labels = (x @ weights_of["busy"]).argmax(1)
    path = tmp_path / "labelled.npz"
    np.savez(path, x=x, labels=labels)
    result = optimize(classifier(), recipe=auto_recipe(), calibration=str(path), measure=False)
    assert result.receipt.metric["name"] == "accuracy"
    assert result.receipt.verdict["passed"]


def test_needs_are_checked_before_any_work() -> None:
    with pytest.raises(RecipeError, match="needs calibration data"):
        optimize(classifier(), recipe=Recipe.of(get_pass("quantize-static")()))


def test_the_receipt_counts_the_bytes_on_disk(searched: Result, tmp_path: Path) -> None:
    model, receipt = searched.save(tmp_path / "out.onnx")
    assert Receipt.read(receipt).result["bytes"] == model.stat().st_size


def test_when_the_time_is_up_weights_are_clustered_by_their_own_noise(calib: Path) -> None:
    recipe = Recipe("late", (Choose((get_pass("cluster-weights")(),)),))
    rng = np.random.default_rng(0)
    model = made(
        [helper.make_node("MatMul", ["x", "wide"], ["h"]), helper.make_node("MatMul", ["h", "busy"], ["y"])],
        {
            "wide": rng.normal(size=(FEATURES, 256)).astype(np.float32),
            "busy": rng.normal(size=(256, CLASSES)).astype(np.float32),
        },
    )
    seconds = [0.0]

    def late(done: int, total: int, what: str) -> None:
        seconds[0] = 3600.0 if what.startswith("cluster-weights") else seconds[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcomp.clock.time", SimpleNamespace(monotonic=lambda: seconds[0]))
        limit = Budget(time_budget_s=60)
        result = optimize(model, recipe=recipe, calibration=calib, measure=False, budget=limit, progress=late)
    [step] = result.receipt.steps
    assert step.decision == "kept"
    assert "busy" in {each.name for each in step.changed}
    assert [each for each in result.receipt.missed if each.startswith("time")]


@dataclass(frozen=True, kw_only=True)
class ClaimSpeed(Pass):
    """Claim speed and change next to nothing."""

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)

    by: float = parameter(1.0001, help="the factor")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            weight.set(weight.values * np.float32(self.by))
            outcome.change(weight.name, "scaled")
        return outcome


@pytest.mark.parametrize(("goal", "decision"), [("latency", "taken back"), ("bytes", "kept")])
def test_speed_that_does_not_come_is_taken_back_where_it_is_the_goal(
    goal: str, decision: str, calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.pipeline.steps.judged.latency_ratio", lambda *arguments: 1.2)
    recipe = Recipe("r", (Apply(ClaimSpeed()),), goal=goal)
    result = optimize(classifier(), recipe=recipe, calibration=str(calib), measure=False)
    assert result.receipt.steps[0].decision == decision
    assert bool(result.receipt.applied) == (decision == "kept")


def test_a_step_taken_back_for_its_speed_leaves_no_room_to_exact_ones(
    calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact step may add next to nothing to the divergence so far, which is none again."""
    monkeypatch.setattr("onnxcomp.pipeline.steps.judged.latency_ratio", lambda *arguments: 1.2)
    recipe = Recipe("r", (Apply(ClaimSpeed(by=1.1)), Apply(SpoilOutputs(by=1.05))), goal="latency")
    result = optimize(classifier(), recipe=recipe, calibration=str(calib), measure=False)
    assert [each.decision for each in result.receipt.steps] == ["taken back", "taken back"]
    assert result.receipt.steps[1].reason.startswith("an exact step changed the outputs")
    assert result.model.proto == classifier() and result.receipt.verdict["divergence"] == 0


def test_weights_too_small_to_gain_keep_their_values(calib: Path) -> None:
    model = classifier()  # two weights of 64 values: codebook and decoder take more than they do
    result = optimize(model, recipe=auto_recipe(), calibration=str(calib), measure=False)
    before = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    after = {each.name: numpy_helper.to_array(each) for each in result.model.proto.graph.initializer}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not result.model.encodings


def test_without_data_the_weakest_channel_counts() -> None:
    """One codebook over channels of very different size is near in the whole and far in the small ones."""
    rng = np.random.default_rng(2)
    uneven = rng.normal(size=(FEATURES, 64)).astype(np.float32) * np.logspace(0, -3, 64, dtype=np.float32)
    last = rng.normal(size=(64, CLASSES)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "uneven"], ["h"]), helper.make_node("MatMul", ["h", "last"], ["y"])]
    step = Choose((get_pass("quantize-weights")(), get_pass("cluster-weights")()))
    result = optimize(made(nodes, {"uneven": uneven, "last": last}), recipe=Recipe("auto", (step,)), measure=False)
    after = {each.name: numpy_helper.to_array(each) for each in result.model.proto.graph.initializer}
    per_channel = np.sum((after["uneven"] - uneven) ** 2, axis=0) / np.sum(uneven**2, axis=0)
    scale = np.abs(uneven).max(axis=0) / 127
    rounded = np.sum((np.rint(uneven / scale) * scale - uneven) ** 2, axis=0) / np.sum(uneven**2, axis=0)
    assert per_channel.mean() <= rounded.mean() * 10**0.05
