"""Arrays of samples, cut the ways that measures look at them: by position, by channel, by element.

All have the samples on axis 0; an ``axis`` is counted without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def per_element(block: Array) -> Array:
    """(samples, elements); not by -1, which numpy cannot tell for arrays without elements."""
    return block.reshape(len(block), int(np.prod(block.shape[1:])))


def by_channel(block: Array, axis: int | None) -> Array:
    """(samples, positions, channels); one channel where ``axis`` is None."""
    if axis is None:
        return per_element(block)[..., None]
    moved = np.moveaxis(block, 1 + axis, -1)
    return moved.reshape(len(block), int(np.prod(moved.shape[1:-1])), moved.shape[-1])


def over_positions(values: Floats, weights: Array | None) -> Floats:
    """(samples, positions, ...) -> (samples, ...): the mean, weighted where the weights are about these positions.

    weights: (samples, p) where p divides the number of positions: each stands for neighbouring ones.
    """
    if values.shape[1] == 0:
        return np.zeros((len(values), *values.shape[2:]))
    if not about_positions(weights, values.shape[1]):
        return np.asarray(values.mean(axis=1))
    assert weights is not None
    spread = np.repeat(weights, values.shape[1] // weights.shape[1], axis=1).astype(np.float64)
    sums = np.einsum("np...,np->n...", values, spread)
    counts = np.maximum(spread.sum(axis=1), 1e-12)
    return np.asarray(sums / counts.reshape(-1, *(1,) * (values.ndim - 2)))


def about_positions(weights: Array | None, positions: int) -> bool:
    """Whether weights (samples, p) can be spread over so many positions."""
    return weights is not None and weights.shape[1] > 0 and positions % weights.shape[1] == 0


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
