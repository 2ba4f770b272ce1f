"""The loop: it goes down, keeps the best, stops, and goes on after a kill as if nothing had been."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.training.optimization import loop
from onnxcomp.training.optimization.checkpoint import TrainingCheckpoint
from onnxcomp.training.optimization.loop import Trained, Training, TrainingPlan
from onnxcomp.training.optimization.optimizers import Adam, Sgd
from onnxcomp.training.optimization.schedules import SHAPES, rate_at

GOAL = np.array([3.0, -1.0, 0.5], np.float32)


@dataclass(frozen=True)
class OnePart:
    name: str = "net/w"  # names have slashes

    @property
    def form(self) -> "OnePart":
        return self

    def limited(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return arrays


@dataclass
class Valley:
    """A task whose loss is a paraboloid, with noise that depends on the step alone; ``held`` may be another one."""

    noise: float = 0.5
    held: Callable[[np.ndarray], float] | None = None
    parts: tuple[OnePart, ...] = (OnePart(),)
    seen: list[int] = field(default_factory=list)

    def start(self) -> dict[str, dict[str, Any]]:
        return {"net/w": {"values": np.zeros(3, np.float32)}}

    def units(self) -> dict[str, Any]:
        return {"net/w/values": np.float32(1)}

    def loss_and_gradients(self, step: int, arrays: Any, progress: float) -> tuple[float, dict[str, Any]]:
        self.seen.append(step)
        off = arrays["net/w"]["values"] - GOAL
        noise = np.random.default_rng(step).normal(0, self.noise, 3)
        return float(np.square(off).sum()), {"net/w/values": (2 * off + noise).astype(np.float32)}

    def held_loss(self, arrays: Any) -> float:
        values = arrays["net/w"]["values"]
        return float(np.square(values - GOAL).sum()) if self.held is None else self.held(values)


PLAN = TrainingPlan(steps=300, rate=0.05, evaluate_every=25)


def trained(task: Valley, plan: TrainingPlan = PLAN, **options: Any) -> Trained:
    return Training(task, plan, **options).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", SHAPES)
def test_it_goes_down(optimizer: str, schedule: str) -> None:
    found = trained(Valley(), replace(PLAN, optimizer=optimizer, schedule=schedule))
    assert found.first_loss == pytest.approx(float(np.square(GOAL).sum()))
    assert found.loss < 0.02 * found.first_loss
    np.testing.assert_allclose(found.arrays["net/w"]["values"], GOAL, atol=0.35)


def test_the_best_on_samples_held_back_is_kept() -> None:
    """Held back, a loss that is least on the way to the goal."""
    found = trained(Valley(noise=0.0, held=lambda values: abs(float(values[0]) - 1.0)))
    looks = dict(found.history)
    assert found.loss == min(looks.values()) < looks[PLAN.steps]
    assert abs(float(found.arrays["net/w"]["values"][0]) - 1.0) == pytest.approx(found.loss)


def test_it_ends_when_nothing_is_gained_any_more() -> None:
    found = trained(Valley(noise=0.0, held=lambda values: abs(float(values[0]) - 1.0)), replace(PLAN, patience=2))
    assert found.steps < PLAN.steps
    best = min(found.history, key=lambda each: each[1])[0]
    assert found.steps == best + 2 * PLAN.evaluate_every


def test_it_stops_when_the_time_is_up_with_what_it_has() -> None:
    task = Valley()
    found = trained(task, is_over=lambda: len(task.seen) >= 110)
    assert found.is_over and found.steps == 110
    assert found.history[-1][0] == 110
    again = trained(Valley(), replace(PLAN, until=110))
    np.testing.assert_array_equal(again.arrays["net/w"]["values"], found.arrays["net/w"]["values"])
    assert not again.is_over


def test_steps_whose_gradient_is_not_finite_are_left_out() -> None:
    class Broken(Valley):
        def loss_and_gradients(self, step: int, arrays: Any, progress: float) -> tuple[float, dict[str, Any]]:
            loss, gradients = super().loss_and_gradients(step, arrays, progress)
            return loss, {name: each * np.nan if step % 3 == 0 else each for name, each in gradients.items()}

    assert trained(Broken()).loss < 0.05 * float(np.square(GOAL).sum())


class Killed(BaseException):
    """What ends a process at once."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_after_a_kill_it_goes_on_as_if_nothing_had_been(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WRITTEN_EVERY_S", -1.0)  # after every step
    plan = replace(PLAN, optimizer=optimizer)
    whole = trained(Valley(), plan)
    kept = TrainingCheckpoint(tmp_path / "folder" / "training.npz", {"model": "a", "options": {"rate": 0.05}})
    for steps in (40, 90, 170):

        class Dying(Valley):
            limit = steps

            def loss_and_gradients(self, step: int, arrays: Any, progress: float) -> tuple[float, dict[str, Any]]:
                if step == self.limit:
                    raise Killed
                return super().loss_and_gradients(step, arrays, progress)

        with pytest.raises(Killed):
            trained(Dying(), plan, checkpoint=kept)
    last = Valley()
    found = trained(last, plan, checkpoint=kept)
    assert last.seen[0] == 170
    assert found.history == whole.history and found.loss == whole.loss and found.first_loss == whole.first_loss
    np.testing.assert_array_equal(found.arrays["net/w"]["values"], whole.arrays["net/w"]["values"])
    done = Valley()
    trained(done, plan, checkpoint=kept)
    assert done.seen == []  # what is through is not done again


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.npz"
    trained(Valley(), replace(PLAN, steps=3), checkpoint=TrainingCheckpoint(path, {"model": "a", "data": "b"}))
    with pytest.raises(ParameterError, match=r"with other data\b"):
        trained(Valley(), PLAN, checkpoint=TrainingCheckpoint(path, {"model": "a", "data": "c"}))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ParameterError, match="cannot be read"):
        trained(Valley(), PLAN, checkpoint=TrainingCheckpoint(path, {"model": "a", "data": "b"}))
    assert [each.name for each in tmp_path.iterdir()] == ["training.npz"]


def test_adam_s_steps_are_those_of_the_paper_in_units_of_the_array() -> None:
    arrays, gradients = {"w": np.array([1.0, -2.0], np.float32)}, np.random.default_rng(0).normal(size=(9, 2))
    optimizer = Adam({"w": np.float32(0.5)})
    m = v = np.zeros(2)
    expected = np.array([1.0, -2.0])
    for step, gradient in enumerate(gradients, 1):
        optimizer.step(arrays, {"w": gradient.astype(np.float32)}, 0.1)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected - 0.1 * 0.5 * (m / (1 - 0.9**step)) / np.sqrt(v / (1 - 0.999**step))
    np.testing.assert_allclose(arrays["w"], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", [Adam, Sgd])
def test_what_has_no_gradient_does_not_move_and_the_loss_s_scale_is_nothing(kind: type) -> None:
    moved = []
    for scale in (1.0, 1e-6):
        arrays = {"w": np.ones(3, np.float32)}
        optimizer = kind({"w": np.float32(1)})
        for step in range(5):
            gradient = scale * np.array([0.0, 1.0 + step, -2.0])
            optimizer.step(arrays, {"w": gradient.astype(np.float32)}, 0.01)
        assert arrays["w"][0] == 1
        moved.append(arrays["w"])
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-5)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at("cosine", step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * each for each in range(1, 11)])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.02
    assert rate_at("constant", 99, 100, 0) == 1.0
