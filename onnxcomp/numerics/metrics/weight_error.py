"""How far rewritten values lie from the old ones, relative to the old ones' power."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays.channel_rows import rows_of

Array = NDArray[Any]

CHUNK = 2**20


def relative_error(reference: Array, values: Array) -> float:
    """|values - reference|^2 / |reference|^2, summed in float64 chunk by chunk; 0 for a zero reference."""
    left, right = reference.reshape(-1), values.reshape(-1)
    error = power = 0.0
    for start in range(0, left.size, CHUNK):
        part = left[start : start + CHUNK].astype(np.float64)
        error += float(np.sum(np.square(right[start : start + CHUNK].astype(np.float64) - part)))
        power += float(np.sum(np.square(part)))
    return error / power if power > 0 else 0.0


def channel_error(reference: Array, values: Array, *, axis: int) -> float:
    """The mean over the channels along ``axis`` of their relative errors; channels of zeros do not count."""
    left, right = rows_of(reference, axis), rows_of(values, axis)
    step = max(1, CHUNK // max(1, left.shape[1]))
    errors = []
    for start in range(0, len(left), step):
        part = left[start : start + step].astype(np.float64)
        power = np.sum(np.square(part), axis=1)
        error = np.sum(np.square(right[start : start + step].astype(np.float64) - part), axis=1)
        errors.append(error[power > 0] / power[power > 0])
    found = np.concatenate(errors) if errors else np.zeros(0)
    return float(found.mean()) if found.size else 0.0
