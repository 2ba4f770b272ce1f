"""By what an error in each input of a weight is weighed, where few samples tell of it.

    H = (1 - a) S + a * mean(diag S) * I      S: second moments or covariance (K, K) of the inputs

a is what the samples themselves call for: the amount of least expected squared error for their number and the spread
of the eigenvalues of S (oracle approximating shrinkage, Chen et al. 2010, https://doi.org/10.1109/TSP.2010.2053029).
Inputs in which few directions stand out ask for little of it, many directions and few samples for much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.gram import shrunk

Array = NDArray[Any]

LEAST_SHRINKAGE = 0.01  # inputs that never fired in calibration are not thrown away


def input_weights(gram: Array, samples: int, mean: Array | None = None) -> Array:
    """H (groups, K, K) float64, positive definite, for second moments (groups, K, K) of that many samples.

    mean: (groups, K) of the inputs, where an error in the mean of the outputs is made up for by a bias, so that only
    the covariance counts. samples: independent ones; the columns of one are alike, and count as one.
    """
    spread = np.asarray(gram, np.float64)
    if mean is not None:
        center = np.asarray(mean, np.float64)
        spread = spread - center[:, :, None] * center[:, None, :]
    amounts = [max(LEAST_SHRINKAGE, oracle_shrinkage(each, samples)) for each in spread]
    return np.concatenate([shrunk(each[None], amount) for each, amount in zip(spread, amounts, strict=True)])


def oracle_shrinkage(covariance: Array, samples: int) -> float:
    """The share (0 to 1) of the identity's multiple to mix into a covariance (K, K) of so many samples."""
    size = len(covariance)
    trace = float(np.trace(covariance))
    square = float(np.sum(np.square(covariance)))
    beside = square - trace**2 / size
    if not beside > 1e-12 * square:  # all directions alike: the samples tell no more than the identity
        return 1.0
    return float(min(1.0, ((1 - 2 / size) * square + trace**2) / ((samples + 1 - 2 / size) * beside)))


def row_shares(counts: Array) -> Array:
    """How often each row (rows,) of a table is to be expected, in sum 1, after it was looked up so many times.

    Rows not seen share what Good & Turing leave to them, the share of those seen once (Good 1953,
    https://doi.org/10.1093/biomet/40.3-4.237), evenly.
    """
    total, unseen = float(np.sum(counts)), int(np.sum(counts == 0))
    if not total:
        return np.full(len(counts), 1 / len(counts))
    once = float(np.sum(counts == 1))
    left = min(0.5, max(once, 1.0) / total) if unseen else 0.0
    shares: Array = (1 - left) * counts / total
    return np.where(counts == 0, left / unseen, shares) if unseen else shares
