"""Train until the steps are done, the time is up, or samples that are held back show no gain any more.

What counts is the loss on the samples that are held back: the arrays with the least of it are the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.clock import clock
from onnxcomp.training.optimization.checkpoint import WRITTEN_EVERY_S, TrainingCheckpoint
from onnxcomp.training.optimization.optimizers import OPTIMIZERS, Optimizer
from onnxcomp.training.optimization.schedules import rate_at
from onnxcomp.training.optimization.task import Arrays, TrainingTask

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

LEAST_GAIN = 1e-3  # of the loss: what counts as better for going on
PROGRESS_EVERY = 10  # steps


@dataclass(frozen=True)
class TrainingPlan:
    """steps: of the whole training. rate: of a step, relative to the arrays. warm_up: steps until the full rate.
    evaluate_every: steps between looks at the samples held back. patience: looks without a gain after which it ends; 0
    for none. until: the step before which to stop, though the schedule goes on to ``steps``."""

    steps: int
    rate: float
    optimizer: str = "adam"
    schedule: str = "cosine"
    warm_up: int = 0
    evaluate_every: int = 100
    patience: int = 0
    until: int | None = None

    @property
    def last(self) -> int:
        """The step before which it ends."""
        return self.steps if self.until is None else min(self.until, self.steps)


@dataclass(eq=False)
class TrainingState:
    """All that the next step depends on."""

    arrays: Arrays
    optimizer: Optimizer
    step: int = 0
    best: Arrays = field(default_factory=dict)
    best_loss: float = math.inf
    first_loss: float = math.inf
    waited: int = 0  # looks since the last gain
    history: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """The arrays of the least loss on the samples held back. first_loss, loss: there, before and now. steps: done;
    is_over: the time came before the end; history: (step, loss held back)."""

    arrays: Arrays
    first_loss: float
    loss: float
    steps: int
    is_over: bool
    history: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Training:
    """One training, to be run once. is_over: whether the deadline has come."""

    task: TrainingTask
    plan: TrainingPlan
    progress: Progress = lambda done, total, what: None
    is_over: Callable[[], bool] = lambda: False
    checkpoint: TrainingCheckpoint | None = None

    def run(self) -> Trained:
        """Train, from the checkpoint on where there is one."""
        state = self._restored() or self._fresh()
        written = clock()
        late = False
        while state.step < self.plan.last and not self._is_stalled(state):
            if self.is_over():
                late = True
                break
            self._step(state)
            if state.step % self.plan.evaluate_every == 0 or state.step == self.plan.last:
                self._look(state)
            if self.checkpoint is not None and clock() - written > WRITTEN_EVERY_S:
                self._write(state)
                written = clock()
        if late and state.step % self.plan.evaluate_every:
            self._look(state)
        if self.checkpoint is not None:
            self._write(state)
        history = tuple(state.history)
        return Trained(state.best, state.first_loss, state.best_loss, state.step, late, history)

    def _fresh(self) -> TrainingState:
        state = TrainingState(self.task.start(), OPTIMIZERS[self.plan.optimizer](self.task.units()))
        self._look(state)
        state.first_loss = state.best_loss
        return state

    def _step(self, state: TrainingState) -> None:
        progress = state.step / self.plan.steps
        loss, gradients = self.task.loss_and_gradients(state.step, state.arrays, progress)
        if state.step % PROGRESS_EVERY == 0:
            self.progress(state.step, self.plan.steps, f"training, loss {loss:.3g}, held back {state.best_loss:.3g}")
        rate = self.plan.rate * rate_at(self.plan.schedule, state.step, self.plan.steps, self.plan.warm_up)
        if all(np.isfinite(each).all() for each in gradients.values()):
            flat = _flat(state.arrays)
            state.optimizer.step(flat, gradients, rate)
            state.arrays = self._limited(_nested(flat))
        state.step += 1

    def _limited(self, arrays: Arrays) -> Arrays:
        return {part.name: part.form.limited(arrays[part.name]) for part in self.task.parts}

    def _look(self, state: TrainingState) -> None:
        """Measure on the samples held back, and keep the arrays where they are better."""
        loss = self.task.held_loss(state.arrays)
        loss = loss if math.isfinite(loss) else math.inf
        state.history.append((state.step, loss))
        gained = loss < state.best_loss * (1 - LEAST_GAIN) or not state.best
        state.waited = 0 if gained else state.waited + 1
        if loss < state.best_loss or not state.best:
            state.best_loss, state.best = loss, _copied(state.arrays)

    def _is_stalled(self, state: TrainingState) -> bool:
        return 0 < self.plan.patience <= state.waited

    # --- on disk ---

    def _write(self, state: TrainingState) -> None:
        assert self.checkpoint is not None
        facts = {
            "step": state.step,
            "steps": self.plan.steps,
            "rate": self.plan.rate,
            "count": state.optimizer.count,
            "best_loss": state.best_loss,
            "first_loss": state.first_loss,
            "waited": state.waited,
            "history": state.history,
        }
        arrays = {f"now:{name}": each for name, each in _flat(state.arrays).items()}
        arrays |= {f"best:{name}": each for name, each in _flat(state.best).items()}
        arrays |= {f"state:{name}": each for name, each in state.optimizer.state.items()}
        self.checkpoint.write(facts, arrays)

    def _restored(self) -> TrainingState | None:
        found = None if self.checkpoint is None else self.checkpoint.read()
        if found is None:
            return None
        facts, arrays = found
        optimizer = OPTIMIZERS[self.plan.optimizer](self.task.units(), _of("state:", arrays), int(facts["count"]))
        return TrainingState(
            _nested(_of("now:", arrays)),
            optimizer,
            int(facts["step"]),
            _nested(_of("best:", arrays)),
            float(facts["best_loss"]),
            float(facts["first_loss"]),
            int(facts["waited"]),
            [(int(step), float(loss)) for step, loss in facts["history"]],
        )


def _flat(arrays: Arrays) -> dict[str, Array]:
    return {f"{part}/{name}": each for part, own in arrays.items() for name, each in own.items()}


def _nested(flat: dict[str, Array]) -> Arrays:
    found: Arrays = {}
    for name, each in flat.items():
        part, _, own = name.rpartition("/")
        found.setdefault(part, {})[own] = each
    return found


def _copied(arrays: Arrays) -> Arrays:
    return {part: {name: np.array(each) for name, each in own.items()} for part, own in arrays.items()}


def _of(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
