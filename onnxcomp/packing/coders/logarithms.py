"""Logarithms and their inverse in whole numbers, the same on every processor.

    stretch(zeros, ones) = log2(ones / zeros)        in 512ths of a bit
    squashed(x)          = 65536 / (1 + 2^-x)        probability of a one, 1 to 65535

A table's entry is the whole number next to a value that no processor's rounding brings near the half (a test looks).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEPS = 512  # in a bit
MANTISSA_BITS = 12  # of a number, that its logarithm is looked up by
STRETCHED_MOST = 16 * STEPS - 1
SQUASHED_MOST = 12 * STEPS


def stretch(pairs: Array) -> Array:
    """(n,) float64 whole numbers, log2 in 512ths of the second over the first. pairs: (n, 2) int64, 1 to below 2^53."""
    parts = pairs.astype(np.float64).view(np.int64)
    parts >>= 52 - MANTISSA_BITS  # exponent and the first bits of the mantissa, which is what a double begins with
    logarithms = log_table()[parts & (2**MANTISSA_BITS - 1)]
    parts >>= MANTISSA_BITS
    parts *= STEPS
    parts += logarithms
    found = (parts[:, 1] - parts[:, 0]).astype(np.float64)
    np.minimum(STRETCHED_MOST, np.maximum(-STRETCHED_MOST, found, out=found), out=found)
    return np.asarray(found)


def squashed(stretched: Array) -> Array:
    """(n,) int32 probabilities of 65536 for (n,) float64 logarithms, whole 512ths; these are overwritten."""
    np.minimum(SQUASHED_MOST, np.maximum(-SQUASHED_MOST, stretched, out=stretched), out=stretched)
    stretched += SQUASHED_MOST
    return np.asarray(squash_table().take(stretched.astype(np.int32)))


@functools.cache
def log_table() -> Array:
    """(4096,) int64: log2(1 + i / 4096) in 512ths."""
    size = 2**MANTISSA_BITS
    return np.array([math.floor(STEPS * math.log2(1 + each / size) + 0.5) for each in range(size)], np.int64)


@functools.cache
def squash_table() -> Array:
    """(12289,) int32 from -12 bits to 12 bits."""
    exact = (2**16 / (1 + 2.0 ** (-each / STEPS)) for each in range(-SQUASHED_MOST, SQUASHED_MOST + 1))
    return np.array([min(2**16 - 1, max(1, math.floor(each + 0.5))) for each in exact], np.int32)
