"""Noisy measurements of things alike, brought nearer to each other by what of their differences is noise.

    (1 - s) x_i + s median(x),   s = noise^2 / (noise^2 + own^2),   own^2 = spread(x)^2 - noise^2, with a floor

James & Stein 1961, in the empirical Bayes form of Efron & Morris 1973; the median stands for the mean and the
median absolute deviation for the standard deviation, since a measurement may be far off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

OF_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation


def shrunk(measured: Floats, noise: float, least_own: float) -> Floats:
    """Measurements (n,), n >= 2, nearer to their median.

    noise: the standard deviation of each measurement. least_own: by which the things differ at least, however little
    the measurements do.
    """
    distance = np.median(measured) - measured
    spread = OF_NORMAL * float(np.median(np.abs(distance)))
    own = max(spread**2 - noise**2, least_own**2)
    moved: Floats = measured + noise**2 / (noise**2 + own) * distance
    return moved
