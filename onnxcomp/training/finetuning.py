"""A model trained towards another one on samples without labels: all that is decided before the loop runs.

weights -> parts; private copy + loss -> engine; samples -> a stream and some held back; original -> teacher
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxcomp.calibration import CalibrationData
from onnxcomp.clock import clock
from onnxcomp.errors import PassError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import Model, copied
from onnxcomp.parallel import cores
from onnxcomp.training.engine import Engine, NoGradientError
from onnxcomp.training.engines import chosen_engine
from onnxcomp.training.loss.matching import Matching, open_dimensions
from onnxcomp.training.loss.terms import LossTerm, add_loss
from onnxcomp.training.optimization.checkpoint import TrainingCheckpoint
from onnxcomp.training.optimization.loop import Trained, Training, TrainingPlan
from onnxcomp.training.optimization.task import TrainingTask
from onnxcomp.training.samples.pictures import picture_planes
from onnxcomp.training.samples.stream import Chunk, TrainingStream, held_out
from onnxcomp.training.samples.teacher import OpenSession, Teacher, is_by_sample
from onnxcomp.training.samples.variation import Variation, mixing_obstacle
from onnxcomp.training.setup import TrainingSetup
from onnxcomp.training.step_memory import activation_bytes, refuse_large_step, step_bytes
from onnxcomp.training.student import TrainedPart, free_count, private_copy

Array = NDArray[Any]

SEEN_SAMPLES = 512  # of those held back: by which outputs are read
LARGE_PARAMETERS = 10**6  # have the rate below; it falls with the square root of their number
RATE, LEAST_RATE, MOST_RATE = 1e-2, 1e-3, 3e-2
RATES_TRIED = (1.0, 0.3, 0.1, 0.03)  # of that rate
TRIED_SHARE, LEAST_TRIED, MOST_TRIED = 25, 20, 200  # of the steps for each rate that is tried; at least, at most
WARM_UP_SHARE = 0.03
LOOKS = 40  # at the samples held back, in a whole training
LEAST_BETWEEN = 10  # steps
MOST_ASKED = 64  # parts of which it is asked one by one whether a gradient reaches them
EPOCHS = 20.0
LEAST_STEPS, MOST_STEPS = 400, 8000  # where neither epochs nor time say it
TIMED_STEPS = 3
PARTS, LEAST_APART = 2, 32  # runs of a step, of batches of as many samples at least: two cores do one each
LOOK_SHARE = 0.9  # of the time is for steps
NO_PICTURES = "no input is a picture, read by a convolution or pooling of two axes: nothing is shifted or mirrored"


class NothingToTrainError(PassError):
    """No output or inner tensor that a loss could hold against the original's."""


@dataclass(frozen=True)
class Choices:
    """How a training goes, as a user says it; None for what is decided here."""

    optimizer: str = "adam"
    rate: float | None = None
    schedule: str = "cosine"
    epochs: float | None = None
    steps: int | None = None
    until: int | None = None
    batch_size: int = 64
    run_size: int | None = None
    patience: int = 0
    mixup: float = 0.0
    shift: int = 0
    mirror: bool = False


