"""What errors are held against: the variance of each channel, what a vector's fellows span."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onnxcomp.numerics.metrics.arrays import Array, Floats, about_positions, by_channel, shared_finite
from onnxcomp.numerics.metrics.looks import SAMPLED_ROWS, Batches

CONSTANT_FLOOR = 1e-3  # a channel that never changes is held to this share of its size
ROUNDING = 1e-6  # of the size: a spread below is float32's own rounding
LEAST_SQUARE = float(np.finfo(np.float32).tiny) ** 2
MIN_VECTORS = 8
FEW_CHANNELS = 64  # up to so many may be quantities of their own, in units of their own
WEAKEST = 1e-2  # of the median variance: of many channels none is held to less
BASIS_VECTORS = 1024


class Spread(NamedTuple):
    """variance: (channels,), never zero; varies: (channels,) of bool, those that change by more than rounding."""

    variance: Floats
    varies: Array


def spread(batches: Batches, axis: int | None, *, floor: float = CONSTANT_FLOOR, of_base: bool = False) -> Spread:
    """The variance of each channel along ``axis`` over samples and positions, padding left out.

    Where all samples have one shape and no fewer than 8 count at an element, it is taken about that element's own mean
    over the samples: what an output says whatever the input (anchors, priors) is not what it tells.
    of_base: of the difference from the input that the output is a correction of.
    floor: what a channel that does not vary is held to, as a share of its size.
    """
    count, total, square = _sums(batches, axis, of_base)
    centre = _centre(batches, axis, of_base, total / count)
    deviation = sum(
        _weighed(np.square(values - centre), weights).sum(axis=(0, 1))
        for values, weights in _values(batches, axis, of_base)
    )
    variance = np.atleast_1d(np.asarray(deviation / count, dtype=np.float64))
    size = np.atleast_1d(np.asarray(square / count, dtype=np.float64))
    varies = variance > ROUNDING**2 * np.maximum(size, LEAST_SQUARE)
    own = np.where(size > 0, size, size.mean())
    variance = np.where(varies, variance, floor**2 * own)
    if floor > CONSTANT_FLOOR:  # noise: what hardly varies from draw to draw, and lies near 0 by chance in some channel
        variance = np.maximum(variance, floor**2 * np.maximum(own, np.median(own)))
    if len(variance) > FEW_CHANNELS and varies.any():
        variance = np.maximum(variance, WEAKEST * np.median(variance[varies]))
    return Spread(np.maximum(variance, LEAST_SQUARE), varies)


def own_scale(batches: Batches, axis: int | None) -> bool:
    """Whether samples have a scale of their own: eight or more positions in each channel."""
    return all(by_channel(each.block, axis).shape[1] >= MIN_VECTORS for each in batches() if each.block.size)


def basis(batches: Batches) -> tuple[Floats, Floats] | None:
    """Centre (features,) and at most 1,024 unit vectors (vectors, features) of an output whose last axis holds
    features; None where there are too few vectors, or one that is the centre."""
    chosen = []
    for block, weights, *_ in batches():
        vectors = shared_finite(block, block)[0].reshape(-1, block.shape[-1])
        if weights is not None and weights.size == len(vectors):
            vectors = vectors[weights.reshape(-1) > 0]
        chosen.append(vectors[:: max(1, len(vectors) // SAMPLED_ROWS)])
    vectors = np.concatenate(chosen)
    if len(vectors) < MIN_VECTORS:
        return None
    centre = vectors.mean(axis=0)
    picked = vectors[np.linspace(0, len(vectors) - 1, min(BASIS_VECTORS, len(vectors))).astype(int)] - centre
    lengths = np.linalg.norm(picked, axis=1, keepdims=True)
    return (centre, picked / lengths) if lengths.all() else None


def _values(batches: Batches, axis: int | None, of_base: bool) -> Iterator[tuple[Floats, Array | None]]:
    """Each batch as (samples, positions, channels) with the weights of its positions."""
    for block, weights, base, _ in batches():
        values = shared_finite(block, block)[0]
        if of_base and base is not None:
            values = values - base
        yield by_channel(values, axis), weights


def _sums(batches: Batches, axis: int | None, of_base: bool) -> tuple[float, Floats, Floats]:
    """How many positions count, and the sums of the values and of their squares, (channels,) each."""
    count, total, square = 0.0, np.zeros(1), np.zeros(1)
    for values, weights in _values(batches, axis, of_base):
        count += float(_weighed(np.ones((*values.shape[:2], 1)), weights).sum())
        total = total + _weighed(values, weights).sum(axis=(0, 1))
        square = square + _weighed(np.square(values), weights).sum(axis=(0, 1))
    return max(count, 1.0), total, square


def _centre(batches: Batches, axis: int | None, of_base: bool, mean: Floats) -> Floats:
    """What each element varies about, (positions, channels) or (channels,): its own mean over the samples, where these
    are of one shape and enough of them count there, else that of its channel, ``mean``."""
    if len({each.block.shape[1:] for each in batches()}) != 1:
        return mean
    count, total = np.zeros(1), np.zeros(1)
    for values, weights in _values(batches, axis, of_base):
        count = count + _weighed(np.ones((*values.shape[:2], 1)), weights).sum(axis=0)
        total = total + _weighed(values, weights).sum(axis=0)
    return np.asarray(np.where(count >= MIN_VECTORS, total / np.maximum(count, 1), mean))


def _weighed(values: Floats, weights: Array | None) -> Floats:
    """(samples, positions, channels) times the weights of the positions."""
    if not about_positions(weights, values.shape[1]):
        return values
    assert weights is not None
    return np.asarray(values * np.repeat(weights, values.shape[1] // weights.shape[1], axis=1)[..., None])
