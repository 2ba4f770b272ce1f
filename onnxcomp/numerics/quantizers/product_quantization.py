"""Codebooks of vectors by output error: nearest vectors, and the vectors of least error for given codes.

    minimize over the book    sum over rows of d H d^T,   d = book[codes] - w

by a few steps of conjugate gradients on the normal equations, which are never formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEPS = 8
CHUNK = 2**16  # distances computed together: they stay in the cache


def nearest_vectors(targets: Array, book: Array) -> Array:
    """The index of the vector (of (n, d)) nearest to each of targets (.., d), int64."""
    flat = targets.reshape(-1, book.shape[1])
    offset = np.square(book).sum(axis=1)
    twice = -2 * book.T
    codes = np.empty(len(flat), np.int64)
    step = max(1, CHUNK // len(book))
    for start in range(0, len(flat), step):
        distance = flat[start : start + step] @ twice
        distance += offset
        codes[start : start + step] = distance.argmin(axis=1)
    return codes.reshape(targets.shape[:-1])


def refit_vectors(weights: Array, moment: Array, book: Array, codes: Array) -> Array:
    """The book (n, d) float32 that leaves less output error with the same codes.

    weights: (g, r, k). moment: (g or 1, k, k). codes: (g, r, k / d).
    """
    form = moment.astype(np.float32)
    width = book.shape[1]

    def spread(vectors: Array) -> Array:
        return vectors[codes].reshape(weights.shape).astype(np.float32)

    def gathered(values: Array) -> Array:
        rows = values.reshape(-1, width)
        flat = codes.reshape(-1)
        sums = [np.bincount(flat, rows[:, column], len(book)) for column in range(width)]
        return np.stack(sums, axis=1)

    found = book.astype(np.float64)
    rest = gathered(np.matmul(weights.astype(np.float32) - spread(found), form))
    direction, power = rest.copy(), float(np.sum(rest * rest))
    least = 1e-8 * power
    for _ in range(STEPS):
        if power <= least:
            break
        product = gathered(np.matmul(spread(direction), form))
        curvature = float(np.sum(direction * product))
        if curvature <= 0:
            break
        found = found + power / curvature * direction
        rest = rest - power / curvature * product
        after = float(np.sum(rest * rest))
        direction, power = rest + after / power * direction, after
    return found.astype(np.float32)
