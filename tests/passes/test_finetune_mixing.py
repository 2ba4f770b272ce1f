"""Training on mixed samples: a step is what a hand computes, and it can be done again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.sample_axes import Cut
from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.optimization import loop
from onnxcomp.training.setup import TrainingSetup

RNG = np.random.default_rng(1)
X = RNG.normal(size=(60, 5)).astype(np.float32)
W, WRONG = (RNG.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
STEP = 10  # steps of the trainings that are compared
BATCH = 31  # of a training's samples, one less than is run by two threads


def model_of(weight: np.ndarray, body: str = "y = MatMul(x, w)", given: str = "float[N, 5] x") -> Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({given}) => (float[N, 3] y) {{ {body} }}'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return load(proto)


def trained(
    student: Model, teacher: Model, x: np.ndarray = X, setup: Any = None, jobs: int = 1, **fields: Any
) -> tuple[Model, Outcome]:
    session = Session(teacher.to_bytes())
    data = CalibrationData._of_feeds([{"x": x}], Cut({"x": 0}, len(x)), session.inputs, 0)
    context = Context(
        target=Target.of(),
        calibration=dataclasses.replace(data, is_random=False),
        reference=Reference(teacher),
        training=setup or TrainingSetup(engine="ort"),
        seed=3,
        jobs=jobs,
    )
    options = {"steps": STEP, "rate": 0.02, "batch_size": BATCH, "loss": "cosine", "mixup": 0.8, **fields}
    return apply_pass(student, get_pass("finetune")(**options), context)


def distance(weight: np.ndarray, x: np.ndarray) -> float:
    """The mean of 1 - cos between student and teacher, sample by sample in float64."""
    total = 0.0
    for row in x.astype(np.float64):
        own, wanted = row @ weight, row @ W.astype(np.float64)
        total += 1 - own @ wanted / (np.linalg.norm(own) * np.linalg.norm(wanted))
    return total / len(x)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(inputs, values, loss, gradients) of each step."""
    calls: list[Any] = []
    original = BackwardEngine.loss_and_gradients

    def telling(self: Any, feeds: Any, values: Any) -> Any:
        found = original(self, feeds, values)
        calls.append((dict(feeds), {name: np.array(each) for name, each in values.items()}, *found))
        return found

    monkeypatch.setattr(BackwardEngine, "loss_and_gradients", telling)
    return calls


def test_a_mixed_step_is_the_one_that_a_hand_computes(seen: list[Any]) -> None:
    plain: list[Any] = []
    trained(model_of(WRONG), model_of(W), mixup=0.0)
    plain[:], seen[:] = seen[:], []
    trained(model_of(WRONG), model_of(W))
    assert len(seen) == len(plain) == STEP
    for step, ((before, *_), (feeds, values, loss, gradients)) in enumerate(zip(plain, seen, strict=True)):
        x, rng = before["x"].astype(np.float64), np.random.default_rng([3, step, 1])
        assert rng.integers(1) == 0  # which run of the step: there is one
        partners, shares = rng.permutation(len(x)), rng.beta(0.8, 0.8, len(x))
        mixed = np.stack([share * x[at] + (1 - share) * x[partners[at]] for at, share in enumerate(shares)])
        np.testing.assert_allclose(feeds["x"], mixed, atol=1e-6)
        weight = values["w"].astype(np.float64)
        assert loss == pytest.approx(distance(weight, mixed), abs=1e-5)  # of the teacher's answers to the mixed ones
        numeric = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            off = np.zeros_like(weight)
            off[place] = 1e-5
            numeric[place] = (distance(weight + off, mixed) - distance(weight - off, mixed)) / 2e-5
        np.testing.assert_allclose(gradients["w"], numeric, atol=2e-5)


def test_what_is_learned_from_mixed_samples_holds_for_the_samples() -> None:
    after, outcome = trained(model_of(WRONG), model_of(W), steps=300)
    details = outcome.changed[0].details
    assert details["loss_after"] < 0.2 * details["loss_before"]
    weight = next(onnx.numpy_helper.to_array(each) for each in after.proto.graph.initializer if each.name == "w")
    assert distance(weight.astype(np.float64), X) < 0.2 * distance(WRONG.astype(np.float64), X)


def test_the_same_bytes_come_twice_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WRITTEN_EVERY_S", -1.0)
    student, teacher = model_of(WRONG), model_of(W)
    whole, again = (trained(student, teacher, jobs=jobs)[0].to_bytes() for jobs in (1, 2))
    assert whole == again and whole != trained(student, teacher, mixup=0.0)[0].to_bytes()
    setup = TrainingSetup(engine="ort", checkpoints=tmp_path)
    calls, original = 0, BackwardEngine.loss_and_gradients

    def dying(self: Any, feeds: Any, values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == STEP // 2:
            raise KeyboardInterrupt
        return original(self, feeds, values)

    monkeypatch.setattr(BackwardEngine, "loss_and_gradients", dying)
    with pytest.raises(KeyboardInterrupt):
        trained(student, teacher, setup=setup)
    after, _ = trained(student, teacher, setup=setup)
    assert calls == STEP + 1 and after.to_bytes() == whole


def test_integers_are_not_mixed_and_that_is_said() -> None:
    given, body = "int64[N, 2] x", "f = Cast<to = 1>(x) y = MatMul(f, w)"
    ids = RNG.integers(0, 9, (60, 2))
    student, teacher = (model_of(weight[:2], body, given) for weight in (WRONG, W))
    found, outcome = trained(student, teacher, ids)
    assert [(each.name, "not mixed" in each.reason) for each in outcome.skipped] == [("x", True)]
    assert found.to_bytes() == trained(student, teacher, ids, mixup=0.0)[0].to_bytes()


def test_pictures_are_moved_only_where_there_are_some() -> None:
    _, outcome = trained(model_of(WRONG), model_of(W), mixup=0.0, shift=2, mirror=True)
    assert any("no input is a picture" in each.reason for each in outcome.skipped)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_halves_of_a_step_are_one_step_whoever_runs_them(mixup: float, seen: list[Any]) -> None:
    """The same samples, mixed before they are parted; the sum of the halves' gradients, weighed by their samples."""
    fields = {"batch_size": 40, "steps": 3, "mixup": mixup}
    found = [trained(model_of(WRONG), model_of(W), jobs=jobs, **fields)[0].to_bytes() for jobs in (1, 2)]
    assert found[0] == found[1]
    halves, seen[:] = seen[:6], []
    trained(model_of(WRONG), model_of(W), run_size=1000, **fields)
    for step, (feeds, _, loss, gradients) in enumerate(seen):
        own = halves[2 * step : 2 * step + 2]
        sizes = [len(each[0]["x"]) for each in own]
        np.testing.assert_array_equal(np.concatenate([each[0]["x"] for each in own]), feeds["x"])
        assert np.average([each[2] for each in own], weights=sizes) == pytest.approx(loss, rel=1e-4)
        summed = np.average([each[3]["w"] for each in own], weights=sizes, axis=0)
        np.testing.assert_allclose(summed, gradients["w"], rtol=1e-3, atol=1e-6)
