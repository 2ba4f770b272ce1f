"""Words, numbers and objects mean the same; what means nothing is one line that names the argument."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import onnxcomp
from onnxcomp.budget import Budget, Drop, Goal
from onnxcomp.cli.optimize import command
from onnxcomp.errors import OnnxcompError
from onnxcomp.interface.arguments import a_budget, a_drop, a_single_pass, a_target, in_words
from onnxcomp.interface.optimizing import Options, optimize
from onnxcomp.recipe import Choose
from onnxcomp.target import Target
from tests.cli.conftest import small_model

NO_KEYWORDS = {  # options of the command that write files or print, and `optimize`'s own names for others
    "output", "force", "report", "dry_run", "replay", "as_json", "quiet", "verbose",
}  # fmt: skip
OTHER_NAMES = {"calib_data": "calibration", "outputs": "outputs"}


def budget(**words: Any) -> Budget:
    none = dict.fromkeys(("max_drop", "target_size", "target_latency", "time_budget"))
    return a_budget(None, **{**none, **words})


def test_numbers_mean_what_their_words_do() -> None:
    assert a_drop("1%") == Drop(0.01, True) and a_drop(0.01) == a_drop("0.01") == Drop(0.01)
    assert a_drop(np.float32(0.25)) == Drop(0.25) and a_drop(Drop(2.0)) == Drop(2.0) and a_drop(None) is None
    assert budget(target_size="4x").target_size == Goal(0.25, True)
    assert budget(target_size=120_000).target_size == Goal(120_000, False)
    assert budget(time_budget="90s").time_budget_s == budget(time_budget=90).time_budget_s == 90.0
    assert budget(target_latency="0.5x").target_latency == Goal(0.5, True)
    assert in_words("train_time", 90) == "90s" and in_words("train_time", "2m") == "2m"


def test_a_target_is_one_or_is_described() -> None:
    made = a_target("cpu", threads=2, min_ort="1.17", target_cpu="avx2")
    assert made == Target.of("cpu", threads=2, min_ort=(1, 17), cpu="avx2")
    assert a_target(made) is made
    assert a_target("cpu", custom_ops="lib.so").custom_ops == (Path("lib.so"),)


def test_a_pass_may_be_named_with_its_parameters() -> None:
    assert a_single_pass("prune_weights", {"sparsity": 0.25}).passes[-1].sparsity == 0.25
    auto = a_single_pass("cluster-weights", {"bits": "auto"})
    assert isinstance(auto.steps[-1], Choose)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"max_drop": "abc"}, "max_drop: must be such as 0.01, 1% or 30dB"),
        ({"max_drop": True}, "max_drop: must be such as"),
        ({"max_drop": [1]}, "max_drop: must be such as"),
        ({"max_drop": -1}, "max_drop: must be such as"),
        ({"target_size": 3}, "target_size: must have a unit"),
        ({"target_size": {}}, "target_size: must be such as"),
        ({"time_budget": 0}, "time_budget: must be such as"),
        ({"time_budget": "soon"}, "time-budget: must be a time"),
        ({"budget": {"max_drop": "1%"}}, "budget: must be an onnxcomp.Budget"),
        ({"budget": Budget(), "max_drop": "1%"}, "budget: give it, or max_drop, not both"),
        ({"ep": 3}, "ep: must be a name"),
        ({"ep": "nosuch"}, "'nosuch' is not installed"),
        ({"ep": Target.of(), "threads": 2}, "threads: the Target says it"),
        ({"threads": 0}, "threads: must be a whole number"),
        ({"min_ort": "new"}, "min_ort: must be a version"),
        ({"recipe": 3}, "recipe: must be a preset's name"),
        ({"model": small_model(), "recipe": "nosuch"}, "nosuch: no such recipe"),
        ({"calibration": 3}, "calibration: must be a path"),
        ({"sequence_axis": 1}, "sequence_axis: says how to read calibration data"),
        ({"seed": "a"}, "seed: must be a whole number from 0 on, got 'a'"),
        ({"seed": True}, "seed: must be a whole number"),
        ({"jobs": 0}, "jobs: must be a whole number from 1 on, got 0"),
        ({"outputs": ["a"]}, "outputs: must be a dict such as"),
        ({"outputs": {"y": 3}}, "outputs: must be a dict such as"),
        ({"input_shapes": {"x": 3}}, "input_shapes: must be a dict such as"),
        ({"input_shapes": [1, 3]}, "input_shapes: must be a dict such as"),
        ({"metric": 3}, "metric: must be a name"),
        ({"exclude": [3]}, "exclude: must be names or patterns"),
        ({"reference": 3}, "reference: must be a path"),
        ({"engine": "jax"}, "engine: must be one of"),
        ({"model": None}, "model: must be a path, bytes, an onnx.ModelProto or an onnxcomp.Model, got None"),
        ({"model": "missing.onnx"}, "missing.onnx: no such file"),
    ],
)
def test_what_cannot_be_meant_is_one_line(keywords: dict[str, Any], words: str) -> None:
    model = keywords.pop("model", b"")
    with pytest.raises(OnnxcompError, match=words) as caught:
        optimize(model, **keywords)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_pass_that_is_none_or_has_no_such_parameter_is_named() -> None:
    with pytest.raises(OnnxcompError, match="nosuch: no such pass"):
        onnxcomp.run("nosuch", b"")
    with pytest.raises(OnnxcompError, match=r"prune-weights: density is none of its parameters: .*sparsity"):
        onnxcomp.run("prune-weights", b"", parameters={"density": 0.5})
    with pytest.raises(OnnxcompError, match="rewrite: must be a pass or its name"):
        onnxcomp.run(7, b"")  # type: ignore[arg-type]
    with pytest.raises(OnnxcompError, match="student: give a model, or shape="):
        onnxcomp.distill(b"")


def test_keywords_are_the_options_of_the_command_line() -> None:
    keywords = set(inspect.signature(optimize).parameters)
    options = {OTHER_NAMES.get(str(each.name), str(each.name)) for each in command.params} - NO_KEYWORDS
    assert options <= keywords | {"model"}


def test_what_run_and_distill_hand_on_are_keywords_of_optimize_of_the_same_types() -> None:
    own = get_type_hints(optimize)
    handed = get_type_hints(Options)
    assert set(handed) == set(own) - {"model", "calibration", "recipe", "return"}
    assert all(handed[name] == own[name] for name in handed)
