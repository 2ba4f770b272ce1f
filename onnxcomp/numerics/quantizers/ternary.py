"""Ternary and binary weights in closed form: w -> {-a, 0, a} or {-a, a}, a for each row.

For a given set of m values that are not set to zero the best a is the mean of their magnitudes, and the
squared error is |w|^2 - (sum of these magnitudes)^2 / m. So the best set is the m largest for the m that
maximizes (sum of the m largest)^2 / m, found exactly by sorting; Ternary Weight Networks
(https://arxiv.org/abs/1605.04711) approximates it by a threshold of 0.7 mean |w|. With all values kept it is
XNOR-Net's mean (https://arxiv.org/abs/1603.05279).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import compute_dtype

Array = NDArray[Any]


def ternary_scales(rows: Array) -> Array:
    """The scale (groups,) with which levels -1, 0, 1 are nearest to the rows (groups, n); 1 for zero rows.

    The nearest code to w / scale then is the optimum. In the type that decoders compute in.
    """
    compute = compute_dtype(rows.dtype)
    scales = np.ones(len(rows), compute)
    for index, row in enumerate(rows):
        largest_first = np.sort(np.abs(row.astype(compute)))[::-1]
        if largest_first.size and largest_first[0] > 0:
            sums = np.cumsum(largest_first, dtype=np.float64)
            counts = np.arange(1, sums.size + 1)
            # Divided by the root and not squared, which would overflow for the largest values.
            best = int(np.argmax(sums / np.sqrt(counts)))
            scales[index] = _normal(sums[best] / counts[best], compute)
    return scales


def binary_scales(rows: Array, *, skip_zeros: bool = False) -> Array:
    """The mean magnitude (groups,) of each row of (groups, n); 0 for zero rows, 1 with ``skip_zeros``.

    skip_zeros: exact zeros take no part, as they will stay zero.
    """
    compute = compute_dtype(rows.dtype)
    scales = np.ones(len(rows), compute) if skip_zeros else np.zeros(len(rows), compute)
    for index, row in enumerate(rows):
        magnitudes = np.abs(row.astype(compute))
        count = np.count_nonzero(magnitudes) if skip_zeros else magnitudes.size
        total = float(np.sum(magnitudes, dtype=np.float64))
        if total > 0:
            scales[index] = _normal(total / count, compute)
    return scales


def _normal(scale: float, compute: np.dtype[Any]) -> float:
    """At least the least normal number: one over a denormal scale would overflow."""
    return max(scale, float(np.finfo(compute).tiny))
