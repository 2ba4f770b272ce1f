"""Weights are trained so that the model gives what the original does, and keep what earlier passes made of them.

    w = form(a)        a <- a - rate * dL(w) / da        L: how far the outputs are from the original's

A pruned weight keeps its zeros, a clustered one its codebook (a level is one parameter for all that have it), a rounded
one its grid. No labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, Structure, parameter
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.provenance import Origin, Reference
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.training.engine import Array, NoGradientError
from onnxcomp.training.engines import AUTO
from onnxcomp.training.finetuning import Choices, Finetuning, NothingToTrainError
from onnxcomp.training.loss.matching import LOSSES, Matching
from onnxcomp.training.optimization.identity import training_identity
from onnxcomp.training.optimization.loop import Trained
from onnxcomp.training.optimization.optimizers import OPTIMIZERS
from onnxcomp.training.optimization.schedules import SHAPES
from onnxcomp.training.quantized import put_integers
from onnxcomp.training.samples.stream import LEAST_SAMPLES
from onnxcomp.training.setup import TrainingSetup
from onnxcomp.training.step_memory import StepTooLargeError
from onnxcomp.training.student import ROUNDINGS, PartFinder, TrainedPart, untie

NO_REFERENCE = "nothing was lost before, or the model from before is not known (--reference names it)"
NO_NEARER = "training brings the outputs no nearer to the original's"

Made = Mapping[str, tuple[Array, Encoding | None]]


@dataclass(frozen=True, kw_only=True)
class Finetune(Pass):
    """Train the weights towards the original's outputs, keeping zeros, codebooks and grids as they are.

    The original is the model from before the first step that lost something, or ``--reference``; the samples are those
    of ``--train-data``, or the calibration part. What counts is the loss on samples that are held back, of which the
    best weights are kept; trained on the calibration part, the divergence there must be less, too. Needs an engine for
    gradients: torch (the extra onnxcomp[train]) or, in any installation, ONNX Runtime by rules.

    Levels that are trained stay as many as they were. Which level a weight has may change (straight-through, with
    learned scales as in LSQ, https://arxiv.org/abs/1902.08153), is fixed (Deep Compression's trained quantization), or
    is one of the two around it (AdaRound, https://arxiv.org/abs/2004.10568). Steps are relative to the size of what is
    moved. Weights in subgraphs and functions and those that are not float32 are left alone.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1503.02531"
    trains = True
    destroys = frozenset({Structure.COMPACT})

    loss: str = parameter(
        "auto",
        choices=LOSSES,
        help="how outputs are held against the original's: KL of softened classes, squared error relative to its "
        "spread, cosine; auto: by what each output is",
    )
    temperature: float | None = parameter(
        None, low=0.1, high=100.0, help="of softened classes; unset: the least that leaves the original unsure of some"
    )
    inner: float = parameter(
        0.0, low=0.0, high=1000.0, help="weight of inner tensors beside the outputs, all together; 0 for none"
    )
    inner_tensors: str = parameter(
        "", help="their names, separated by commas, for such as both models have; none: some outputs of linear nodes"
    )
    labels: float = parameter(
        0.0, low=0.0, high=1000.0, help="weight of the cross-entropy with the labels, where the samples have some"
    )
    rounding: str = parameter(
        "auto",
        choices=ROUNDINGS,
        help="how weights with levels are trained: their levels alone (fixed), with levels that may be exchanged "
        "(straight-through; blend: more and more so), by choosing up or down (adaround); auto: straight-through, for "
        "the coarsest blend",
    )
    biases: bool = parameter(True, help="train biases and the vectors of normalizations, too")
    scales: bool = parameter(True, help="train the scales of quantized activations, too")
    untie: bool = parameter(False, help="give each node its own copy of a bias that several share")
    optimizer: str = parameter("adam", choices=tuple(OPTIMIZERS), help="how steps follow gradients")
    rate: float | None = parameter(
        None,
        low=1e-7,
        high=10.0,
        help="of a step at its fastest, relative to the weights; unset: the best of some, by short trainings",
    )
    schedule: str = parameter("cosine", choices=tuple(SHAPES), help="how the rate falls")
    epochs: float | None = parameter(
        None, low=1e-3, high=1e6, help="times through the samples; unset: 20, within 400 to 8000 steps and --train-time"
    )
    steps: int | None = parameter(None, low=1, high=10**9, help="exactly so many steps, whatever epochs and time say")
    until: int | None = parameter(None, low=0, high=10**9, help="stop before this step of the schedule")
    batch_size: int = parameter(64, low=1, high=10**6, help="samples of a step")
    run_size: int | None = parameter(
        None, low=1, high=10**6, help="samples run at once, where a step's do not fit in memory; unset: all of a step"
    )
    mixup: float = parameter(
        0.0,
        low=0.0,
        high=100.0,
        help="mix each sample of a step with another, in shares of Beta(a, a) for this a; 1: any share alike; 0: none. "
        "The original sees the same",
    )
    shift: int = parameter(0, low=0, high=1000, help="move pictures by up to so many pixels, anew at each step")
    mirror: bool = parameter(False, help="mirror every other picture, left for right")
    patience: int = parameter(
        0,
        low=0,
        high=1000,
        help="looks (40 in a training) at the samples held back without a gain that end it; 0: none",
    )

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        reason = self._obstacle(graph, context)
        if reason is not None:
            outcome.skip(graph.model.name, reason)
            return outcome
        reference = context.reference
        assert reference is not None
        tied = self._tied(graph, context) if self.untie else []
        parts = self._parts(graph, context, reference, outcome, tied)
        teacher = reference
        if context.original is not None and context.original is not reference.model:
            teacher = Reference(context.original, dict.fromkeys(_tensors(graph), Origin(None)))
        if parts:
            self._train(graph, parts, tied, context, teacher, outcome)
        return outcome

    def _obstacle(self, graph: Graph, context: Context) -> str | None:
        """Why nothing can be trained, or None."""
        if context.reference is None or (context.original or context.reference.model) is graph.model:
            return NO_REFERENCE
        data = _data_of(context)
        if data is None or data.is_random or data.sample_count < LEAST_SAMPLES:
            count = 0 if data is None or data.is_random else data.sample_count
            return f"{count} samples are too few to train on: {LEAST_SAMPLES} are the least"
        return None

    # --- what is trained ---

    def _finder(self, context: Context, reference: Reference, outcome: Outcome) -> PartFinder:
        return PartFinder(context.selects, outcome.skip, self.rounding, self.biases, self.scales, reference.constant)

    def _tied(self, graph: Graph, context: Context) -> list[str]:
        """The vectors that several nodes read."""
        finder = PartFinder(context.selects, lambda name, reason: None)
        return [part.name for part in finder.parts(graph) if part.is_vector and part.readers > 1]

    def _parts(
        self, graph: Graph, context: Context, reference: Reference, outcome: Outcome, tied: Sequence[str]
    ) -> list[TrainedPart]:
        own = graph
        if tied:
            own = open_plain(graph.model)
            untie(own, tied)
        return self._finder(context, reference, outcome).parts(own)

    # --- training ---

    def _train(
        self,
        graph: Graph,
        parts: list[TrainedPart],
        tied: Sequence[str],
        context: Context,
        teacher: Reference,
        outcome: Outcome,
    ) -> None:
        work = self._finetuning(graph.model, parts, tied, context, teacher)
        try:
            trained = work.run()
        except (NoGradientError, NothingToTrainError, StepTooLargeError) as error:
            if work.setup.engine != AUTO and isinstance(error, NoGradientError):
                raise
            outcome.skip(graph.model.name, str(error))
            return
        for name, reason in (*work.unreached.items(), *work.declined.items()):
            outcome.skip(name, reason)
        made = {part.name: part.form.settled(trained.arrays[part.name]) for part in work.parts}
        if not trained.loss < trained.first_loss or not self._is_nearer(graph.model, made, tied, context):
            outcome.skip(graph.model.name, NO_NEARER)
            return
        _put_in(graph, made, tied)
        _tell(trained, work, outcome)

    def _finetuning(
        self, model: Model, parts: list[TrainedPart], tied: Sequence[str], context: Context, teacher: Reference
    ) -> Finetuning:
        data = _data_of(context)
        assert data is not None
        setup = context.training or TrainingSetup()
        which = tuple(each.strip() for each in self.inner_tensors.split(",") if each.strip())
        matching = Matching(self.loss, self.temperature, self.inner, which, self.labels, context.outputs)
        choices = Choices(
            self.optimizer, self.rate, self.schedule, self.epochs, self.steps, self.until,
            self.batch_size, self.run_size, self.patience, self.mixup, self.shift, self.mirror,
        )  # fmt: skip
        names = [part.name for part in parts]
        return Finetuning(
            model, teacher, parts, data, matching, choices, setup, context.open_session,
            seed=context.seed,
            threads=context.jobs,
            edit=(lambda graph: untie(graph, tied)) if tied else None,
            progress=context.progress,
            is_over=context.is_over,
            left_s=context.left_s,
            belongs_to=training_identity(model, teacher.model, data, setup, names, self, context.seed),
        )  # fmt: skip

    def _is_nearer(self, model: Model, made: Made, tied: Sequence[str], context: Context) -> bool:
        """Whether the trained model is nearer to the original on the calibration part, where it was trained on that.

        Passes before were fitted to that part, so that samples of their own, held back, tell better.
        """
        if context.divergence is None or _data_of(context) is not context.calibration:
            return True
        graph = open_plain(model)
        _put_in(graph, made, tied)
        before = context.divergence(model)
        after = context.divergence(close_graph(graph))
        return after < before or (not math.isfinite(before) and math.isfinite(after))


def _tensors(graph: Graph) -> list[str]:
    """The names of what the nodes of the main graph compute."""
    return [out.name for node in graph.main.graph.nodes for out in node.outputs]


def _data_of(context: Context) -> Any:
    """The samples to train on."""
    own = None if context.training is None else context.training.data
    return own or context.calibration


def _put_in(graph: Graph, made: Made, tied: Sequence[str]) -> None:
    """Give constants their new values."""
    if tied:
        untie(graph, tied)
    held = constants_by_key(graph)
    integers = put_integers(graph, made)
    for name, (values, encoding) in made.items():
        if name in integers:
            continue
        if not np.array_equal(held[name].values, values):
            held[name].values = values
        graph.encodings.pop(name, None)
        if encoding is not None:
            graph.encodings[name] = encoding


def _tell(trained: Trained, work: Finetuning, outcome: Outcome) -> None:
    """Say what was trained, and how to do exactly that again."""
    assert work.plan is not None
    what = f"trained by {work.engine}, loss on samples held back {trained.first_loss:.3g} to {trained.loss:.3g}"
    for part in work.parts:
        shared = f", as one for its {part.readers} readers" if part.is_vector and part.readers > 1 else ""
        outcome.change(part.known_as, what + shared, loss_before=trained.first_loss, loss_after=trained.loss)
    outcome.settled |= {"steps": work.plan.steps, "rate": work.plan.rate}
    if trained.is_over:
        outcome.settled["until"] = trained.steps
