"""Ways of looking at the difference between two outputs; each gives a number a sample, and the worst lens counts.

    classes            KL(p||q) (1 + 1/H), at least 3 KL, mean over positions
    balanced classes   6 KL, each winning class with the same weight (of chances: the sum over yes and no)
    class balance      8 times the square of the relative shift of what is given to a class, of the worst one
    class by class     3 KL of each class against all others, over what there is of the class
    values             12 e^2 / variance, mean over channels
    worst channel      8 e^2 / variance of the channel that fares worst
    correction         3 e^2 / variance of what is added to an input of the same shape
    samples            10 e^2 over the sample's own variance, mean over all but the worst tenth of the samples
    embedding          RMS shift of the cosines with the original's vectors
    labels             share that differs

Every lens is scaled so that one limit serves all; where the scales are from: docs/decisions/0003-default-metric.md.
All arrays have the samples on axis 0; e is the error, H the original's own mean entropy in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxcomp.numerics.metrics.arrays import Array, Floats, by_channel, over_positions, per_element
from onnxcomp.numerics.metrics.class_scores import Form, class_by_class, distributions, kl_and_entropy

MIN_ENTROPY = 1e-3
CLASS_FACTOR = 3.0
BALANCED_FACTOR = 6.0  # what rests on the few samples of a rare class is less sure
BALANCE_FACTOR = 8.0
VALUES_FACTOR = 12.0
CHANNEL_FACTOR = 8.0
SAMPLE_FACTOR = 10.0
CORRECTION_FACTOR = 3.0
TRIMMED_SHARE = 0.1


class Pair(NamedTuple):
    """One output of one batch in float64, samples first: the original's, the candidate's, the weights
    (samples, positions) of its positions or None, and how much each of them says, likewise."""

    reference: Floats
    candidate: Floats
    weights: Array | None
    salience: Floats | None = None


class Lens(ABC):
    """One way of looking: ``measure`` gives (samples, k) for a batch, ``summaries`` of all batches' values together
    one number a sample for each name. The divergence is the magnitude of their mean to the ``power``."""

    power: float = 1.0

    @abstractmethod
    def measure(self, pair: Pair) -> Floats:
        """What this batch comes to: (samples, k)."""

    @abstractmethod
    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        """From the values of all samples (samples, k), by name of the measure: (m,) numbers to be averaged."""


@dataclass(frozen=True, eq=False)
class ClassDivergence(Lens):
    """KL between class distributions along ``axis``, times ``factor``; balance: (classes,) weights of the positions
    that each class of the original wins, None for the plain mean."""

    form: Form
    axis: int | None
    factor: float
    balance: Floats | None = None

    def measure(self, pair: Pair) -> Floats:
        divergence, _ = kl_and_entropy(self.form, self.axis, pair.reference, pair.candidate)
        if self.balance is not None:
            divergence = divergence * self.balance[winners(pair.reference, self.form, self.axis)]
        return self.factor * over_positions(divergence, pair.weights)[:, None]

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        what = "probabilities" if self.form == "each" else "classes"
        return {what if self.balance is None else f"balanced {what}": values[:, 0]}


@dataclass(frozen=True, eq=False)
class ClassByClass(Lens):
    """KL of each class against all others, weighed by ``weights`` (classes,): what is taken for a rare class by mistake
    counts against what there is of it, as in a macro-averaged F1."""

    form: Form
    axis: int | None
    weights: Floats

    def measure(self, pair: Pair) -> Floats:
        divergence = class_by_class(self.form, self.axis, pair.reference, pair.candidate) @ self.weights
        return BALANCED_FACTOR / 2 * over_positions(divergence, pair.weights)[:, None]

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        return {"class by class": values[:, 0]}


@dataclass(frozen=True, eq=False)
class ClassBalance(Lens):
    """By how much more or less is given to each class in all, relative to ``mass`` (classes,), what a position gives to
    it in the original on the average. Errors that go one way for all samples move decisions further than KL says.
    """

    form: Form
    axis: int | None
    mass: Floats
    power = 2.0

    def measure(self, pair: Pair) -> Floats:
        both = (distributions(self.form, self.axis, each) for each in (pair.reference, pair.candidate))
        before, after = (over_positions(each, pair.weights) for each in both)
        return np.asarray((after - before) / self.mass)

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        worst = np.abs(values.mean(axis=0)).argmax()
        return {"class balance": np.sqrt(BALANCE_FACTOR) * values[:, worst]}


@dataclass(frozen=True, eq=False)
class RelativeError(Lens):
    """Squared error over the variance (channels,) of each channel along ``axis``.

    varies: (channels,) of bool: those that change with the input. The others, which are held to a share of their size,
    count where they fare worst, and do not dilute the mean. by_channel: whether the worst channel counts as well.
    """

    axis: int | None
    variance: Floats
    varies: Array
    factor: float = VALUES_FACTOR
    name: str = "values"
    by_channel: bool = True

    def measure(self, pair: Pair) -> Floats:
        error = by_channel(pair.candidate - pair.reference, self.axis)
        return over_positions(np.square(error) / self.variance, pair.weights)

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        chosen = values[:, self.varies] if self.varies.any() else values
        found = {self.name: self.factor * chosen.mean(axis=1)}
        if values.shape[1] > 1 and self.by_channel:
            worst = values.mean(axis=0).argmax()
            found["worst channel"] = CHANNEL_FACTOR / VALUES_FACTOR * self.factor * values[:, worst]
        return found


@dataclass(frozen=True, eq=False)
class OwnScale(Lens):
    """Squared error over what varies within the sample itself, both over ``scale`` (channels,) of each channel.

    A tenth of the samples is left out: silence has no signal that could be lost.
    """

    axis: int | None
    scale: Floats
    factor: float = SAMPLE_FACTOR

    def measure(self, pair: Pair) -> Floats:
        own = by_channel(pair.reference, self.axis)
        error = by_channel(pair.candidate - pair.reference, self.axis)
        spread = own - over_positions(own, pair.weights)[:, None]
        lost, held = (
            over_positions(np.square(each) / self.scale, pair.weights).mean(axis=1) for each in (error, spread)
        )
        ratio = np.divide(lost, held, out=np.full_like(lost, np.inf), where=held > 0)
        return np.asarray(self.factor * np.where(lost == 0, 0.0, ratio))[:, None]

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        kept = len(values) - int(TRIMMED_SHARE * len(values))
        return {"samples": np.sort(values[:, 0])[:kept]}


@dataclass(frozen=True, eq=False)
class CosineShift(Lens):
    """Mean over the basis of (u_i . (c_j - r_j) / |r_j - centre|)^2, averaged over each sample's vectors.

    centre: (features,); basis: (vectors, features), unit vectors of the original. The cosine that vector j has with
    each original vector moves by the root of this: the error as the directions in which outputs differ see it. A
    rotated or rescaled embedding fails, as it must for an index built with the original.
    """

    centre: Floats
    basis: Floats
    power = 0.5

    def measure(self, pair: Pair) -> Floats:
        size = pair.reference.shape[-1]
        lengths = np.linalg.norm(pair.reference - self.centre, axis=-1).reshape(-1)
        error = (pair.candidate - pair.reference).reshape(-1, size)
        shift = np.square(error @ self.basis.T).mean(axis=1)
        squared = np.divide(shift, lengths**2, out=np.zeros_like(shift), where=lengths > 0)
        by_position = per_element(squared.reshape(pair.reference.shape[:-1]))
        return over_positions(by_position, pair.weights)[:, None]

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        return {"embedding": values[:, 0]}


@dataclass(frozen=True, eq=False)
class OfChannels(Lens):
    """Another lens on some channels only: ``chosen`` (k,) int along ``axis``."""

    axis: int
    chosen: Array
    lens: Lens

    def measure(self, pair: Pair) -> Floats:
        taken = [np.take(each, self.chosen, axis=1 + self.axis) for each in (pair.reference, pair.candidate)]
        return self.lens.measure(Pair(taken[0], taken[1], pair.weights, pair.salience))

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        return self.lens.summaries(values)


@dataclass(frozen=True, eq=False)
class LabelChange(Lens):
    """The share of a sample's labels that differ; arrays of any type."""

    def measure(self, pair: Pair) -> Floats:
        differs = per_element(np.asarray(pair.reference != pair.candidate))
        return differs.mean(axis=1, dtype=np.float64, keepdims=True) if differs.size else np.zeros((len(differs), 1))

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        return {"labels": values[:, 0]}


def class_factor(entropy: float) -> float:
    """What KL is multiplied by: a confident model has few errors to lose points against; an unsure one loses
    half of KL in accuracy."""
    return max(1 + 1 / max(entropy, MIN_ENTROPY), CLASS_FACTOR)


def winners(reference: Floats, form: Form, axis: int | None) -> Array:
    """(samples, positions) int: the class of the largest score; of probabilities that stand alone (samples, elements):
    0 below a half, else 1."""
    if form == "each":
        return np.asarray(per_element(reference) >= 0.5).astype(np.int64)
    return np.asarray(by_channel(reference, axis or 0).argmax(axis=-1))