@dataclass(eq=False)
class Finetuning:
    """model: what is trained, of which ``parts`` are constants. reference: what it is held against.

    belongs_to: by what its checkpoint is told from that of another training. seed: of the order of samples.
    """

    model: Model
    reference: Reference
    parts: Sequence[TrainedPart]
    data: CalibrationData
    matching: Matching
    choices: Choices
    setup: TrainingSetup
    open_session: OpenSession
    seed: int = 0
    threads: int = 0
    edit: Callable[[Graph], Any] | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    is_over: Callable[[], bool] = lambda: False
    left_s: float = math.inf
    belongs_to: Mapping[str, Any] = field(default_factory=dict)
    plan: TrainingPlan | None = None
    needed_bytes: int = 0
    engine: str = ""
    unreached: dict[str, str] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    def run(self) -> Trained:
        """Train. Raises NoGradientError, StepTooLargeError or NothingToTrainError before any work."""
        with self._task() as task:
            self.plan = self._planned(task)
            training = Training(task, self.plan, self.progress, self.is_over, self._checkpoint())
            return dataclasses.replace(training.run(), first_loss=task.loss_before())

    @contextlib.contextmanager
    def _task(self) -> Iterator[TrainingTask]:
        trained, held = held_out(self.data, self.seed)
        most = self.choices.run_size or 2**31
        stream = TrainingStream(trained, self.choices.batch_size, self.seed, most)
        looked = TrainingStream(held, max(self.choices.batch_size, 256), self.seed, most)
        student = private_copy(self.model, [each.name for each in self.parts], self.edit)
        inner = self.matching.inner_names(student, self.reference.model, self.reference.is_as_it_was)
        outputs = [each.name for each in self.reference.model.proto.graph.output]
        teacher = Teacher(self.reference.model, [*outputs, *inner], self.open_session)
        with teacher.opened():
            terms = self._terms(student, teacher, looked, inner)
        teacher.names = list(dict.fromkeys(each.teacher for each in terms))
        label = self.matching.label_term(terms) if self.data.has_labels else None
        terms = [*terms, *([] if label is None else [label])]
        lossy, loss = _with_loss(student, terms)
        kind = self._engine_for(lossy, loss)
        threads, workers = self.threads or cores(), 1
        if kind.runs_in_threads and self.choices.run_size is None and self.choices.batch_size >= LEAST_APART:
            stream.most = -(-self.choices.batch_size // PARTS)
            workers = min(PARTS, threads)
        stream.vary = self._variation(stream).varied
        self._refuse_lack(lossy, stream, workers)
        names = [part.name for part in self.parts]
        with teacher.opened(), ThreadPoolExecutor(workers) as pool:
            engine = kind(lossy, loss, names, threads=threads // workers)
            shared = pool if workers > 1 else None
            yield TrainingTask(engine, self.parts, terms, teacher, stream, looked, shared)

    def _variation(self, stream: TrainingStream) -> Variation:
        """What samples become, as far as these inputs can; what they cannot is told in ``declined``."""
        choices, planes = self.choices, {}
        mixup = choices.mixup
        if mixup and (obstacle := mixing_obstacle(stream.batch(0))) is not None:
            mixup, self.declined[obstacle[0]] = 0.0, obstacle[1]
        if choices.shift or choices.mirror:
            planes = picture_planes(self.model.proto)
            if not planes:
                self.declined[self.model.name] = NO_PICTURES
        return Variation(mixup, choices.shift, choices.mirror, planes, self.seed)

    def _engine_for(self, lossy: Model, loss: str) -> type[Engine]:
        """The engine; where none can differentiate with respect to all parts, those that no gradient reaches are left
        out of ``parts`` and told in ``unreached``."""
        try:
            kind = chosen_engine(self.setup.engine, lossy, loss, [part.name for part in self.parts])
        except NoGradientError as error:
            alone = {part.name: self._engine_of_one(lossy, loss, part) for part in self.parts[:MOST_ASKED]}
            able = [part for part in self.parts if alone.get(part.name) is not None]
            if not able:
                raise
            self.unreached = {part.known_as: str(error) for part in self.parts if part not in able}
            self.parts = able
            kind = chosen_engine(self.setup.engine, lossy, loss, [part.name for part in able])
        self.engine = kind.name
        return kind

    def _engine_of_one(self, lossy: Model, loss: str, part: TrainedPart) -> type[Engine] | None:
        try:
            return chosen_engine(self.setup.engine, lossy, loss, [part.name])
        except NoGradientError:
            return None

    def _terms(self, student: Model, teacher: Teacher, held: TrainingStream, inner: Sequence[str]) -> list[LossTerm]:
        chunks: list[Chunk] = []
        for chunk in held.in_order():
            chunks.append(chunk)
            if sum(each.batch.count for each in chunks) >= SEEN_SAMPLES:
                break
        seen = [teacher.run(each.batch.feeds) for each in chunks]
        teacher.by_sample = is_by_sample(teacher, chunks[0], seen[0])
        found = self.matching.terms(student, self.reference.model, seen, inner, teacher.by_sample)
        if not found:
            raise NothingToTrainError(f"{self.model.name}: none of its outputs is of floats that vary with the input")
        return found

    def _refuse_lack(self, lossy: Model, stream: TrainingStream, workers: int) -> None:
        """State what a step takes, and refuse one that does not fit."""
        chunks = stream.batch(0)
        largest = max(chunks, key=lambda each: each.batch.count)
        at_once = min(workers, len(chunks))
        fixed = step_bytes(0, free_count(self.parts))
        activations = at_once * activation_bytes(lossy.proto, largest.batch.feeds)
        self.needed_bytes = step_bytes(activations, free_count(self.parts))
        self.progress(0, 1, f"a training step takes about {self.needed_bytes / 1e6:,.0f} MB")
        refuse_large_step(self.model.name, self.needed_bytes, fixed, at_once * largest.batch.count)

    # --- how long and how fast ---

    def _planned(self, task: TrainingTask) -> TrainingPlan:
        steps, choices = self._steps(task), self.choices
        plan = TrainingPlan(
            steps=steps,
            rate=0.0,
            optimizer=choices.optimizer,
            schedule=choices.schedule,
            warm_up=int(WARM_UP_SHARE * steps),
            evaluate_every=max(LEAST_BETWEEN, -(-steps // LOOKS)),
            patience=choices.patience,
            until=choices.until,
        )
        rate = choices.rate or self._checkpoint_facts().get("rate") or self._tried_rate(task, plan)
        return dataclasses.replace(plan, rate=float(rate))

    def _tried_rate(self, task: TrainingTask, plan: TrainingPlan) -> float:
        """The rate by which a short training gets furthest on the samples held back, tried from the highest down."""
        steps = min(MOST_TRIED, max(LEAST_TRIED, plan.steps // TRIED_SHARE))
        if steps >= plan.steps:
            return default_rate(free_count(self.parts))
        short = dataclasses.replace(
            plan, steps=steps, warm_up=int(WARM_UP_SHARE * steps), evaluate_every=steps, patience=0, until=None
        )
        best, least = 0.0, math.inf
        for share in RATES_TRIED:
            rate = default_rate(free_count(self.parts)) * share
            told = functools.partial(_told, self.progress, f"trying the rate {rate:.2g}")
            found = Training(task, dataclasses.replace(short, rate=rate), told, self.is_over).run().history[-1][1]
            if found >= least:
                break
            best, least = rate, found
        return best or default_rate(free_count(self.parts))

    def _steps(self, task: TrainingTask) -> int:
        known = self._checkpoint_facts().get("steps") or self.choices.steps
        if known is not None:
            return int(known)
        an_epoch = task.stream.batches_in_epoch
        if self.choices.epochs is not None:
            wanted = max(1, round(self.choices.epochs * an_epoch))
        elif math.isfinite(self.setup.limit_s):
            wanted = 2**31
        else:
            wanted = min(MOST_STEPS, max(LEAST_STEPS, round(EPOCHS * an_epoch)))
        limit = min(self.setup.limit_s, self.left_s)
        if math.isinf(limit):
            return wanted
        return max(1, min(wanted, self._in_time(task, limit)))

    def _in_time(self, task: TrainingTask, limit_s: float) -> int:
        """How many steps are done within the limit, by what the first ones and a look at the samples held back take."""
        arrays = task.start()
        began = clock()
        task.held_loss(arrays)
        look_s = clock() - began
        task.loss_and_gradients(0, arrays, 0.0)  # the first is slower than others
        began = clock()
        for step in range(TIMED_STEPS):
            task.loss_and_gradients(step, arrays, 0.0)
        step_s = (clock() - began) / TIMED_STEPS
        tried = len(RATES_TRIED) / TRIED_SHARE if self.choices.rate is None else 0.0
        return max(1, int((LOOK_SHARE * limit_s - LOOKS * look_s) / (1 + tried) / max(step_s, 1e-9)))

    # --- on disk ---

    def _checkpoint(self) -> TrainingCheckpoint | None:
        if self.setup.checkpoints is None:
            return None
        path = self.setup.checkpoints / f"training-{str(self.belongs_to.get('model', ''))[:12]}.npz"
        return TrainingCheckpoint(path, dict(self.belongs_to) | {"engine": self.engine})

    def _checkpoint_facts(self) -> Mapping[str, Any]:
        """What the checkpoint says, where there is one: it may have been written under another limit of time."""
        kept = self._checkpoint()
        found = None if kept is None else kept.read()
        return {} if found is None else found[0]


def default_rate(parameters: int) -> float:
    """The rate of a step, relative to the weights, for so many of them."""
    return min(MOST_RATE, max(LEAST_RATE, RATE * math.sqrt(LARGE_PARAMETERS / max(1, parameters))))


def _told(progress: Callable[[int, int, str], None], what: str, done: int, total: int, _: str) -> None:
    progress(done, total, what)


def _with_loss(student: Model, terms: Sequence[LossTerm]) -> tuple[Model, str]:
    proto = copied(student.proto)
    open_dimensions(proto)
    loss = add_loss(proto, student.opset, terms)
    return student.with_proto(proto), loss
