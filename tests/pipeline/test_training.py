"""Training in a run: beside what makes weights small, in a later run, and once more from the receipt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget, Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import CalibrationError, ModelError, ParameterError, RecipeError
from onnxcomp.model import Model, load, save
from onnxcomp.pipeline import Result, optimize, replay
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.training_data import TrainingOptions
from onnxcomp.recipe import Recipe, Sequential, Step
from onnxcomp.recipe.step import Apply
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,24] x) => (float[N,6] y) {
    a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""
LOOSE = Budget(max_drop=Drop(1e9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and samples."""
    path = tmp_path_factory.mktemp("training")
    proto, rng = parser.parse_model(TEXT), np.random.default_rng(0)
    for name, shape in (("w", (24, 32)), ("v", (32, 6))):
        values = rng.standard_normal(shape).astype(np.float32) ** 3 / np.float32(np.sqrt(shape[0]))  # most are small
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, path / "net.onnx")
    mixed = rng.standard_normal((5, 24))  # inputs of fewer dimensions: few weights are enough for them
    for name, count in (("calib", 128), ("train", 600), ("other", 600)):
        np.savez(path / f"{name}.npz", x=(rng.standard_normal((count, 5)) @ mixed / 2).astype(np.float32))
    return path


def train(folder: Path, **options: object) -> TrainingOptions:
    return TrainingOptions(**({"data": str(folder / "train.npz"), "engine": "ort"} | options))  # type: ignore[arg-type]


def run(folder: Path, *steps: Step, model: str = "net.onnx", **options: object) -> Result:
    given = {"calibration": str(folder / "calib.npz"), "training": train(folder), "measure": False, "budget": LOOSE}
    return optimize(folder / model, recipe=Recipe.of(*steps), **(given | options))  # type: ignore[arg-type]


def step(name: str, **fields: object) -> Apply:
    return Apply(get_pass(name)(**fields))


def finetune(**fields: object) -> Apply:
    return step("finetune", **{"steps": 120, **fields})


def error(model: Model, folder: Path) -> float:
    """KL between the class distributions on samples that nobody trains on."""
    x = np.load(folder / "other.npz")["x"]
    scores = (Session(each.to_bytes()).run({"x": x})["y"] for each in (load(folder / "net.onnx"), model))
    p, q = (np.exp(each.astype(np.float64)) for each in scores)
    p, q = (each / each.sum(axis=1, keepdims=True) for each in (p, q))
    return float((p * np.log(p / q)).sum(axis=1).mean())


PRUNE = step("prune-weights", sparsity=0.8, importance="magnitude", compensate=False)
CLUSTER = step("cluster-weights", bits=3.0, granularity="tensor")


@pytest.fixture(scope="module")
def deep(folder: Path) -> Result:
    """Prune, train, cluster, train, judged at the end."""
    return run(folder, Sequential((PRUNE, finetune(), CLUSTER, finetune()), "end"), step("store-compact"))


def test_zeros_and_levels_survive_both_trainings(folder: Path, deep: Result) -> None:
    plain = run(folder, Sequential((PRUNE, CLUSTER), "end"), step("store-compact"))
    assert deep.receipt.steps[0].decision == "kept"
    assert error(deep.model, folder) < 0.7 * error(plain.model, folder)
    assert deep.model.size_bytes <= plain.model.size_bytes * 1.02


def test_a_receipt_makes_a_training_again(folder: Path, deep: Result) -> None:
    calib = str(folder / "calib.npz")
    again = replay(folder / "net.onnx", deep.receipt, calibration=calib, training=train(folder))
    assert again.receipt.result["sha256"] == deep.receipt.result["sha256"]
    with pytest.raises(CalibrationError, match="--train-data"):
        replay(folder / "net.onnx", deep.receipt, calibration=calib)
    others = train(folder, data=str(folder / "other.npz"))
    with pytest.raises(CalibrationError, match="other training data"):
        replay(folder / "net.onnx", deep.receipt, calibration=calib, training=others)


def test_a_limit_of_time_is_settled_as_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.01
        return now

    monkeypatch.setattr("onnxcomp.training.finetuning.clock", clock)  # a step takes a three-hundredth of a second
    timed = finetune(steps=None)
    found = run(folder, Sequential((PRUNE, timed), "end"), training=train(folder, time="3s"))
    steps = found.receipt.applied[-1].parameters["steps"]
    assert steps is not None and 0 < steps < 10_000
    again = replay(
        folder / "net.onnx", found.receipt, calibration=str(folder / "calib.npz"), training=train(folder)
    )
    assert again.receipt.result["sha256"] == found.receipt.result["sha256"]


def test_a_later_run_comes_nearer_to_the_reference(folder: Path, tmp_path: Path) -> None:
    pruned = run(folder, PRUNE).model
    save(pruned, tmp_path / "pruned.onnx")
    alone = run(folder, finetune(), model=str(tmp_path / "pruned.onnx"), budget=None)
    assert not alone.receipt.applied  # held against itself there is nothing to gain
    reference = folder / "net.onnx"
    found = run(folder, finetune(), model=str(tmp_path / "pruned.onnx"), budget=None, reference=reference)
    assert found.receipt.steps[0].decision == "kept"
    assert error(found.model, folder) < 0.8 * error(pruned, folder)
    calib, options = str(folder / "calib.npz"), train(folder)
    again = replay(tmp_path / "pruned.onnx", found.receipt, calibration=calib, training=options, reference=reference)
    assert again.receipt.result["sha256"] == found.receipt.result["sha256"]
    with pytest.raises(RecipeError, match="--reference"):
        replay(tmp_path / "pruned.onnx", found.receipt, calibration=calib, training=options)
    with pytest.raises(ModelError, match="another reference"):
        other = tmp_path / "pruned.onnx"
        replay(tmp_path / "pruned.onnx", found.receipt, calibration=calib, training=options, reference=other)


def test_a_reference_that_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    other = parser.parse_model(TEXT.replace("y)", "z)").replace("y =", "z ="))
    other.graph.initializer.extend(onnx.load(folder / "net.onnx").graph.initializer)
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="cannot be held against the reference"):
        run(folder, finetune(), reference=tmp_path / "other.onnx")


def test_samples_to_train_on_serve_to_calibrate_where_there_are_no_others(folder: Path) -> None:
    found = run(folder, Sequential((PRUNE, finetune()), "end"), calibration=None)
    assert found.receipt.data["samples"] == 600
    assert found.receipt.steps[0].decision == "kept"


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(ParameterError, match="engine: must be one of"):
        TrainingOptions(engine="jax")
    with pytest.raises(ParameterError):
        TrainingOptions(time="soon")


def test_what_is_trained_is_meant_to_be_other_inside() -> None:
    """Guards and repairs go by what training left; the teacher stays the first model."""
    models = [load(parser.parse_model(TEXT.replace("g (", f"g{i} ("))) for i in range(3)]
    done = Outcome()
    done.change("w", "done")
    line = Lineage.of(models[0]).after(get_pass("prune-weights")(), models[1], done)
    line = line.after(get_pass("finetune")(), models[2], done)
    context = line.context(Context())
    assert line.watched is models[2] and context.original is models[0]
    assert context.reference is not None and context.reference.model is models[2]
    assert dataclasses.replace(line, trained=None).watched is models[0]


def test_data_are_those_of_the_pipeline(folder: Path) -> None:
    assert isinstance(train(folder).opened(load(folder / "net.onnx"), Target.of(), 0).data, CalibrationData)
