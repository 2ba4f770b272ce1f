"""How far a model's outputs are from the original's: one number per output, each with per-sample values.

What is compared depends on what the original's output looks like (``describe``):

    distribution   p along an axis, sum 1 (softmax, CTC), or its logarithm   KL(p||q) (1 + 1/H)
    logits         peaked softmax whose winner varies                        the same, and half of ``values``
    probabilities  each in [0, 1] (sigmoid)                                  the same per element, and ``values``
    embedding      vectors of 32 or more, not the above                      RMS shift of their cosines
    values         any other floats                                          2 e^2 / variance, mean over channels
    labels         integers, booleans, strings                               share that differs

H is the original's own mean entropy in nats. A sample's worth is divided by H because a confident model
bears less; the 1 keeps very uncertain models (H far over 1) from bearing any amount. Where two measures
apply the larger counts. All arrays here have the samples on axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.class_scores import kl_and_entropy, log_softmax, per_element, rows_of

Array = NDArray[Any]
Floats = NDArray[np.float64]

SUM_TOLERANCE = 1e-2  # float16 softmax over a thousand classes
MIN_ENTROPY = 1e-3
PEAKED_ENTROPY_SHARE = 0.6  # of log C; logits measured: 0.003 to 0.26, mean-pooled sentence embeddings 0.99
MAX_WINNER_SHARE = 0.95
MAX_LOGIT_SPREAD = 60.0
MIN_EMBEDDING_SIZE = 32
BASIS_VECTORS = 1024
MIN_VECTORS = 8
RELATIVE_FLOOR = 1e-3
PROBABILITY_SPREAD = 0.05
SAMPLED_ROWS = 4096
MAX_BOOTSTRAP_SAMPLES = 4096


@dataclass(frozen=True, eq=False)
class Output:
    """What the original's output looks like, and what its own spread is.

    kind: one of the words above. axis: of classes or features, counted without the sample axis; None when
    every element stands alone. entropy: H in nats. variance: (features,) or (1,), where ``values`` applies.
    centre: (features,) and basis: (vectors, features), unit vectors of the original, of an embedding.
    """

    kind: str
    axis: int | None
    is_log: bool = False
    entropy: float = 0.0
    variance: Floats | None = None
    centre: Floats | None = None
    basis: Floats | None = None

    @property
    def has_classes(self) -> bool:
        """Whether the output says which of several classes wins."""
        return self.kind in ("distribution", "logits")


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95% interval."""

    value: float
    low: float
    high: float


Batches = Callable[[], Iterable[tuple[Array, Array | None]]]
"""The original's output in batches: (samples, ...) and the weights (samples, positions) or None."""


def describe(batches: Batches, *, channel_axis: int | None = None, floor: float = RELATIVE_FLOOR) -> Output:
    """What an output looks like, from all of the original's values.

    channel_axis: where the features of an output that is not class scores lie, without the sample axis. It
    is not used where their number changes from batch to batch. floor: the least spread, as a share of a
    channel's size, that errors are held against.
    """
    first = next(iter(batches()), (np.zeros((0, 1)), None))[0]
    if first.dtype.kind in "biOSU" or (first.dtype.kind == "u" and first.dtype.itemsize > 1):  # uint8: images
        return Output("labels", None)
    shapes = [block.shape for block, _ in batches()]
    if len({len(shape) for shape in shapes}) != 1 or not first.size:
        return _with_variance(Output("values", None), batches, floor)

    def is_steady(axis: int) -> bool:
        return len({shape[1 + axis] for shape in shapes}) == 1

    for axis in filter(is_steady, _class_axes(first.ndim)):
        kind = _kind_of_classes(batches, axis, is_usual=first.ndim != 3 or axis == 1)
        if kind == "logits":
            return _with_entropy(_with_variance(Output("logits", axis), batches, floor), batches)
        if kind is not None:
            return _with_entropy(Output("distribution", axis, is_log=kind == "log"), batches)
    if channel_axis is not None and not is_steady(channel_axis):
        channel_axis = None
    if all(_is_unit_interval(block) for block, _ in batches()):
        return _with_entropy(_with_variance(Output("probabilities", channel_axis), batches, floor), batches)
    if first.ndim in (2, 3) and is_steady(first.ndim - 2) and first.shape[-1] >= MIN_EMBEDDING_SIZE:
        found = _embedding(batches, first.ndim - 2)
        if found is not None:
            return found
    return _with_variance(Output("values", channel_axis), batches, floor)


