"""Arrays for the tests of rules, the same each time they are drawn in the same order; and which tests are run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")
THOROUGH = "ONNXCOMP_THOROUGH" in os.environ  # `make test-thorough`
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


def some_of(cases: Sequence[T], step: int) -> Sequence[T]:
    """One in so many for `make test`; all of them for `make test-thorough`."""
    return cases if THOROUGH else cases[::step]
