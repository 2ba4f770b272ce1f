"""The judge's own benchmark: its committed models still score what they did, and its damage is real and repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.judge import catalogue, damage, held, scoring, tables

SCORES = json.loads(catalogue.SCORES.read_text())
SLACK = 0.5  # points: another processor rounds otherwise, and a few of a thousand samples lie at an edge
ALL_BYTES = 10 * 10**6


def test_every_kind_is_trained_and_scored() -> None:
    assert catalogue.trained() == catalogue.names() == sorted(SCORES)


def test_the_files_stay_small() -> None:
    files = [path for path in catalogue.MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < ALL_BYTES


@pytest.mark.parametrize("name", catalogue.names())
def test_committed_model_gives_its_recorded_score(name: str) -> None:
    kind = catalogue.kind(name)
    units = scoring.units_of(name, catalogue.model_path(name))
    assert kind.score(units) == pytest.approx(SCORES[name], abs=SLACK)
    parts = scoring.without_each_group(kind.score, units)
    assert np.ptp(parts) > 0  # the score depends on the units, and no group of them is missing


@pytest.mark.parametrize("name", catalogue.names())
def test_calibration_inputs_fit_the_model(name: str) -> None:
    run = scoring.runner(catalogue.model_path(name))
    for feeds in catalogue.calibration_feeds(name):
        assert all(np.isfinite(each).all() for each in run(feeds).values())


def _small_model() -> onnx.ModelProto:
    """y = Transpose(w)' x + b, then an If whose branches hold a weight each of the same name."""
    rng = np.random.default_rng(0)

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), "inner")
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["y", "inner"], [name])], name, [], [out], [weight])

    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["y"]),
        helper.make_node("If", ["which"], ["z"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    held_values = [
        numpy_helper.from_array(rng.normal(size=(6, 5)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=6).astype(np.float32), "b"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 6])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, held_values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_weights_are_found_behind_transposes_and_in_both_branches() -> None:
    model = _small_model()
    found = [(each.tensor.name, each.axis, each.owner) for each in held.weights(model)]
    assert found == [("w", 0, "xw"), ("inner", 1, "z"), ("inner", 1, "z")]
    assert [each.tensor.name for each in held.biases(model)] == ["b"]


def test_near_ends_are_the_first_and_last_weights() -> None:
    assert held.near_ends(_small_model()) == {"from-x": ["xw"], "from-which": ["z"], "to-z": ["z"]}


def test_damage_is_deterministic_and_changes_every_variant() -> None:
    model = _small_model().SerializeToString(deterministic=True)
    first, second = ({each.name: each.model for each in damage.variants(model)} for _ in range(2))
    assert first == second
    assert model not in first.values() and len(set(first.values())) == len(first)


def test_every_model_is_damaged_in_forty_ways_at_least() -> None:
    source = catalogue.model_path("rare_class").read_bytes()
    assert len(list(damage.variants(source))) >= 40


def test_damage_costs_points_and_an_unchanged_model_none(tmp_path: Path) -> None:
    source = catalogue.model_path("unsure_classifier").read_bytes()
    scorer = scoring.Scorer("unsure_classifier", tmp_path)
    assert scorer.loss(source) == scoring.Loss(scorer.original_score, 0.0, 0.0)
    ruined = next(each for each in damage.variants(source) if each.name == "channel-3")
    lost = scorer.loss(ruined.model)
    assert lost.loss > 1 and lost.loss > 2 * lost.se


def test_rounding_per_channel_keeps_so_many_levels() -> None:
    weight = held.weights(_small_model())[0]
    levels = damage.rounded(3, per_channel=True)(weight)
    assert all(len(np.unique(np.abs(row))) <= 4 for row in levels)


def test_a_pair_is_a_false_accept_only_beyond_half_a_point_and_two_errors() -> None:
    assert tables.is_harmful({"loss": 0.6, "se": 0.2}) and not tables.is_harmful({"loss": 0.6, "se": 0.4})
    assert tables.is_harmless({"loss": 0.0, "se": 0.0}) and not tables.is_harmless({"loss": 0.09, "se": 0.1})
