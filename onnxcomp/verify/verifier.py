"""Verifier: the original's outputs once, then any number of models compared with them.

    verifier = Verifier(original, data, target=Target.of("cpu"))
    verdict = verifier.check(rewritten)

    trials = verifier.trials(model)                   # of many values for the same weights
    verdict = trials.check({"fc1.weight": rounded})

The default metric, its threshold and how they were chosen: docs/decisions/0003-default-metric.md.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.sources import call_score
from onnxcomp.errors import ModelError, ParameterError, TargetError, VerificationError
from onnxcomp.graph.dataflow.output_operators import SCORING, ends
from onnxcomp.model import Model
from onnxcomp.nearest import meant
from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats
from onnxcomp.runtime import Value
from onnxcomp.target import Target
from onnxcomp.verify.accuracy import Labels, labels_of
from onnxcomp.verify.candidate import ISOLATE_FROM_BYTES, Candidate, WholeModel
from onnxcomp.verify.closed_loop import ClosedLoop, closed_loop_for
from onnxcomp.verify.comparison import ComparedBatches, incomparable, widened
from onnxcomp.verify.evidence import lack_of_doubt
from onnxcomp.verify.limits import (
    BREAKAGE_DIVERGENCE,
    COUNTED,
    DEFAULT_LIMITS,
    DEFAULT_MAX_DIVERGENCE,
    METRICS,
    SEARCHED_SHARE_OF_EMBEDDINGS,
)
from onnxcomp.verify.measures import lenses_of
from onnxcomp.verify.reading.outputs import Outputs
from onnxcomp.verify.reading.padding import Padding, padding_of
from onnxcomp.verify.reading.watched import Watched
from onnxcomp.verify.reference import OutputStore, layout_of
from onnxcomp.verify.ruling import Held, Ruling
from onnxcomp.verify.signature import changed_signature
from onnxcomp.verify.trials import ValueTrials
from onnxcomp.verify.verdict import Verdict

Array = NDArray[Any]


class Verifier:
    """Compares models with ``original`` on ``data``; the reference outputs are computed once and kept.

    metric: ``auto`` (accuracy where the data has labels that fit an output, else the divergence),
    ``divergence`` (never labels), ``kl``, ``cosine``, ``sqnr`` (as noise over signal power), ``mse``,
    ``top1`` (accuracy with labels, else disagreement), or ``module:function``: the user's score, called
    with a function that runs feeds and gives outputs by name, higher is better.
    max_drop: the budget; None for the metric's default. Of several outputs and lenses the worst counts.
    shorter_ends: float32 inputs and outputs may have become float16 or bfloat16.
    outputs: what the user says that outputs are, by name: one of ``metrics.KINDS``; this beats every guess.
    closed_loop: whether what passes is also run on its own states, where the model has some. states: names of outputs
    that are states, where another verifier has found them.

    Raises VerificationError when the original does not run on the data, TargetError when it does not load,
    ParameterError when the metric or an output's name does not fit, CalibrationError when the labels cannot be right.
    """

    def __init__(
        self,
        original: Model,
        data: CalibrationData,
        *,
        target: Target,
        metric: str = "auto",
        max_drop: Drop | None = None,
        seed: int = 0,
        shorter_ends: bool = False,
        outputs: Mapping[str, str] | None = None,
        closed_loop: bool = True,
        states: frozenset[str] | None = None,
    ) -> None:
        wrong = sorted(set((outputs or {}).values()) - set(metrics.KINDS))
        if wrong:
            raise ParameterError(f"output: must be one of {', '.join(metrics.KINDS)}, got {wrong[0]!r}")
        if metric not in METRICS and ":" not in metric:
            hint = meant(metric, METRICS)
            raise ParameterError(f"metric: must be {', '.join(METRICS)} or module:function, got {metric!r}.{hint}")
        if metric in COUNTED and data.is_random:
            raise ParameterError(f"metric: {metric} counts samples and random inputs are none. Give calibration data.")
        self._asked: dict[str, Any] = {
            "target": target, "metric": metric, "max_drop": max_drop, "seed": seed, "shorter_ends": shorter_ends,
            "outputs": outputs,
        }  # fmt: skip
        self.watched = Watched.of(original)
        self._trials: weakref.WeakValueDictionary[int, ValueTrials] = weakref.WeakValueDictionary()
        self._asking = threading.Lock()
        self._scoring = threading.Lock()  # the user's own code is not asked to be called from several threads
        self.original, self.data, self.target = original, data, target
        self.seed, self.shorter_ends = seed, shorter_ends
        self.samples = data.sample_count
        self.notes = list(data.notes)
        self._loop: ClosedLoop | None = None
        self._verdicts: weakref.WeakKeyDictionary[Model, Verdict] = weakref.WeakKeyDictionary()
        self.states = self._own_states(closed_loop) if states is None else states
        self._outputs = self._read_outputs(outputs or {}, metric)
        self.evidence = self._outputs.evidence()
        self._labels = self._find_labels()
        self.metric = self._resolve(metric)
        self.original_score = self._original_score()
        self.limit = self._limit(max_drop)
        self.wanted_samples = self._wanted_samples()
        self.notes += [] if data.is_random else lack_of_doubt(self._outputs.least_sure(), self.evidence.distinct)

    def on(self, data: CalibrationData, *, target: Target | None = None) -> Verifier:
        """The same judge on other samples, in open loop; perhaps on another target."""
        asked = self._asked | ({} if target is None else {"target": target})
        return Verifier(self.original, data, **asked, closed_loop=False, states=self.states)

    @property
    def search_limit(self) -> float:
        """What ``Verdict.quadratic_divergence`` a search may spend: half the limit where vectors are compared.

        An optimizer finds the directions that the shift of cosines hardly weighs: at the full limit a searched
        sentence encoder lost three times what rounded and clustered ones lost at the same divergence.
        """
        embeds = any(output.kind == "embedding" for output in self._outputs.described.values())
        return self.limit * (SEARCHED_SHARE_OF_EMBEDDINGS if embeds else 1.0)

    @property
    def asked_outputs(self) -> dict[str, str]:
        """What outputs are by the user's word, by name."""
        return dict(self._asked["outputs"] or {})

    def describe(self) -> dict[str, Any]:
        """Metric, limit, samples and what each output was taken for, as plain values."""
        return {
            "name": self.metric,
            "limit": self.limit,
            "samples": self.samples,
            "random": self.data.is_random,
            "outputs": {name: output.kind for name, output in self._outputs.described.items()},
            "asked": self.asked_outputs,
            "evidence": self.evidence.describe(),
            "original_score": self.original_score,
            "wanted_samples": self.wanted_samples,
            "notes": list(self.notes),
        }

    def check(self, model: Model) -> Verdict:
        """Run ``model`` on every sample and compare. Never raises for a bad model: its verdict has failed.

        A model that was checked before has the verdict that it had.
        """
        known = self._verdicts.get(model)
        if known is None:
            known = self._verdicts[model] = self.changed_outside(model) or self.judge(self._whole(model))
        return known

    def allow(self, divergence: float) -> None:
        """Widen the limit, for the verdicts to come."""
        self.limit = max(self.limit, divergence)
        self._verdicts.clear()

    def trials(self, model: Model) -> ValueTrials:
        """What judges a model with other values in some of its weights, again and again, without rewriting it: the
        same for the same model, as long as somebody holds it."""
        with self._asking:
            return self._trials.setdefault(id(model), ValueTrials(self, model))

    def changed_outside(self, model: Model) -> Verdict | None:
        """The verdict on a model whose inputs or outputs are declared otherwise than the original's, else None."""
        changed = changed_signature(self.original, model, shorter_ends=self.shorter_ends)
        return self._ruling.failed(changed) if changed else None

    def judge(self, candidate: Candidate) -> Verdict:
        """The verdict on what a candidate gives, which is declared as the original is. Safe to be called from several
        threads at once."""
        try:
            if ":" in self.metric:
                return self._ruling.of_score(self._score(candidate))
            verdict = self._compared(candidate.outputs())
            return self._on_own_states(candidate, verdict) if verdict.passed and self._loop is not None else verdict
        except (TargetError, VerificationError, ModelError) as error:
            return self._ruling.failed(str(error))

    def measures(self, model: Model) -> dict[str, tuple[float, Floats]]:
        """For each output and measure the divergence, and what every sample counts for it.

        Raises TargetError or VerificationError where the model does not load or run.
        """
        found = ComparedBatches(self._outputs, "divergence", self.seed)
        for i, (reference, candidate) in enumerate(zip(self._outputs.store, self._whole(model).outputs(), strict=True)):
            found.add(i, reference, widened(candidate) if self.shorter_ends else candidate)
        return found.by_sample()

    # --- running ---

    def _read_outputs(self, asked: Mapping[str, str], metric: str) -> Outputs:
        """The original's outputs and what each is taken for; a metric of class scores says that those are some that
        can be, where none looks like it."""
        layouts = [layout_of(batch) for batch in self.data.labelled_batches()]
        store, whole = OutputStore(), self._whole(self.original)
        store.extend(whole.outputs())
        names = {name for found in store for name in found}
        unknown = sorted(set(asked) - names)
        if unknown:
            hint = meant(unknown[0], names)
            raise ParameterError(f"output: the model has {', '.join(sorted(names))}, not {', '.join(unknown)}.{hint}")
        made_by = ends(self.original)
        options: dict[str, Any] = {
            "padding": self._padding(),
            "linear": lambda name: made_by.get(name, "") in ("", *SCORING),
            "numbers": lambda name: name in self.watched.numbers,
            "left_out": self.watched.stands_for,
            "states": self.states,
        }
        found = Outputs(self.data, layouts, store, whole.specs, asked=asked, **options)
        if metric not in ("kl", "top1") or any(lenses_of(metric, each) for each in found.described.values()):
            return found
        forced = dict.fromkeys(names, "classes") | dict(asked)
        return Outputs(self.data, layouts, store, whole.specs, asked=forced, **options)

    def _own_states(self, closed_loop: bool) -> frozenset[str]:
        """The outputs that are states; the closed loop is made ready where it is asked for and the model has some."""
        if self.data.is_random or self.original.size_bytes >= ISOLATE_FROM_BYTES:
            return frozenset()
        self._loop, lack = closed_loop_for(self.original, self.data, self.target, self.seed)
        if lack is not None:
            self.notes.append(lack)
        found = frozenset() if self._loop is None else frozenset(each.output for each in self._loop.states)
        self._loop = self._loop if closed_loop else None
        return found

    def _whole(self, model: Model) -> WholeModel:
        return WholeModel(model, self.data, self.target, self.watched, self.original.size_bytes, self.notes.append)

    def _padding(self) -> Padding | None:
        """The input that marks padding, asked of the original itself; not of one that needs a process of its own."""
        if self.data.is_random or self.original.size_bytes >= ISOLATE_FROM_BYTES or len(self.data.inputs) < 2:
            return None
        return padding_of(self.original, self.data, self.target.session)

    # --- metric and limit ---

    def _find_labels(self) -> Labels | None:
        found = labels_of(self._outputs) if self.data.has_labels else None
        if isinstance(found, str):
            self.notes.append(found)
            return None
        return found

    def _resolve(self, metric: str) -> str:
        if metric in ("auto", "top1") and self._labels is not None:
            return "accuracy"
        if metric == "auto":
            return "divergence"
        described = self._outputs.described.values()
        if metric in ("kl", "top1") and not any(lenses_of(metric, each) for each in described):
            raise ParameterError(f"metric: {metric} needs an output of class scores and this model has none")
        return metric

    def _original_score(self) -> float | None:
        if ":" in self.metric:
            score = self._score(self._whole(self.original))
            if not np.isfinite(score):
                raise VerificationError(f"metric: {self.metric} gave {score} for the original")
            return score
        return self._labels.original_accuracy() if self.metric == "accuracy" and self._labels else None

    def _limit(self, max_drop: Drop | None) -> float:
        kind = "score" if ":" in self.metric else self.metric
        cannot_tell = self.data.is_random or not self.evidence.is_enough
        if max_drop is None and cannot_tell and kind == "divergence":
            return BREAKAGE_DIVERGENCE
        if max_drop is None and kind not in DEFAULT_LIMITS:
            raise ParameterError(f"max-drop: must be given for metric {kind}, whose unit is the output's own")
        return (max_drop or DEFAULT_LIMITS[kind]).limit(self.original_score)

    def _wanted_samples(self) -> int | None:
        """How many samples tell the budget, where it counts samples and fewer are distinct; else None."""
        if self.metric not in COUNTED:
            return None
        wanted = metrics.samples_to_resolve(self.limit, 2 * self.limit)
        distinct = self.evidence.distinct
        if distinct >= wanted > 0:
            return None
        few = f"{distinct} samples" if distinct == self.samples else f"{distinct} distinct samples"
        enough = f"about {wanted:,} can" if wanted else "nor can any number"
        self.notes.append(
            f"{few} cannot tell a drop of {self.limit:.2g} in {self.metric}, {enough}: "
            f"the divergence of the outputs is held to {DEFAULT_MAX_DIVERGENCE:g} as well"
        )
        return wanted

    # --- comparing ---

    def _compared(self, outputs: Iterator[dict[str, Array]]) -> Verdict:
        found = ComparedBatches(self._outputs, "divergence" if self.metric == "accuracy" else self.metric, self.seed)
        beside = ComparedBatches(self._outputs, "divergence", self.seed) if self.metric == "top1" else found
        changes: list[Floats] = []
        for i, (reference, candidate) in enumerate(zip(self._outputs.store, outputs, strict=True)):
            if self.shorter_ends:
                candidate = widened(candidate)
            wrong = incomparable(reference, candidate, self.watched.ragged)
            if wrong:
                return self._ruling.failed(wrong)
            for each in {id(found): found, id(beside): beside}.values():
                each.add(i, reference, candidate)
            if self.metric == "accuracy" and self._labels is not None:
                changes.append(self._labels.correct(i, reference) - self._labels.correct(i, candidate))
        held = self._held(beside)
        if self.metric == "accuracy":
            return self._ruling.of_labels(np.concatenate(changes), found, held)
        return self._ruling.of_divergences(found, held)

    def _on_own_states(self, candidate: Candidate, verdict: Verdict) -> Verdict:
        """A verdict that passed, with what the model does on its own states."""
        assert self._loop is not None
        steps = self._outputs.of_steps(self._loop.layouts, self._loop.reference)
        found = ComparedBatches(steps, "divergence", self.seed, prefix="on its own states: ")
        with candidate.opened() as session:
            wrong = self._stepped(steps, self._loop.outputs(session), found)
        if wrong:
            return self._ruling.failed(f"on its own states: {wrong}")
        return self._ruling.with_own_states(verdict, found.divergences()[0])

    def _stepped(self, steps: Outputs, made: Iterator[dict[str, Value]], found: ComparedBatches) -> str | None:
        """Take in every step; why the steps cannot be compared, or None."""
        for i, (reference, candidate) in enumerate(zip(steps.store, made, strict=True)):
            wrong = incomparable(reference, widened(candidate) if self.shorter_ends else candidate)
            if wrong:
                return wrong
            found.add(i, reference, candidate)
        return None

    def _held(self, comparison: ComparedBatches) -> Held:
        """The worst divergence and its limit, where the samples are too few to count by."""
        if self.wanted_samples is None:
            return None
        return max((each.value for each in comparison.divergences()[0]), default=0.0), DEFAULT_MAX_DIVERGENCE

    @property
    def _ruling(self) -> Ruling:
        return Ruling(self.metric, self.limit, self.samples, self.evidence, self.original_score)

    def _score(self, candidate: Candidate) -> float:
        with candidate.opened() as session, self._scoring:
            return call_score(self.metric, session.run)
