"""How far a run has come: the phases of a recipe, from what the pipeline says that it does."""

from __future__ import annotations

from onnxcomp.cli.printing.phases import Phases
from onnxcomp.recipe import Recipe

STEPS = [
    {"pass": "remove-noops"},
    {"pass": "fold-constants"},
    {"pass": "prune-channels"},
    {"choose": ["quantize-weights", "cluster-weights"]},
    {"pass": "store-compact"},
    {"pass": "strip-metadata"},
]


def phases(*steps: dict[str, object]) -> Phases:
    return Phases.of(Recipe.from_dict({"step": list(steps)}, name="r"))


def test_exact_steps_beside_each_other_are_one_phase_and_others_one_each() -> None:
    assert [each.words for each in phases(*STEPS).phases] == [
        "running the original",
        "tidying the graph",
        "prune-channels",
        "choosing bits for each weight",
        "storing weights in fewer bytes",
        "tidying the graph",
        "measuring the result",
    ]


def test_what_is_told_stands_after_its_phase() -> None:
    told = phases(*STEPS).told
    assert told("running the original") == "[1/7] running the original"
    assert told("fold-constants") == "[2/7] tidying the graph: fold-constants"
    assert told("prune-channels") == "[3/7] prune-channels"
    assert told("prune-channels: calibrating") == "[3/7] prune-channels: calibrating"
    name = "quantize-weights | cluster-weights"
    assert told(f"{name}: fitting fc1.weight") == "[4/7] choosing bits for each weight: fitting fc1.weight"
    assert told("strip-metadata") == "[6/7] tidying the graph: strip-metadata"
    assert told("measuring load time and latency") == "[7/7] measuring the result"


def test_fewer_trials_are_the_same_phase() -> None:
    told = phases({"try": [{"pass": "cast-float16"}, {"pass": "quantize-static"}]}).told
    assert told("fastest of 1: measuring latency") == "[2/3] looking for what runs fastest: measuring latency"


def test_rounds_are_told_by_what_is_done_in_them() -> None:
    body = [{"pass": "prune-weights"}, {"pass": "cluster-weights"}]
    told = phases({"pass": "fold-constants"}, {"repeat": body, "rounds": 2}, {"pass": "store-compact"}).told
    for _ in range(2):
        said = told("prune-weights + cluster-weights: weighing zeros")
        assert said == "[3/5] 2 rounds of prune-weights + cluster-weights: weighing zeros"


def test_phases_only_go_on() -> None:
    told = phases({"pass": "fold-constants"}, {"pass": "prune-heads"}, {"pass": "fold-constants"}).told
    assert told("fold-constants").startswith("[2/5]")
    assert told("prune-heads").startswith("[3/5]")
    assert told("fold-constants").startswith("[4/5]")
    assert told("something that no step is called").startswith("[4/5] tidying the graph: something")
