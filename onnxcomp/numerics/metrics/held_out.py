"""Whether a change brings outputs nearer on samples that it was not fitted to, beyond what chance does.

    gain of a sample  d = |y - y0|^2 - |y - y1|^2         for sure where  mean d > standard error of the mean d

Of changes that do nothing on the average about one in six passes (a normal mean is over its standard error that often),
which costs nothing; of those that gain three times the standard error 98% do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def is_gain(before: Floats, after: Floats) -> bool:
    """Whether squared errors (samples,) become smaller on the average by more than their mean's standard error.

    Raises ValueError for fewer than two samples, which tell nothing of it.
    """
    if len(before) < 2 or before.shape != after.shape:
        raise ValueError(f"errors of the same two or more samples are wanted, got {before.shape} and {after.shape}")
    gains = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    return bool(gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))
