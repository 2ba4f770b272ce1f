"""Floats of 8 and 16 bits: what becomes of values that are rounded to them.

float16: 11 bits of precision, up to 65504, down to 2^-24. bfloat16: 8 bits, float32's range. float8e4m3fn: 4 bits, up
to 448, down to 2^-9. float8e5m2: 3 bits, up to 57344, down to 2^-16.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from onnxcomp.numerics.encodings.encoding import Array

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
# The largest value of a tensor may be off by this share; of 11 bits, values down to 1e-6 stay within it.
TOLERATED = 0.05
PIECE = 2**22  # values looked at at once


def largest(name: str) -> float:
    """The largest finite number of a type."""
    return float(_limits(name).max)


def smallest_normal(name: str) -> float:
    """The smallest number of a type that still has all its bits."""
    return float(_limits(name).smallest_normal)


def _limits(name: str) -> Any:
    return ml_dtypes.finfo(DTYPES[name])  # type: ignore[no-untyped-call]  # ml_dtypes leaves it untyped


def rounded(values: Array, name: str) -> Array:
    """The values in the type, to the nearest; what is out of range becomes infinite (NaN where the type has none)."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return values.astype(DTYPES[name])


def misfit(values: Array, name: str) -> str | None:
    """Why values must not be kept in the type, None where they may.

    "too large": a finite one is out of range. "too small": the largest of them changes by over ``TOLERATED``, as
    when an epsilon of 1e-12 becomes zero. Small values beside larger ones may vanish.
    """
    peak = peak_of(values)
    if peak > largest(name):
        return "too large"
    kept = float(rounded(np.array([peak]), name)[0].astype(np.float64))
    return "too small" if abs(kept - peak) > TOLERATED * peak else None


def peak_of(values: Array) -> float:
    """The largest finite magnitude, 0 where there is none; looked at piece by piece."""
    flat, peak = values.reshape(-1), 0.0
    for start in range(0, flat.size, PIECE):
        part = np.abs(flat[start : start + PIECE].astype(np.float64))
        peak = max(peak, float(part[np.isfinite(part)].max(initial=0)))
    return peak


def power_of_two_scale(values: Array, name: str) -> float:
    """The least power of two that brings all values into the type's range when they are divided by it."""
    peak = peak_of(values)
    if peak == 0:
        return 1.0
    exponent = int(np.ceil(np.log2(peak / largest(name))))
    return float(np.ldexp(1.0, exponent + (peak > np.ldexp(largest(name), exponent))))
