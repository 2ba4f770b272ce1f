"""Measures that users ask for by name: cosine, noise over signal, squared error. All per sample, padding left out."""

from __future__ import annotations

import numpy as np

from onnxcomp.numerics.metrics.arrays import Array, Floats, about_positions, per_element, shared_finite


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


def _flat(reference: Array, candidate: Array, weights: Array | None) -> tuple[Floats, Floats]:
    """(samples, elements) each, zero in the padding."""
    left, right = (per_element(block) for block in shared_finite(reference, candidate))
    if about_positions(weights, left.shape[1]):
        assert weights is not None
        spread = np.repeat(weights, left.shape[1] // weights.shape[1], axis=1)
        left, right = left * spread, right * spread
    return left, right
