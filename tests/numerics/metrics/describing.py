"""Outputs described from arrays, and what their lenses say of others, for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Output, Pair, Seen
from onnxcomp.numerics.metrics.looks import Batches


def batches(*blocks: np.ndarray, weights: Any = None, bases: Sequence[Any] | None = None) -> Batches:
    """Each block as one batch; weights: of the first and only one. bases: one a block."""
    seen = [Seen(block, weights, base) for block, base in zip(blocks, bases or [None] * len(blocks), strict=True)]
    return lambda: iter(seen)


def described(*blocks: np.ndarray, weights: Any = None, bases: Sequence[Any] | None = None, **options: Any) -> Output:
    return metrics.describe(batches(*blocks, weights=weights, bases=bases), **options)


def measured(output: Output, reference: np.ndarray, candidate: np.ndarray, weights: Any = None) -> dict[str, float]:
    """The divergence of one batch by measure; of measures with one name (several axes) the largest."""
    pair = Pair(*metrics.shared_finite(reference, candidate), weights)
    found: dict[str, float] = {}
    for lens in output.lenses:
        for name, values in lens.summaries(lens.measure(pair)).items():
            mean = float(values.mean() if lens.power == 1 else abs(values.mean()) ** lens.power)
            found[name] = max(found.get(name, 0.0), mean)
    return found


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
