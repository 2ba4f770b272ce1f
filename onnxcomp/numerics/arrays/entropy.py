"""How many bits codes take by how often each is taken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSEEN = 0.05  # times that a code counts as taken which is not


def code_lengths(codes: Array, levels: int) -> Array:
    """(levels,) float64: bits of each code below ``levels``, also of those that are not taken so far."""
    counts = np.bincount(codes.reshape(-1), minlength=levels) + UNSEEN
    lengths: Array = -np.log2(counts / counts.sum())
    return lengths


def entropy_bits(codes: Array, levels: int) -> float:
    """Of all codes below ``levels`` together, as an adaptive coder without contexts writes them: what it takes to learn
    their frequencies is half the logarithm of their number for each (Rissanen 1984)."""
    counts = np.bincount(codes.reshape(-1), minlength=levels)
    taken = counts[counts > 0]
    if not taken.size:
        return 0.0
    learning = (taken.size - 1) / 2 * math.log2(max(2, codes.size))
    return float((taken * np.log2(codes.size / taken)).sum()) + learning
