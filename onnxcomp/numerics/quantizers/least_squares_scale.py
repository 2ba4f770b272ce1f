"""The factor by which rounded rows come nearest to what the old ones give at the output.

    min over f of  (w - f q) H (w - f q)^T    ->    f = (q H w^T) / (q H q^T)

for a row, and the same with sums on both sides for rows that share a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDEST = 2.0  # a rounded row is near the old one; a factor beyond this ratio comes of next to no output


def output_products(reference: Array, matrices: Array, moment: Array) -> tuple[Array, Array]:
    """q * (w H) and q * (q H) element by element, (groups, rows, K) float32, whose sums over rows make the factor.

    reference, matrices: w and q, (groups, rows, K). moment: H, (groups or 1, K, K).
    """
    old, new = np.asarray(reference, np.float32), np.asarray(matrices, np.float32)
    form = moment.astype(np.float32)
    return new * np.matmul(old, form), new * np.matmul(new, form)


def gains(along: Array, power: Array, axis: int | None) -> Array:
    """The factor of each index of ``axis`` (or one for all), with all dimensions kept; 1 where none is sensible."""
    others = tuple(each for each in range(along.ndim) if each != axis)
    above, below = (each.sum(axis=others, keepdims=True, dtype=np.float64) for each in (along, power))
    factor = above / np.where(below > 0, below, 1)
    return np.where((factor > 1 / WIDEST) & (factor < WIDEST), factor, 1.0)
