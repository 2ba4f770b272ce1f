"""Choices of sites of any kind: ranks beside bits, by bytes and by multiply-accumulates, made again to the byte."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Pass
from onnxcomp.errors import RecipeError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import Model, load
from onnxcomp.pipeline import Result, optimize, replay
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.weight_search.allocation import allot, assign, predicted_total
from onnxcomp.pipeline.weight_search.assembly import build
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Assignment, Rewrite, Table, WeightOption
from onnxcomp.pipeline.weight_search.sensitivity import added_divergence
from onnxcomp.pipeline.weight_search.site_options import add_sites, beside, settled
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Choose, Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.verify import Verifier

BOTH = {"choose": ["quantize-weights", "factorize-linear"]}
INPUTS = np.random.default_rng(1).standard_normal((200, 96)).astype(np.float32)


def net() -> onnx.ModelProto:
    """Three products: weights that are nearly of rank 8, of rank 24 but for a rest, and of rank 3."""
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,96] x) => (float[N,24] y) {
        [one] a = MatMul(x, w) b = Relu(a) [two] c = MatMul(b, v) d = Relu(c) [three] y = MatMul(d, u) }"""
    )
    rng = np.random.default_rng(0)

    def near(rows: int, columns: int, rank: int, rest: float) -> np.ndarray:
        low = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank)
        return ((low + rest * rng.standard_normal((rows, columns))) / np.sqrt(rows)).astype(np.float32)

    for name, values in (("w", near(96, 128, 8, 0.01)), ("v", near(128, 96, 24, 0.05)), ("u", near(96, 24, 3, 0.0))):
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


