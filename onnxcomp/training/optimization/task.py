"""One training as it is run: a student with its loss, an engine that differentiates it, samples, and the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.training.engine import Engine
from onnxcomp.training.loss.terms import LabelTerm, LossTerm, all_feeds
from onnxcomp.training.samples.stream import Chunk, TrainingStream
from onnxcomp.training.samples.teacher import Teacher
from onnxcomp.training.student import TrainedPart, values_of

Array = NDArray[Any]
Arrays = dict[str, dict[str, Array]]  # part -> free array -> values


@dataclass(eq=False)
class TrainingTask:
    """parts: what is trained. terms: of the loss, whose inputs are fed. held: samples that are not trained on.
    pool: threads that share the runs of a step, None for none; what comes of them is the same."""

    engine: Engine
    parts: Sequence[TrainedPart]
    terms: Sequence[LossTerm]
    teacher: Teacher
    stream: TrainingStream
    held: TrainingStream
    pool: Executor | None = None

    def start(self) -> Arrays:
        """The free arrays as they are now."""
        return {part.name: part.form.start() for part in self.parts}

    def units(self) -> dict[str, Array]:
        """By part and array: what steps are relative to."""
        return {f"{part.name}/{name}": each for part in self.parts for name, each in part.form.units().items()}

    def loss_and_gradients(self, step: int, arrays: Arrays, progress: float) -> tuple[float, dict[str, Array]]:
        """The loss of a step's batch, and its gradient by part and array."""
        values = values_of(self.parts, arrays, progress)
        chunks = self.stream.batch(step)
        count = sum(each.batch.count for each in chunks)
        loss = 0.0
        adjoints: dict[str, Array] = {part.name: np.zeros(values[part.name].shape, np.float32) for part in self.parts}
        for chunk, (own, found) in zip(chunks, self._runs(chunks, values), strict=True):
            share = chunk.batch.count / count
            loss += share * own
            for name, each in found.items():
                adjoints[name] = adjoints[name] + np.float32(share) * each if share < 1 else each
        return loss, self._pulled(adjoints, arrays, progress)

    def _runs(
        self, chunks: Sequence[Chunk], values: Mapping[str, Array]
    ) -> Iterable[tuple[float, Mapping[str, Array]]]:
        """Loss and gradients of each chunk, in order. Answers that the teacher keeps are asked for one by one."""

        def run(chunk: Chunk, feeds: Mapping[str, Any] | None) -> tuple[float, Mapping[str, Array]]:
            return self.engine.loss_and_gradients(self.feeds(chunk) if feeds is None else feeds, values)

        if self.pool is None:
            return (run(chunk, None) for chunk in chunks)
        known = [None if chunk.is_drawn else self.feeds(chunk) for chunk in chunks]
        return self.pool.map(run, chunks, known)

    def _pulled(self, adjoints: Mapping[str, Array], arrays: Arrays, progress: float) -> dict[str, Array]:
        gradients = {}
        for part in self.parts:
            own = part.form.pull(arrays[part.name], adjoints[part.name], progress)
            added = part.form.penalty(arrays[part.name], progress)
            for name, each in own.items():
                gradients[f"{part.name}/{name}"] = each + added[name] if name in added else each
        return gradients

    def held_loss(self, arrays: Arrays) -> float:
        """The mean loss over the samples that are not trained on, with all that hardens hard."""
        return self._held_loss(values_of(self.parts, arrays, 1.0))

    def loss_before(self) -> float:
        """The same of the model as it is, which need not be what the training starts from."""
        return self._held_loss({part.name: np.asarray(part.form.initial, np.float32) for part in self.parts})

    def _held_loss(self, values: Mapping[str, Array]) -> float:
        total, count = 0.0, 0
        for chunk in self.held.in_order():
            outputs = self.engine.forward(self.feeds(chunk), values)
            total += chunk.batch.count * float(next(iter(outputs.values())))
            count += chunk.batch.count
        return total / max(1, count)

    def feeds(self, chunk: Chunk) -> dict[str, Any]:
        """The student's inputs and those of its loss."""
        return {**chunk.batch.feeds, **all_feeds(self.terms, self.targets(chunk))}

    def targets(self, chunk: Chunk) -> dict[str, Array]:
        """What each term is held against, by the teacher's name."""
        found = self.teacher.targets(chunk)
        for term in self.terms:
            if isinstance(term, LabelTerm):
                found[term.teacher] = _wanted_classes(term, chunk)
        return found


def _wanted_classes(term: LabelTerm, chunk: Chunk) -> Array:
    """(samples, classes) what the labels ask for: of mixed samples, the mixture of both."""
    own, mixture = term.one_hot(np.asarray(chunk.batch.labels)), chunk.mixture
    if mixture is None:
        return own
    shares = mixture.shares.astype(np.float32)[:, None]
    return shares * own + (1 - shares) * term.one_hot(np.asarray(mixture.labels))
