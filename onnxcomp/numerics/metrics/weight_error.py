"""How far rewritten values lie from the old ones, relative to the old ones' power."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 2**15  # values at a time, which stay in the cache


def relative_error(reference: Array, values: Array) -> float:
    """|values - reference|^2 / |reference|^2, summed in float64 chunk by chunk; 0 for a zero reference."""
    left, right = reference.reshape(-1), values.reshape(-1)
    error = power = 0.0
    for start in range(0, left.size, CHUNK):
        part = left[start : start + CHUNK].astype(np.float64)
        difference = right[start : start + CHUNK].astype(np.float64)
        difference -= part
        error += float(np.square(difference, out=difference).sum())
        power += float(np.square(part, out=part).sum())
    return error / power if power > 0 else 0.0


def channel_error(reference: Array, values: Array, *, axis: int) -> float:
    """The mean over the channels along ``axis`` of their relative errors; channels of zeros do not count."""
    return whole_and_channel_error(reference, values, axis=axis)[1]


def whole_and_channel_error(reference: Array, values: Array, *, axis: int) -> tuple[float, float]:
    """``relative_error`` and ``channel_error``, in one pass over the values."""
    shape = reference.shape
    split = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    left, right = reference.reshape(split), values.reshape(split)
    errors, powers = np.zeros(split[1]), np.zeros(split[1])
    for place in _blocks(split):
        part = left[place].astype(np.float64)
        difference = right[place].astype(np.float64)
        difference -= part
        errors[place[1]] += np.square(difference, out=difference).sum(axis=(0, 2))
        powers[place[1]] += np.square(part, out=part).sum(axis=(0, 2))
    power = float(powers.sum())
    if not power > 0:
        return 0.0, 0.0
    alive = powers > 0
    return float(errors.sum()) / power, float(np.mean(errors[alive] / powers[alive]))


def _blocks(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of about ``CHUNK`` values that fill the shape."""
    inner = min(max(1, shape[2]), CHUNK)
    middle = min(max(1, shape[1]), max(1, CHUNK // inner))
    outer = max(1, CHUNK // (inner * middle))
    for i in range(0, shape[0], outer):
        for j in range(0, shape[1], middle):
            for k in range(0, shape[2], inner):
                yield slice(i, i + outer), slice(j, j + middle), slice(k, k + inner)
