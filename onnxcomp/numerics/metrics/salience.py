"""Which positions of a detector's output say anything: where the scores at that position do.

    boxes (N, P, 4) beside scores (N, P, C), or both in one output (N, 4 + C, P)

What a box is where no object is found means nothing, varies most and drowns the boxes of objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.numerics.metrics.arrays import Array, Floats, by_channel, shared_finite
from onnxcomp.numerics.metrics.class_scores import Form, log_softmax
from onnxcomp.numerics.metrics.lenses import (
    Lens,
    OfChannels,
    OwnScale,
    Pair,
    RelativeError,
)
from onnxcomp.numerics.metrics.looks import Batches, unit_channels
from onnxcomp.numerics.metrics.readings import Output
from onnxcomp.numerics.metrics.scales import LEAST_SQUARE

SALIENT_FACTOR = 6.0  # boxes overlap as well when they move by a little of what they vary about their anchors
LEAST_POSITIONS = 16
MAJORITY = 0.5  # of the positions, that the class of "nothing here" wins
LEAST_SALIENCE = 1e-4  # on the average; with less, nothing was found anywhere


@dataclass(frozen=True, eq=False)
class Scores:
    """How to read the scores at each position of an output: of chances the largest of the ``chosen`` channels, of
    classes whatever is not the ``nothing`` that wins most positions."""

    axis: int
    form: Form
    chosen: Array | None = None
    nothing: int = 0

    def salience(self, block: Array) -> Floats:
        """(samples, positions) from 0 to 1: the square of the chance that something is there."""
        rows = by_channel(shared_finite(block, block)[0], self.axis)
        if self.form == "each":
            rows = rows if self.chosen is None else rows[..., self.chosen]
            return np.asarray(np.square(np.clip(rows, 0, 1).max(axis=-1)))
        p = {"logits": lambda: np.exp(log_softmax(rows)), "log": lambda: np.exp(rows)}.get(self.form, lambda: rows)()
        return np.asarray(np.square(1 - p[..., self.nothing]))


@dataclass(frozen=True, eq=False)
class SalientError(Lens):
    """Squared error over the variance (channels,) along ``axis``, weighted by the salience of the positions, whose sum
    a sample is ``mean_weight`` on the average."""

    axis: int
    variance: Floats
    mean_weight: float

    def measure(self, pair: Pair) -> Floats:
        assert pair.salience is not None
        error = np.square(by_channel(pair.candidate - pair.reference, self.axis)) / self.variance
        return np.asarray(np.einsum("np,npc->nc", pair.salience, error) / self.mean_weight)

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        worst = values.mean(axis=0).argmax()
        return {
            "values where something is": SALIENT_FACTOR * values.mean(axis=1),
            "worst channel where something is": SALIENT_FACTOR * values[:, worst],
        }


def scores_of(output: Output, batches: Batches, channel_axes: Sequence[int]) -> Scores | None:
    """How an output tells at which positions something is, or None: by its classes where one wins most positions, by
    channels of chances."""
    blocks = [each.block for each in batches()]
    if not any(block.size for block in blocks) or any(block.ndim != 3 for block in blocks):
        return None
    if output.has_classes and output.axis is not None and output.form is not None:
        if output.kind != "classes":
            return None
        won = np.bincount(np.concatenate([by_channel(block, output.axis).argmax(axis=-1).ravel() for block in blocks]))
        nothing = int(won.argmax())
        return Scores(output.axis, output.form, nothing=nothing) if won[nothing] > MAJORITY * won.sum() else None
    for axis in channel_axes:
        chosen = np.flatnonzero(unit_channels(batches, axis))
        if len(chosen) and min(positions(block, axis) for block in blocks) >= LEAST_POSITIONS:
            return Scores(axis, "each", chosen)
    return None


def positions(block: Array, axis: int) -> int:
    """How many positions an output (samples, ...) has beside its channels."""
    return int(block[:1].size // max(1, block.shape[1 + axis]))


def where_salient(output: Output, batches: Batches, axis: int, own: Scores | None) -> Output:
    """The output with errors of its values weighed by ``Seen.salience``. own: where it holds the scores itself, whose
    channels are looked at as chances alone."""
    weight = np.concatenate([each.salience.sum(axis=1) for each in batches() if each.salience is not None])
    size = next(iter(batches())).block.shape[1 + axis]
    scored = own.chosen if own is not None and own.chosen is not None else np.zeros(0, np.int64)
    others = np.setdiff1d(np.arange(size), scored)
    count = sum(positions(each.block, axis) * len(each.block) for each in batches())
    if not len(others) or weight.sum() < LEAST_SALIENCE * count:
        return output
    lens = SalientError(axis, _variance(batches, axis)[others], float(weight.mean()))
    kept = tuple(each for each in output.lenses if not isinstance(each, RelativeError | OwnScale))
    return Output(
        output.kind, (*kept, OfChannels(axis, others, lens)), output.axis, output.form, output.entropy, output.silent
    )


def _variance(batches: Batches, axis: int) -> Floats:
    """(channels,): about each position's mean over the samples (its anchor), weighed by salience."""
    rows = [(by_channel(shared_finite(each.block, each.block)[0], axis), each.salience) for each in batches()]
    centre = sum(values.sum(axis=0) for values, _ in rows) / max(1, sum(len(values) for values, _ in rows))
    total = sum(float(weights.sum()) for _, weights in rows if weights is not None)
    held = sum(
        np.einsum("np,npc->c", weights, np.square(values - centre)) for values, weights in rows if weights is not None
    )
    return np.asarray(np.maximum(held / max(total, LEAST_SQUARE), LEAST_SQUARE))