def divergences(output: Output, reference: Array, candidate: Array, weights: Array | None) -> dict[str, Floats]:
    """Per-sample values of each measure that applies, (samples,); their means go to ``combine``."""
    if output.kind == "labels":
        differs = per_element(np.asarray(reference != candidate))
        return {"labels": differs.mean(axis=1, dtype=np.float64) if differs.size else np.zeros(len(reference))}
    if not reference.size:
        return {output.kind: np.zeros(len(reference))}
    reference, candidate = shared_finite(reference, candidate)
    if output.kind == "embedding":
        return {"embedding": _cosine_shift(output, reference, candidate, weights)}
    found: dict[str, Floats] = {}
    if output.has_classes or output.kind == "probabilities":
        per_position, _ = _classes(output, reference, candidate)
        found["classes"] = _over_positions(per_position, weights) * (1 + 1 / max(output.entropy, MIN_ENTROPY))
    if output.variance is not None:
        # Beside classes it only guards against mistaking a regression for logits, so the 2 is left out.
        factor = 0.5 if output.kind == "logits" else 1.0
        found["values"] = factor * _relative_error(output, reference, candidate, weights)
    return found


def combine(measure: str, mean: float) -> float:
    """The divergence from the mean of per-sample values: the root for cosine shifts, itself else."""
    return float(np.sqrt(mean)) if measure == "embedding" else float(mean)


def kl(output: Output, reference: Array, candidate: Array, weights: Array | None) -> Floats:
    """Plain KL(p||q) in nats per sample of an output that has classes or probabilities."""
    per_position, _ = _classes(output, *shared_finite(reference, candidate))
    return _over_positions(per_position, weights)


def agreement(output: Output, reference: Array, candidate: Array, weights: Array | None) -> Floats:
    """Share of positions whose winning class is the same, per sample."""
    axis = 1 + (output.axis or 0)
    same = reference.argmax(axis=axis) == candidate.argmax(axis=axis)
    return _over_positions(per_element(same).astype(np.float64), weights)


def cosine_distance(reference: Array, candidate: Array, weights: Array | None) -> Floats:
    """One minus the cosine between whole samples; 0 where both are zero, 1 where one is."""
    left, right = _flat(reference, candidate, weights)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosine = np.einsum("nf,nf->n", left, right) / np.where(norms == 0, 1, norms)
    return np.asarray(np.where(both_zero, 0.0, 1 - cosine))


def noise_to_signal(reference: Array, candidate: Array, weights: Array | None) -> Floats:
    """Squared error over squared reference per sample: 10^(-SQNR/10)."""
    left, right = _flat(reference, candidate, weights)
    signal = np.square(left).sum(axis=1)
    noise = np.square(left - right).sum(axis=1)
    ratio = np.divide(noise, signal, out=np.full_like(noise, np.inf), where=signal > 0)
    return np.asarray(np.where(noise == 0, 0.0, ratio))


def squared_error(reference: Array, candidate: Array, weights: Array | None) -> Floats:
    """Mean squared error per sample, padding left out."""
    left, right = _flat(reference, candidate, weights)
    count = left.shape[1]
    if weights is not None:
        count = np.maximum(weights.reshape(len(weights), -1).sum(axis=1), 1) * (left.shape[1] / weights[0].size)
    return np.asarray(np.square(left - right).sum(axis=1) / np.maximum(count, 1))


def estimate(values: Floats, *, transform: Callable[[Floats], Floats] | None = None, seed: int = 0) -> Estimate:
    """Mean of per-sample values with a 95% bootstrap interval (1,000 resamples), after ``transform``.

    The bootstrap and not a normal interval, up to 4,096 samples: a few of them often make most of a divergence.
    """
    change = transform or (lambda array: array)
    if len(values) == 0:
        return Estimate(0.0, 0.0, 0.0)
    mean = values.mean()
    if len(values) > MAX_BOOTSTRAP_SAMPLES:
        half = 1.96 * values.std() / np.sqrt(len(values))
        low = max(mean - half, values.min())
        value, low, high = change(np.array([mean, low, mean + half]))
        return Estimate(float(value), float(low), float(high))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=1000)
    means = counts @ np.where(np.isfinite(values), values, 0) / len(values)
    low, high = np.quantile(change(means), [0.025, 0.975])
    return Estimate(float(change(np.array([mean]))[0]), float(low), float(high))


def shared_finite(reference: Array, candidate: Array) -> tuple[Floats, Floats]:
    """Both in float64, zero wherever the reference is not finite (masked logits): nothing is asked there."""
    finite = np.isfinite(reference)
    if finite.all():
        return reference.astype(np.float64), candidate.astype(np.float64)
    zero = np.float64(0)
    return np.where(finite, reference, zero).astype(np.float64), np.where(finite, candidate, zero).astype(np.float64)


