"""Verifier: the original's outputs once, then any number of models compared with them.

    verifier = Verifier(original, data, target=Target.of("cpu"))
    verdict = verifier.check(rewritten)

The default metric, its threshold and how they were chosen: docs/decisions/0003-default-metric.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.sources import call_score
from onnxcomp.errors import ModelError, ParameterError, TargetError, VerificationError
from onnxcomp.model import Model
from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats, Output
from onnxcomp.runtime import ValueSpec, run_isolated
from onnxcomp.target import Target
from onnxcomp.verify.reference import (
    Layout,
    OutputStore,
    channel_axis,
    flatten,
    layout_of,
    sample_axis,
    samples_first,
    weights_for,
)
from onnxcomp.verify.signature import changed_signature
from onnxcomp.verify.verdict import OutputDivergence, Verdict, failure

Array = NDArray[Any]

# The one default threshold for all models (docs/decisions/0003-default-metric.md).
DEFAULT_MAX_DIVERGENCE = 0.03
SEARCHED_SHARE_OF_EMBEDDINGS = 0.5
# On random inputs, which license nothing, only breakage is looked for. int8 weights per channel reach 0.25 on
# noise (efficientnet_lite0), 3-bit ones 0.2 (LeNet-5, which noise cannot tell) to 31.
BREAKAGE_DIVERGENCE = 20 * DEFAULT_MAX_DIVERGENCE
# Outputs hardly vary from noise to noise, so errors are held against a tenth of their size instead.
NOISE_FLOOR = 0.1
DEFAULT_LIMITS = {
    "auto": Drop(DEFAULT_MAX_DIVERGENCE),
    "divergence": Drop(DEFAULT_MAX_DIVERGENCE),
    "accuracy": Drop(0.005),
    "top1": Drop(0.02),
    "kl": Drop(0.01),
    "cosine": Drop(0.01),
    "sqnr": Drop(0.01),
    "score": Drop(0.01, is_relative=True),
}
METRICS = ("auto", "divergence", "kl", "cosine", "sqnr", "mse", "top1")
ISOLATE_FROM_BYTES = 10**9


class Aligned(NamedTuple):
    """One output of one batch: the original's and the candidate's, samples first, and the padding weights."""

    reference: Array
    candidate: Array
    weights: Array | None


class Verifier:
    """Compares models with ``original`` on ``data``; the reference outputs are computed once and kept.

    metric: ``auto`` (accuracy where the data has labels that fit an output, else the divergence),
    ``divergence`` (never labels), ``kl``, ``cosine``, ``sqnr`` (as noise over signal power), ``mse``,
    ``top1`` (accuracy with labels, else disagreement), or ``module:function``: the user's score, called
    with a function that runs feeds and gives outputs by name, higher is better.
    max_drop: the budget; None for the metric's default. Of several outputs the worst counts.
    shorter_ends: float32 inputs and outputs may have become float16 or bfloat16.

    Raises VerificationError when the original does not run on the data, TargetError when it does not load,
    ParameterError when the metric does not fit.
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
    ) -> None:
        if metric not in METRICS and ":" not in metric:
            raise ParameterError(f"metric: must be {', '.join(METRICS)} or module:function, got {metric!r}")
        self._asked: dict[str, Any] = {
            "target": target, "metric": metric, "max_drop": max_drop, "seed": seed, "shorter_ends": shorter_ends,
        }  # fmt: skip
        self.original = original
        self.data = data
        self.target = target
        self.seed = seed
        self.shorter_ends = shorter_ends
        self.samples = data.sample_count
        self.notes = list(data.notes)
        self._layouts: list[Layout] = []
        self._specs: dict[str, ValueSpec] = {}
        self._store = OutputStore()
        self._store.extend(self._outputs(original, is_reference=True))
        self._axes = self._sample_axes()
        self._described = {name: self._describe(name) for name in self._axes}
        self._label_output = self._output_for_labels() if data.has_labels else None
        self.metric = self._resolve(metric)
        self.original_score = self._original_score()
        self.limit = self._limit(max_drop)

    def on(self, data: CalibrationData) -> Verifier:
        """The same judge on other samples."""
        return Verifier(self.original, data, **self._asked)

    @property
    def search_limit(self) -> float:
        """How much energy (see ``Verdict.energy``) a search may spend: half the limit where vectors are compared.

        An optimizer finds the directions that the shift of cosines hardly weighs: at the full limit a searched
        sentence encoder lost three times what rounded and clustered ones lost at the same divergence.
        """
        embeds = any(output.kind == "embedding" for output in self._described.values())
        return self.limit * (SEARCHED_SHARE_OF_EMBEDDINGS if embeds else 1.0)

    def describe(self) -> dict[str, Any]:
        """Metric, limit, samples and what each output was taken for, as plain values."""
        return {
            "name": self.metric,
            "limit": self.limit,
            "samples": self.samples,
            "random": self.data.is_random,
            "outputs": {name: output.kind for name, output in self._described.items()},
            "original_score": self.original_score,
            "notes": list(self.notes),
        }

    def check(self, model: Model) -> Verdict:
        """Run ``model`` on every sample and compare. Never raises for a bad model: its verdict has failed."""
        changed = changed_signature(self.original, model, shorter_ends=self.shorter_ends)
        if changed:
            return failure(changed, limit=self.limit, samples=self.samples)
        try:
            if ":" in self.metric:
                return self._scored(model)
            return self._compared(model)
        except (TargetError, VerificationError, ModelError) as error:
            return failure(str(error), limit=self.limit, samples=self.samples)

    # --- running ---

    def _outputs(self, model: Model, *, is_reference: bool = False) -> Iterator[dict[str, Array]]:
        """Outputs of every batch in order, from this process or, for large models, one of their own."""
        if model.size_bytes >= ISOLATE_FROM_BYTES:
            yield from self._isolated_outputs(model, is_reference=is_reference)
            return
        with model.opened_on(self.target.session) as session:
            if is_reference:
                self._specs = {spec.name: spec for spec in session.outputs}
            for batch in self.data.labelled_batches():
                if is_reference:
                    self._layouts.append(layout_of(batch, self.data.inputs))
                yield flatten(session.run(batch.feeds))

    def _isolated_outputs(self, model: Model, *, is_reference: bool) -> Iterator[dict[str, Array]]:
        def feeds() -> Iterator[Any]:
            for batch in self.data.labelled_batches():
                if is_reference:
                    self._layouts.append(layout_of(batch, self.data.inputs))
                yield batch.feeds

        with tempfile.TemporaryDirectory(prefix="onnxcomp-", dir=model.scratch.folder) as folder:
            run = run_isolated(
                model.materialize(Path(folder) / "model"),
                feeds(),
                folder=Path(folder) / "run",
                provider=self.target.provider,
                provider_options=self.target.provider_options,
                threads=self.target.threads,
                custom_ops=self.target.custom_ops,
            )
            self.notes.append(f"ran in a process of its own, peak memory {run.peak_bytes / 2**20:,.0f} MiB")
            for outputs in run.outputs():
                yield flatten(outputs)

    # --- what the original's outputs are ---

    def _sample_axes(self) -> dict[str, int | None]:
        """Of each output that every batch has, the axis that counts samples in all of them."""
        found: dict[str, set[int | None]] = {}
        for layout, outputs in zip(self._layouts, self._store, strict=True):
            for name, array in outputs.items():
                axis = sample_axis(array, self._specs.get(name), layout, self.data.inputs)
                found.setdefault(name, set()).add(axis)
        return {name: axes.pop() if len(axes) == 1 else None for name, axes in found.items()}

    def _reference(self, name: str) -> Iterator[tuple[Array, Array | None]]:
        for layout, outputs in zip(self._layouts, self._store, strict=True):
            if name in outputs:
                array = samples_first(outputs[name], self._axes[name])
                yield array, weights_for(array, layout, self._axes[name])

    def _describe(self, name: str) -> Output:
        channels = channel_axis(self._specs.get(name), self._axes[name])
        ranks = {array.ndim for array, _ in self._reference(name)}
        return metrics.describe(
            lambda: self._reference(name),
            channel_axis=channels if len(ranks) == 1 else None,
            floor=NOISE_FLOOR if self.data.is_random else metrics.RELATIVE_FLOOR,
        )

    def _output_for_labels(self) -> str | None:
        """The output that integer labels are about: (samples, classes) scores or (samples,) integers."""
        labels = [layout.labels for layout in self._layouts if layout.labels is not None]
        if any(part.dtype.kind not in "iu" or part.ndim != 1 for part in labels):
            self.notes.append("the labels are not integers, one a sample: not used")
            return None
        for name, output in self._described.items():
            ranks = {array.ndim for array, _ in self._reference(name)}
            is_scores = output.kind in ("distribution", "logits", "values") and ranks == {2}
            if self._axes[name] is not None and (is_scores or (output.kind == "labels" and ranks == {1})):
                return name
        self.notes.append("no output has one class a sample that labels could be compared with: not used")
        return None

    # --- metric and limit ---

    def _resolve(self, metric: str) -> str:
        if metric in ("auto", "top1") and self._label_output is not None:
            return "accuracy"
        if metric == "auto":
            return "divergence"
        if metric in ("kl", "top1") and not any(self._measures(metric, name) for name in self._described):
            raise ParameterError(f"metric: {metric} needs an output of class scores and this model has none")
        return metric

    def _original_score(self) -> float | None:
        if ":" in self.metric:
            return self._score(self.original)
        if self.metric == "accuracy":
            correct = [self._correct(i, outputs) for i, outputs in enumerate(self._store)]
            return float(np.concatenate(correct).mean())
        return None

    def _limit(self, max_drop: Drop | None) -> float:
        kind = "score" if ":" in self.metric else self.metric
        if max_drop is None and self.data.is_random and kind == "divergence":
            return BREAKAGE_DIVERGENCE
        if max_drop is None and kind not in DEFAULT_LIMITS:
            raise ParameterError(f"max-drop: must be given for metric {kind}, whose unit is the output's own")
        return (max_drop or DEFAULT_LIMITS[kind]).limit(self.original_score)

    # --- comparing ---

    def _compared(self, model: Model) -> Verdict:
        values: dict[tuple[str, str], list[Floats]] = {}
        agreed: list[Floats] = []
        drops: list[Floats] = []
        batches = zip(self._store, self._outputs(model), strict=True)
        for i, (reference, candidate) in enumerate(batches):
            if self.shorter_ends:
                candidate = _widened(candidate)
            wrong = _incomparable(reference, candidate)
            if wrong:
                return failure(wrong, limit=self.limit, samples=self.samples)
            for name in reference:
                both = self._align(i, name, reference[name], candidate[name])
                for measure, found in self._per_sample(name, both).items():
                    values.setdefault((name, measure), []).append(found)
                if self._described[name].has_classes:
                    agreed.append(metrics.agreement(self._described[name], *both))
            if self.metric == "accuracy":
                drops.append(self._correct(i, reference) - self._correct(i, candidate))
        agreement = float(np.concatenate(agreed).mean()) if agreed else None
        if self.metric == "accuracy":
            return self._accuracy_verdict(np.concatenate(drops), agreement)
        return self._divergence_verdict({key: np.concatenate(parts) for key, parts in values.items()}, agreement)

    def _align(self, i: int, name: str, reference: Array, candidate: Array) -> Aligned:
        axis = self._axes[name]
        left, right = samples_first(reference, axis), samples_first(candidate, axis)
        return Aligned(left, right, weights_for(left, self._layouts[i], axis))

    def _per_sample(self, name: str, both: Aligned) -> dict[str, Floats]:
        output = self._described[name]
        if self.metric in ("divergence", "accuracy"):
            return metrics.divergences(output, *both)
        return {measure: compute(*both) for measure, compute in self._measures(self.metric, name).items()}

    def _measures(self, metric: str, name: str) -> dict[str, Callable[..., Floats]]:
        """How a metric other than the default is computed on an output; nothing where it says nothing."""
        output = self._described[name]
        if metric == "kl" and (output.has_classes or output.kind == "probabilities"):
            return {metric: lambda *both: metrics.kl(output, *both)}
        if metric == "top1" and output.has_classes:
            return {metric: lambda *both: 1 - metrics.agreement(output, *both)}
        if metric == "top1" and output.kind == "labels":
            return {metric: lambda *both: metrics.divergences(output, *both)["labels"]}
        if output.kind == "labels":
            return {}
        plain = {
            "cosine": metrics.cosine_distance,
            "sqnr": metrics.noise_to_signal,
            "mse": metrics.squared_error,
        }
        return {metric: plain[metric]} if metric in plain else {}

    def _divergence_verdict(self, values: dict[tuple[str, str], Floats], agreement: float | None) -> Verdict:
        found = []
        for (name, measure), per_sample in values.items():
            transform = np.sqrt if measure == "embedding" else None
            got = metrics.estimate(per_sample, transform=transform, seed=self.seed)
            kind = self._described[name].kind
            found.append(OutputDivergence(name, kind, measure, got.value, got.low, got.high))
        worst = max(found, key=lambda each: each.value, default=None)
        value = worst.value if worst else 0.0
        reasons: tuple[str, ...] = ()
        if worst and not value <= self.limit:
            reasons = (f"output {worst.name} ({worst.kind}): divergence {value:.3g} is over {self.limit:.3g}",)
        return Verdict(
            divergence=value,
            interval=(worst.low, worst.high) if worst else (0.0, 0.0),
            limit=self.limit,
            samples=self.samples,
            reasons=reasons,
            agreement=agreement,
            outputs=tuple(found),
        )

    def _accuracy_verdict(self, drops: Floats, agreement: float | None) -> Verdict:
        got = metrics.estimate(drops, seed=self.seed)
        assert self.original_score is not None
        score = self.original_score - got.value
        return self._drop_verdict(got.value, (got.low, got.high), score, agreement)

    def _scored(self, model: Model) -> Verdict:
        score = self._score(model)
        assert self.original_score is not None
        drop = self.original_score - score
        if not np.isfinite(score):
            return failure(f"{self.metric} gave {score}", limit=self.limit, samples=self.samples)
        return self._drop_verdict(drop, (drop, drop), score, None)

    def _drop_verdict(
        self, drop: float, interval: tuple[float, float], score: float, agreement: float | None
    ) -> Verdict:
        text = f"{self.metric} fell from {self.original_score:.4g} to {score:.4g}, allowed {self.limit:.3g}"
        return Verdict(
            divergence=drop,
            interval=interval,
            limit=self.limit,
            samples=self.samples,
            reasons=() if drop <= self.limit else (text,),
            agreement=agreement,
            score=score,
            original_score=self.original_score,
        )

    def _score(self, model: Model) -> float:
        with model.opened_on(self.target.session) as session:
            return call_score(self.metric, session.run)

    def _correct(self, i: int, outputs: dict[str, Array]) -> Floats:
        """(samples,) 1.0 where the output's class is the label."""
        assert self._label_output is not None
        array = samples_first(outputs[self._label_output], self._axes[self._label_output])
        winners = array if self._described[self._label_output].kind == "labels" else array.argmax(axis=1)
        return np.asarray(winners == self._layouts[i].labels, dtype=np.float64)


def _widened(outputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs, those of short floats in float32."""
    short = ("float16", "bfloat16")
    return {name: each.astype(np.float32) if each.dtype.name in short else each for name, each in outputs.items()}


def _incomparable(reference: dict[str, Array], candidate: dict[str, Array]) -> str | None:
    """Why outputs of one batch cannot be compared, or None: missing, other type or shape, new NaN."""
    if reference.keys() != candidate.keys():
        return f"outputs differ: {', '.join(sorted(reference.keys() ^ candidate.keys()))}"
    for name, left in reference.items():
        right = candidate[name]
        if left.dtype != right.dtype:
            return f"output {name} is {right.dtype.name}, it was {left.dtype.name}"
        if left.shape != right.shape:
            return f"output {name} has shape {list(right.shape)}, it was {list(left.shape)}"
        broken = metrics.new_nonfinite(left, right)
        if broken:
            return f"output {name} has {broken} NaN or infinite values that the original does not have"
    return None