@pytest.fixture
def calib(tmp_path: Path) -> str:
    np.savez(tmp_path / "c.npz", x=INPUTS)
    return str(tmp_path / "c.npz")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes a microsecond for each thousand multiply-accumulates."""

    def milliseconds(self: Course, models: Mapping[str, Model], *, seconds: float = 0.0) -> dict[str, float]:
        return {name: macs_of(each) / 1e6 for name, each in models.items()}

    monkeypatch.setattr(Course, "milliseconds", milliseconds)
    monkeypatch.setattr(
        "onnxcomp.pipeline.steps.judged.latency_ratio", lambda before, after, *_: macs_of(after) / macs_of(before)
    )


def macs_of(model: Model) -> int:
    return sum(each.count for each in count_macs(open_graph(model)).values() if each is not None)


def chosen(calib: str, *steps: dict[str, Any], goal: str = "bytes", **budget: str) -> Result:
    recipe = Recipe.from_dict({"step": list(steps), "goal": goal}, name="r")
    return optimize(net(), recipe=recipe, calibration=calib, budget=Budget.parse(**budget), measure=False)


def ranks_of(result: Result) -> dict[str, int]:
    entries = [each for step in result.receipt.steps for each in step.changed]
    return {each.name: each.details["rank"] for each in entries if "rank" in each.details}


def assert_replays(result: Result, calib: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(result.receipt.to_json())
    assert replay(net(), Receipt.read(path), calibration=calib).model.to_bytes() == result.model.to_bytes()


# --- allocation ---


def measured(table: Table, model: Model) -> Any:
    """The divergence of a model, and the table told what each option alone does."""
    wanted = Session(model.to_bytes()).run({"x": INPUTS})["y"]

    def evaluate(other: Model) -> float:
        found = Session(other.to_bytes()).run({"x": INPUTS})["y"]
        return float(np.square(found - wanted).sum() / np.square(wanted).sum())

    for name, options in table.options.items():
        table.influence[name, ANY_FAMILY] = 1.0
        for each in options[1:]:
            assert each.choice is not None
            table.measured[name, each.choice] = added_divergence(evaluate(build(model, table, {name: each})), 0.0)
    return evaluate


def ranks_table(model: Model, objective: Objective | None = None) -> Table:
    table = Table({}, objective=objective or Objective())
    add_sites(table, model, [get_pass("factorize-linear")()], Context(), first=0)  # type: ignore[list-item]
    return table


def test_a_rank_for_each_matrix_beats_every_fixed_ratio_at_its_divergence() -> None:
    model = load(net())
    table = ranks_table(model)
    evaluate = measured(table, model)
    kind = get_pass("factorize-linear")

    def alone(assignment: Assignment) -> float:
        return evaluate(build(model, table, assignment))

    for fields in kind.choices():
        fixed, outcome = apply_pass(model, kind(**fields), Context())
        assert outcome.changed
        found = build(model, table, assign(table, alone, evaluate(fixed), Context()))
        assert evaluate(found) <= evaluate(fixed)
        assert found.size_bytes < fixed.size_bytes


@pytest.mark.parametrize("objective", [Objective(), Objective.of("latency", Budget())], ids=["bytes", "macs"])
def test_the_allocation_is_nearly_the_best_of_all_assignments(objective: Objective) -> None:
    model = load(net())
    table = ranks_table(model, objective)
    measured(table, model)
    every = [dict(zip(table.options, each, strict=True)) for each in itertools.product(*table.options.values())]
    for limit in (1e-3, 1e-2, 0.1, 0.5):
        found = allot(table, limit)
        assert predicted_total(table, found) <= limit
        best = min(table.total(each) for each in every if predicted_total(table, each) <= limit)
        assert table.total(found) <= 1.05 * best


def ladder(name: str, size: int, influence: float, table: Table) -> None:
    """A weight in 8 to 2 bits, whose divergence grows fourfold with each bit less."""
    table.options[name] = [WeightOption(None, 4 * size, 0.0)]
    for bits in range(8, 1, -1):
        table.options[name].append(WeightOption(bits, size * bits // 8, 4.0**-bits))
    table.influence[name, ANY_FAMILY] = influence


def test_a_size_goal_is_reached_wherever_it_can_be_and_with_little_divergence() -> None:
    table = Table({})
    for name, size, influence in (("a", 800, 1.0), ("b", 4000, 0.1), ("c", 1600, 7.0)):
        ladder(name, size, influence, table)
    every = [dict(zip(table.options, each, strict=True)) for each in itertools.product(*table.options.values())]
    strongest = assign(table, lambda _: 0.0, 1e9, Context())
    for goal in sorted({int(table.total(each)) for each in every}):
        found = assign(table, lambda _: 0.0, 1e9, Context(), enough=goal)
        if goal <= table.total(strongest):
            assert found == strongest
            continue
        assert table.total(found) <= goal
        best = min(predicted_total(table, each) for each in every if table.total(each) <= goal)
        assert predicted_total(table, found) <= 1.25 * best + 1e-12


# --- whole runs ---


def test_ranks_are_chosen_matrix_by_matrix(calib: str, tmp_path: Path) -> None:
    result = chosen(calib, {"pass": "factorize-linear", "ratio": "auto", "weighted": False})
    ranks = ranks_of(result)
    assert ranks["w"] == 8 and 3 <= ranks["u"] <= 4 and "v" not in ranks
    assert result.receipt.applied[0].choice == {name: {"rank": rank} for name, rank in ranks.items()}
    assert_replays(result, calib, tmp_path)


@pytest.mark.parametrize("then", [[], ["match-outputs"]])
def test_ranks_and_bits_are_chosen_together_and_made_again(calib: str, tmp_path: Path, then: list[str]) -> None:
    store = {"pass": "store-compact"}
    mixed = chosen(calib, BOTH | {"then": then}, store)
    first, second, *_ = mixed.receipt.applied
    assert (first.rewrite, first.beside) == ("factorize-linear", False) and set(first.choice or ()) == {"w", "u"}
    assert (second.rewrite, second.choice, second.beside) == ("quantize-weights", {"v": {}}, True)
    assert mixed.receipt.verdict["passed"]
    for alone in ("quantize-weights", "factorize-linear"):
        assert mixed.model.size_bytes < chosen(calib, {"choose": [alone], "then": then}, store).model.size_bytes
    assert_replays(mixed, calib, tmp_path)


def test_several_passes_that_rewrite_go_on_from_each_other(calib: str, tmp_path: Path) -> None:
    """Energy finds rank 3 of "u", which the ranks of the first pass do not have, and 16 of "w", which takes more."""
    kind = get_pass("factorize-linear")
    step = Choose((kind(weighted=False), kind(energy=0.9999, weighted=False)))
    result = optimize(net(), recipe=Recipe("r", (step,)), calibration=calib, measure=False)
    first, second = result.receipt.applied
    assert (first.choice, first.beside) == ({"w": {"rank": 8}}, False)
    assert (second.choice, second.beside, second.parameters["energy"]) == ({"u": {}}, True, 0.9999)
    assert ranks_of(result) == {"w": 8, "u": 3}
    assert_replays(result, calib, tmp_path)


def test_without_data_no_rank_leaves_more_than_noise() -> None:
    recipe = Recipe.from_dict({"step": [{"pass": "factorize-linear", "ratio": "auto"}]}, name="r")
    result = optimize(net(), recipe=recipe, measure=False)
    assert ranks_of(result) == {"w": 32, "u": 4}  # with data 8 of "w" do


def test_for_speed_multiply_accumulates_are_saved_and_no_bits(calib: str, clock: None) -> None:
    for_bytes, for_speed = (chosen(calib, BOTH, goal=goal) for goal in ("bytes", "latency"))
    assert macs_of(for_speed.model) < macs_of(for_bytes.model) or ranks_of(for_speed) == ranks_of(for_bytes)
    assert set(ranks_of(for_speed)) >= {"w", "u"}
    assert for_speed.receipt.steps[0].latency_ratio == macs_of(for_speed.model) / macs_of(load(net()))


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_the_mildest_ranks_that_reach_the_latency_asked_for_are_taken(calib: str, clock: None, share: float) -> None:
    step = {"pass": "factorize-linear", "ratio": "auto"}
    fastest = chosen(calib, step, goal="latency")
    found = chosen(calib, step, target_latency=f"{share}x")
    assert macs_of(fastest.model) < macs_of(found.model) <= share * macs_of(load(net()))
    assert found.receipt.verdict["divergence"] <= fastest.receipt.verdict["divergence"]


def test_a_latency_out_of_reach_does_not_make_the_ranks_milder(calib: str, clock: None) -> None:
    step = {"pass": "factorize-linear", "ratio": "auto"}
    found, fastest = chosen(calib, step, target_latency="0.01x"), chosen(calib, step, goal="latency")
    assert ranks_of(found) == ranks_of(fastest)


@pytest.mark.parametrize("step", [{"choose": ["quantize-weights"]}, BOTH])
def test_a_size_asked_for_is_enough(calib: str, step: dict[str, Any]) -> None:
    store = {"pass": "store-compact"}
    smallest, enough = chosen(calib, step, store), chosen(calib, step, store, target_size="3x")
    original = load(net()).size_bytes
    assert smallest.model.size_bytes < enough.model.size_bytes <= original / 3
    assert not enough.receipt.missed
    assert enough.receipt.verdict["divergence"] < smallest.receipt.verdict["divergence"]


def test_sites_whose_costs_are_unknown_are_refused(calib: str) -> None:
    """One threshold for all weights is no strength of any one."""
    with pytest.raises(RecipeError, match='prune-weights: "auto" needs bytes and error'):
        chosen(calib, {"pass": "prune-weights", "scope": "model", "sparsity": "auto"})


# --- taking back ---


@pytest.mark.parametrize(
    ("rewrite", "is_choice"),
    [
        (get_pass("factorize-linear")(ratio=0.125), True),
        (get_pass("quantize-weights")(bits=6, algorithm="nearest"), True),
        (get_pass("quantize-weights")(bits=5), False),  # put back: it is fitted to what all weights read
        (get_pass("prune-weights")(sparsity=0.1, scope="model", importance="magnitude", compensate=False), False),
    ],
    ids=lambda each: each.pass_name() if isinstance(each, Pass) else "",
)
def test_a_step_that_is_kept_in_part_is_made_again(calib: str, tmp_path: Path, rewrite: Pass, is_choice: bool) -> None:
    result = optimize(net(), recipe=Recipe.of(rewrite), calibration=calib, measure=False)
    report, applied = result.receipt.steps[0], result.receipt.applied[0]
    assert report.decision == "kept in part"
    kept = {each.name: {} for each in report.changed}
    assert applied.choice == (kept if is_choice else None)
    assert bool(applied.restore) is not is_choice
    assert_replays(result, calib, tmp_path)


# --- ranks beside values, in the same few bits ---

VALUES = {"choose": ["quantize-weights"], "then": ["match-outputs"]}
ALSO = {**VALUES, "also": [{"pass": "factorize-linear", "bits": bits} for bits in (4, 6)]}


def test_a_weight_becomes_two_factors_of_few_bits_where_these_are_fewer_bytes(calib: str, tmp_path: Path) -> None:
    plain, result = (chosen(calib, each, {"pass": "store-compact"}) for each in (VALUES, ALSO))
    assert ranks_of(result) and not ranks_of(plain)
    assert result.model.size_bytes < 0.9 * plain.model.size_bytes
    assert result.passed
    stored = {each.name: each.what for step in result.receipt.steps for each in step.changed if "grid" in each.what}
    assert any(name.endswith(("_left", "_right")) for name in stored)
    assert_replays(result, calib, tmp_path)


def full_rank(sizes: tuple[int, ...]) -> tuple[Table, Assignment]:
    """A weight that values make small at an error of 0.001, and what was found."""
    option = WeightOption(0, sizes[0], 0.001)
    table = Table({"w": [WeightOption(None, 96 * 128 * 4, 0.0), option]})
    table.influence["w", ANY_FAMILY] = 1.0
    return table, {"w": option}


@pytest.mark.parametrize(("size", "promises"), [(300, False), (12_000, True)])
def test_what_takes_more_than_values_do_is_not_tried(calib: str, size: int, promises: bool) -> None:
    model = load(net())
    data = open_data(model, calib, Target.of("cpu"), 0)
    tuner = Verifier(model, data, target=Target.of("cpu"))
    table, found = full_rank((size,))
    also = [get_pass("factorize-linear")(bits=6)]
    context = Context(calibration=data)
    wide = beside(table, model, also, found, tuner, 0.05, context, deadline=math.inf)  # type: ignore[arg-type]
    assert (wide is not None) is promises
    if wide is not None:
        own = [each for each in wide.options["w"] if each.choice in wide.rewrites]
        assert own and all(each.size_bytes < size and ("w", each.choice) in wide.measured for each in own)
        assert settled(wide, table, 0.05, lambda *_: 1.0, 0.5, context) is None
        kept = settled(wide, table, 0.05, lambda *_: 0.1, 0.5, context)
        assert kept is not None and kept.options["w"] and all(each in own for each in kept.options["w"])


def wider(forms: Mapping[str, Mapping[int, float]]) -> tuple[Table, Table]:
    """A table of weights that values make 100 bytes each, and one with forms beside: sizes and what each does alone."""
    values = {name: [WeightOption(None, 1000, 0.0), WeightOption(0, 100, 1e-4)] for name in forms}
    table = Table(values)
    wide = Table({name: list(own) for name, own in values.items()})
    for each in (table, wide):
        each.influence = {(name, ANY_FAMILY): 1.0 for name in forms}
    rewrite = get_pass("factorize-linear")()
    for at, (name, size, error) in enumerate((n, s, e) for n, own in forms.items() for s, e in own.items()):
        wide.options[name].append(WeightOption(at + 1, size, error))
        wide.rewrites[at + 1] = Rewrite(rewrite, {}, Context())  # type: ignore[arg-type]
    return wide, table


@pytest.mark.parametrize(
    ("forms", "most", "sizes"),
    [
        ({"v": {40: 0.01, 30: 0.02}}, 0.012, {"v": [40]}),
        ({"v": {60: 0.005, 40: 0.01, 30: 0.02}}, 0.012, {"v": [60, 40]}),  # the milder are kept beside the strongest
        ({"v": {120: 0.005, 40: 0.01}}, 0.012, {"v": [40]}),  # but not what values do better
        ({"v": {60: 0.012}, "w": {90: 0.001}}, 0.0125, {"v": [60]}),  # one that saves more, not both and not the milder
        ({"v": {60: 0.012}, "w": {90: 0.001}}, 0.014, {"v": [60], "w": [90]}),
        ({"v": {60: 0.02}, "w": {90: 0.001}}, 0.0125, {"w": [90]}),
        ({"v": {60: 0.02}}, 0.0125, None),
    ],
)
def test_the_settlement_of_least_cost_that_alone_is_near_enough_is_taken(
    forms: Mapping[str, Mapping[int, float]], most: float, sizes: dict[str, list[int]] | None
) -> None:
    wide, table = wider(forms)

    def alone(_: Table, assignment: Assignment) -> float:
        return sum(option.error for option in assignment.values())

    found = settled(wide, table, 0.05, alone, most, Context())
    if sizes is None:
        assert found is None
        return
    assert found is not None
    for name, own in found.options.items():
        assert [each.size_bytes for each in own] == sizes.get(name, [1000, 100])


def test_what_changes_values_is_refused_beside_them() -> None:
    with pytest.raises(RecipeError, match="cluster-weights rewrites no graph"):
        Recipe.from_dict({"step": [{**VALUES, "also": ["cluster-weights"]}]}, name="r")