def new_nonfinite(reference: Array, candidate: Array) -> int:
    """How many elements are NaN or infinite where the reference's are finite."""
    if reference.dtype.kind in "biuOSU" or candidate.dtype.kind in "biuOSU":
        return 0
    with np.errstate(invalid="ignore"):
        return int((np.isfinite(reference) & ~np.isfinite(candidate)).sum())


# --- what the output looks like ---


def _class_axes(rank: int) -> Sequence[int]:
    """Where classes may lie, without the sample axis: last, or first as in maps (samples, C, H, W)."""
    if rank < 2:
        return ()
    return {2: (0,), 3: (1, 0)}.get(rank, (0, rank - 2))


def _kind_of_classes(batches: Batches, axis: int, *, is_usual: bool) -> str | None:
    """ "probability", "log" or "logits" where all rows along ``axis`` look so, else None.

    is_usual: whether logits may lie there; features are often first in (samples, F, positions).
    """
    looks = [_class_look(block, axis) for block, _ in batches()]
    kinds = {each.kind for each in looks}
    if kinds != {"other"}:
        return kinds.pop() if kinds in ({"probability"}, {"log"}) else None
    entropies, spreads = (
        np.concatenate(parts) for parts in zip(*((each.entropy, each.spread) for each in looks), strict=True)
    )
    if not entropies.size or not np.isfinite(entropies).all():
        return None
    # Coordinates in pixels have a peaked softmax too; what trained models give as logits spans less.
    is_peaked = entropies.mean() < PEAKED_ENTROPY_SHARE and np.median(spreads) < MAX_LOGIT_SPREAD
    return "logits" if is_peaked and is_usual and _winner_varies([each.winners for each in looks]) else None


class _ClassLook(NamedTuple):
    """kind: "probability", "log" or "other". Of rows (n,): winners, entropy of the softmax as a share of the largest
    possible, spread from the least to the largest value."""

    kind: str
    winners: Array
    entropy: Floats
    spread: Floats


