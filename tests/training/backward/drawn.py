"""Arrays for the tests of rules, the same each time they are drawn in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    """float32 of both signs."""
    return _RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Array:
    """float32 from 0.3 on."""
    return (np.abs(_RNG.normal(size=shape)) + 0.3).astype(np.float32)


def whole(*values: int) -> Array:
    """A vector of int64."""
    return np.array(values, np.int64)


def number(value: float) -> Array:
    """A float32 scalar."""
    return np.array(value, np.float32)
