"""Scales of the input channels by how large their inputs are (activation-aware weight quantization).

    w x = (w s)(x / s)   ->   round(w s) / s,   s = E[x^2]^(a/2),   a in [0, 1]

A channel whose inputs are large is rounded in finer steps, at the cost of the others that share its grid.
a is the one with the least output error. Lin et al. 2023, https://arxiv.org/abs/2306.00978.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EXPONENTS = np.linspace(0.1, 1.0, 10)  # a beside 0; the authors try 20
WIDEST = 2.0**7  # a factor's ratio to the middle one, at most: exact and normal in half precision


def channel_factors(power: Array, exponent: float) -> Array:
    """1 / s for each input channel, around 1: (channels,) float32 values that float16 holds exactly.

    power: (channels,) mean square of the inputs. A channel without inputs is taken for the weakest that has some.
    Deviation from the paper: the root of the mean square stands for the mean magnitude.
    """
    size = np.sqrt(np.maximum(power.astype(np.float64), 0))
    if not size.any():
        return np.ones(size.shape, np.float32)
    factors = np.maximum(size, size[size > 0].min()) ** -exponent
    factors /= np.sqrt(factors.max() * factors.min())
    halves: Array = np.clip(factors, 1 / WIDEST, WIDEST).astype(np.float16)
    return halves.astype(np.float32)