def _class_look(block: Array, axis: int) -> _ClassLook:
    """How one batch looks, from at most 4,096 rows; its entropies are infinite where no softmax can be made."""
    rows = _rows(block, axis)
    rows = rows[:: max(1, len(rows) // SAMPLED_ROWS)].astype(np.float64)
    winners = rows.argmax(axis=1) if rows.size else np.zeros(0, int)
    if rows.shape[1] < 2 or not np.isfinite(rows).all():
        return _ClassLook("other", winners, np.array([np.inf]), np.array([np.inf]))
    spread = rows.max(axis=1) - rows.min(axis=1)
    if rows.min(initial=0) >= -1e-6 and np.abs(rows.sum(axis=1) - 1).max(initial=0) < SUM_TOLERANCE:
        return _ClassLook("probability", winners, np.zeros(len(rows)), spread)
    if rows.max(initial=-1) <= 1e-6 and np.abs(np.exp(rows).sum(axis=1) - 1).max(initial=0) < SUM_TOLERANCE:
        return _ClassLook("log", winners, np.zeros(len(rows)), spread)
    logs = log_softmax(rows)
    entropy = -(np.exp(logs) * logs).sum(axis=1) / np.log(rows.shape[1])
    return _ClassLook("other", winners, entropy, spread)


def _winner_varies(winners: Sequence[Array]) -> bool:
    counts = np.unique(np.concatenate(list(winners)), return_counts=True)[1]
    return bool(counts.max(initial=1) <= MAX_WINNER_SHARE * counts.sum())


def _is_unit_interval(block: Array) -> bool:
    return block.dtype.kind != "u" and bool(block.size == 0 or (block.min() >= 0 and block.max() <= 1))


def _with_entropy(output: Output, batches: Batches) -> Output:
    sums = [_classes(output, *shared_finite(block, block))[1] for block, _ in batches()]
    weights = [weight for _, weight in batches()]
    means = [_over_positions(own, weight) for own, weight in zip(sums, weights, strict=True)]
    entropy = float(np.concatenate(means).mean())
    return Output(output.kind, output.axis, output.is_log, entropy, output.variance)


def _with_variance(output: Output, batches: Batches, floor: float) -> Output:
    """With the variance of each channel over samples and positions; pooled where there is too little of it."""
    blocks = [_channels(shared_finite(block, block)[0], output.axis) for block, _ in batches()]
    if sum(len(block) * block.shape[1] for block in blocks) < MIN_VECTORS:
        output = Output(output.kind, output.axis if output.has_classes else None, output.is_log, output.entropy)
        blocks = [per_element(block)[..., None] for block in blocks]
    count = max(sum(len(block) * block.shape[1] for block in blocks), 1)
    mean = sum(block.sum(axis=(0, 1)) for block in blocks) / count
    square = sum(np.square(block).sum(axis=(0, 1)) for block in blocks) / count
    spread = sum(np.square(block - mean).sum(axis=(0, 1)) for block in blocks) / count
    # A channel that never changes (priors, padding) is held to a share of its size, and one that is zero
    # throughout to a share of its fellows'. Probabilities have a scale of their own.
    least = np.maximum(floor**2 * square, RELATIVE_FLOOR**4 * np.mean(square))
    if output.kind == "probabilities":
        least = np.maximum(least, PROBABILITY_SPREAD**2)
    variance = np.maximum(np.maximum(spread, least), np.finfo(np.float32).tiny)
    return Output(output.kind, output.axis, output.is_log, output.entropy, np.atleast_1d(np.asarray(variance)))


def _embedding(batches: Batches, axis: int) -> Output | None:
    """Centre and at most 1,024 unit vectors of the original; None when there are too few vectors."""
    chosen = []
    for block, weights in batches():
        vectors = shared_finite(block, block)[0].reshape(-1, block.shape[-1])
        if weights is not None and weights.size == len(vectors):
            vectors = vectors[weights.reshape(-1) > 0]
        chosen.append(vectors[:: max(1, len(vectors) // SAMPLED_ROWS)])
    vectors = np.concatenate(chosen)
    if len(vectors) < MIN_VECTORS:
        return None
    centre = vectors.mean(axis=0)
    basis = vectors[np.linspace(0, len(vectors) - 1, min(BASIS_VECTORS, len(vectors))).astype(int)] - centre
    lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    if not lengths.all():
        return None
    return Output("embedding", axis, centre=centre, basis=basis / lengths)


# --- measures ---


def _classes(output: Output, reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    return kl_and_entropy(output.kind, output.axis, reference, candidate, is_log=output.is_log)


def _relative_error(output: Output, reference: Floats, candidate: Floats, weights: Array | None) -> Floats:
    assert output.variance is not None
    axis = output.axis if output.variance.size > 1 else None
    error = np.square(_channels(candidate, axis) - _channels(reference, axis)) / output.variance
    return 2 * _over_positions(error.mean(axis=2), weights)


def _cosine_shift(output: Output, reference: Floats, candidate: Floats, weights: Array | None) -> Floats:
    """Mean over the basis of (u_i . (c_j - r_j) / |r_j - centre|)^2, averaged over each sample's vectors.

    The cosine that vector j has with each original vector moves by this much: the error as the directions
    in which outputs differ see it. A rotated or rescaled embedding fails, as it must for an index built
    with the original.
    """
    assert output.basis is not None and output.centre is not None
    size = reference.shape[-1]
    lengths = np.linalg.norm(reference - output.centre, axis=-1).reshape(-1)
    error = (candidate - reference).reshape(-1, size)
    shift = np.square(error @ output.basis.T).mean(axis=1)
    squared = np.divide(shift, lengths**2, out=np.zeros_like(shift), where=lengths > 0)
    return _over_positions(per_element(squared.reshape(reference.shape[:-1])), weights)


def _over_positions(values: Floats, weights: Array | None) -> Floats:
    """(samples, positions) -> (samples,): the mean, weighted where the weights are about these positions."""
    if values.shape[1] == 0:
        return np.zeros(len(values))
    if weights is None or values.shape[1] % weights.shape[1]:
        return np.asarray(values.mean(axis=1))
    spread = np.repeat(weights, values.shape[1] // weights.shape[1], axis=1).astype(np.float64)
    return np.asarray((values * spread).sum(axis=1) / np.maximum(spread.sum(axis=1), 1e-12))


def _channels(block: Floats, axis: int | None) -> Floats:
    """(samples, positions, channels); one channel where every element stands alone."""
    if axis is None or block.ndim < 2:
        return per_element(block)[..., None]
    return rows_of(block, axis)


def _rows(block: Array, axis: int) -> Array:
    moved = np.moveaxis(block, 1 + axis, -1)
    return moved.reshape(int(np.prod(moved.shape[:-1])), moved.shape[-1])


def _flat(reference: Array, candidate: Array, weights: Array | None) -> tuple[Floats, Floats]:
    """(samples, elements) each, zero in the padding."""
    left, right = (per_element(block) for block in shared_finite(reference, candidate))
    if weights is not None and left.shape[1] % max(weights.shape[1], 1) == 0:
        spread = np.repeat(weights, left.shape[1] // weights.shape[1], axis=1)
        left, right = left * spread, right * spread
    return left, right
