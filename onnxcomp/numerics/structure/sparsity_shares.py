"""How many zeros each of several weights gets so that together they are a share of all values.

    minimize    sum over weights of error_i(s_i)    where  sum of n_i s_i = s sum of n_i

error_i is what a share of zeros costs the outputs, relative to how much they vary: as that, errors of different weights
compare, whatever their inputs and sizes are. It is known at some shares; between them its logarithm is taken for
straight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.numerics.search.rate_allocation import PricedOption, least_harm

MEASURED_AT = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
STEPS = 200  # shares that are weighed for each weight
LEAST_ERROR = 1e-12


def shares(sizes: Sequence[int], errors: Sequence[Sequence[float]], sparsity: float) -> list[float]:
    """The share of zeros (0 to 1) of each weight.

    errors: of each weight, at the shares of ``MEASURED_AT``. sparsity: of all values together, met to within a value of
    each weight, from above.
    """
    places = np.linspace(0, 1, STEPS + 1)
    items = [
        [
            PricedOption(size - math.floor(place * size), harm)
            for place, harm in zip(places, _between(own, places), strict=True)
        ]
        for size, own in zip(sizes, errors, strict=True)
    ]
    left = sum(sizes) - round(sparsity * sum(sizes))
    chosen = least_harm(items, left)
    return [1 - items[at][each].cost / max(1, sizes[at]) for at, each in enumerate(chosen)]


def _between(errors: Sequence[float], places: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """The error at each place, never falling; no zeros cost nothing, and nothing but zeros costs all."""
    known = np.maximum.accumulate([LEAST_ERROR, *np.maximum(errors, LEAST_ERROR), max(1.0, *errors)])
    found = np.exp(np.interp(places, [0.0, *MEASURED_AT, 1.0], np.log(known)))
    found[0] = 0.0
    return [float(each) for each in found]
