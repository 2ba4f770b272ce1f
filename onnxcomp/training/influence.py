"""How much a model's outputs depend on its weights, told by gradients: no labels, a few hundred small backward passes.

    g = d(v . z(w)) / dw,   v: a random direction of the outputs z (``loss.directions``), anew for every sample

E g^2 is the diagonal of the second derivative of the loss by which outputs are compared, where they are what they
should be: the Fisher matrix of class scores, the Gauss-Newton matrix of values. Half of E (g . d)^2 is what a change
d of the weights costs. Samples that run together do not disturb each other: their directions are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import PassError
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model, copied
from onnxcomp.training.engine import Engine
from onnxcomp.training.engines import AUTO, chosen_engine
from onnxcomp.training.loss.directions import direction
from onnxcomp.training.loss.matching import Matching, open_dimensions
from onnxcomp.training.loss.terms import LOSS, LossTerm
from onnxcomp.training.loss.writer import NodeWriter
from onnxcomp.training.samples.stream import Chunk, TrainingStream
from onnxcomp.training.samples.teacher import OpenSession, Teacher, is_by_sample
from onnxcomp.training.step_memory import activation_bytes, refuse_large_step
from onnxcomp.training.student import private_copy

Array = NDArray[Any]
See = Callable[[Mapping[str, Array]], None]

PASSES = 256  # backward passes: each is one draw, and their mean is off by the square root of 2 / PASSES
TOGETHER = 8  # samples of a pass
SEEN_SAMPLES, SEEN_TOGETHER = 512, 64  # by which outputs are read
KEPT_OF_ACTIVATIONS = 2.5
KEPT_OF_PARAMETERS = 4.0  # values, their copy in the engine, gradient, sum of squares


class NoOutputsError(PassError):
    """None of the model's outputs has a derivative by which a change could be told."""


@dataclass(eq=False)
class GradientDraws:
    """Gradients of random directions of a model's outputs, by weights.

    names: of float32 constants of the main graph. asked: what outputs are by the user's word. seed: of directions and
    of the order of samples.
    """

    model: Model
    names: Sequence[str]
    data: CalibrationData
    open_session: OpenSession
    engine: str = AUTO
    seed: int = 0
    threads: int = 0
    asked: Mapping[str, str] | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    is_over: Callable[[], bool] = lambda: False
    passes: int = PASSES

    def run(self, see: See) -> int:
        """Hand over the gradients of each pass; gives the samples that were run. What is summed over passes and divided
        by that is a mean over samples.

        Raises NoGradientError, NoOutputsError or StepTooLargeError before any work.
        """
        stream = TrainingStream(self.data, TOGETHER, self.seed)
        teacher = Teacher(self.model, [each.name for each in self.model.proto.graph.output], self.open_session)
        with teacher.opened():
            terms = self._terms(teacher)
            engine, inputs = self._engine(terms, stream)
            values = _values(self.model, self.names)
            samples = 0
            for number in range(self.passes):
                if self.is_over():
                    break
                self.progress(number, self.passes, "drawing gradients")
                rng = np.random.default_rng([self.seed, number])
                for chunk in stream.batch(number):
                    see(engine.loss_and_gradients(self._feeds(chunk, terms, inputs, teacher, rng), values)[1])
                    samples += chunk.batch.count
        return samples

    def _terms(self, teacher: Teacher) -> list[LossTerm]:
        """How each output is compared, at the temperature at which it counts."""
        chunks = list(TrainingStream(self.data.first(SEEN_SAMPLES), SEEN_TOGETHER, self.seed).in_order())
        seen = [teacher.run(each.batch.feeds) for each in chunks]
        matching = Matching(temperature=1.0, asked=self.asked)
        found = matching.terms(self.model, self.model, seen, (), is_by_sample(teacher, chunks[0], seen[0]))
        if not found:
            raise NoOutputsError(f"{self.model.name}: none of its outputs is of floats that vary with the input")
        return found

    def _engine(self, terms: Sequence[LossTerm], stream: TrainingStream) -> tuple[Engine, list[str]]:
        """What differentiates, and the input of each term's direction."""
        copy = private_copy(self.model, self.names)
        proto = copied(copy.proto)
        open_dimensions(proto)
        writer = NodeWriter(proto, copy.opset)
        inputs, total = [], ""
        for term in terms:
            inputs.append(writer.input("direction", np.float32, term.rank))
            tensor = writer.as_float(term.student, term.dtype)
            along = writer.total(writer.node("Mul", tensor, inputs[-1]))
            total = writer.node("Add", total, along) if total else along
        loss = writer.free(LOSS)
        proto.graph.node.add(op_type="Identity", input=[total], output=[loss], name=loss)
        writer.outputs([loss])
        drawn = copy.with_proto(proto)
        self._refuse_lack(drawn, stream)
        kind = chosen_engine(self.engine, drawn, loss, self.names)
        return kind(drawn, loss, self.names, threads=self.threads), inputs

    def _refuse_lack(self, drawn: Model, stream: TrainingStream) -> None:
        batch = max(stream.batch(0), key=lambda each: each.batch.count).batch
        fixed = int(KEPT_OF_PARAMETERS * sum(each.nbytes for each in _values(self.model, self.names).values()))
        needed = fixed + int(KEPT_OF_ACTIVATIONS * activation_bytes(drawn.proto, batch.feeds))
        refuse_large_step(self.model.name, needed, fixed, batch.count)

    def _feeds(
        self, chunk: Chunk, terms: Sequence[LossTerm], inputs: Sequence[str], teacher: Teacher, rng: np.random.Generator
    ) -> dict[str, Array]:
        targets = teacher.run(chunk.batch.feeds)
        drawn = {
            name: (np.sqrt(chunk.batch.count) * direction(term, targets[term.teacher], rng)).astype(np.float32)
            for name, term in zip(inputs, terms, strict=True)
        }
        return {**chunk.batch.feeds, **drawn}


def squared_gradients(draws: GradientDraws) -> dict[str, Array]:
    """E g^2 of every weight, float64 and of its shape, by name; nothing where there was no time for a single pass."""
    sums: dict[str, Array] = {}

    def see(gradients: Mapping[str, Array]) -> None:
        for name, each in gradients.items():
            square = np.square(each, dtype=np.float64)
            if name in sums:
                sums[name] += square
            else:
                sums[name] = square

    samples = draws.run(see)
    return {name: each / samples for name, each in sums.items()}


def _values(model: Model, names: Sequence[str]) -> dict[str, Array]:
    held = constants_by_key(open_plain(model))
    return {name: np.asarray(held[name].values) for name in names}

