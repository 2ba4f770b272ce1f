"""The best values under a mask: what is left of a matrix makes up for what is gone.

    minimize over D    sum over rows of (T - D) H (T - D)^T,    D zero where the mask is not set

H is the second moment of the inputs, so this is the mean squared error of the outputs, solved exactly: what Optimal
Brain Surgeon and SparseGPT (Frantar & Alistarh 2023, https://arxiv.org/abs/2301.00774) approach value by value. Every
row has a matrix of its own, H at its columns; all rows are solved together by conjugate gradients, which need products
with H alone (as ALPS ends, Meng et al. 2024, https://arxiv.org/abs/2406.07831). Of large matrices they end where a step
gains next to nothing of the error: a tenth of the steps that it takes to solve every row to the last digit, at a
thousandth more error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.coordinate_descent import chunks, of_group

Array = NDArray[Any]

TOLERANCE = 1e-4  # of the residual of a row, relative to that of nothing but zeros
LARGE = 2**19  # values of a target that takes seconds to solve
LEAST_GAIN = 1e-4  # of the error that is left of all rows of a large one, what a step has to take away
LEAST_STEPS, MOST_STEPS = 10, 200


def best_under_mask(target: Array, moment: Array, kept: Array, start: Array | None = None) -> Array:
    """D (g, r, k) float64 of least output error, zero outside ``kept``.

    target: T (g, r, k). moment: H (g or 1, k, k), positive definite. kept: (g, r, k) bool. start: (g, r, k), values to
    begin with; those of T by default.
    """
    best = np.empty(target.shape)
    for where in chunks(target.shape):
        part = np.asarray(target[where], np.float64)
        first = part if start is None else np.asarray(start[where], np.float64)
        best[where] = _solved(part, np.asarray(of_group(moment, where[0]), np.float64), kept[where], first)
    return best


def _solved(target: Array, moment: Array, kept: Array, start: Array) -> Array:
    """Conjugate gradients for each row, preconditioned by the diagonal of H."""
    inverse = 1.0 / np.diagonal(moment, axis1=1, axis2=2)[:, None, :]
    values = np.where(kept, start, 0.0)
    wanted = target @ moment
    missing = wanted - values @ moment
    error = float(np.sum((target - values) * missing))
    residual = np.where(kept, missing, 0.0)
    turned = inverse * residual
    direction = turned.copy()
    power = np.sum(residual * turned, axis=2, keepdims=True)
    least = TOLERANCE**2 * np.sum(np.where(kept, inverse * np.square(wanted), 0.0), axis=2, keepdims=True)
    for step_count in range(1, MOST_STEPS + 1):
        if (power <= least).all():
            break
        product = np.where(kept, direction @ moment, 0.0)
        step = _ratio(power, np.sum(direction * product, axis=2, keepdims=True))
        gain = float(np.sum(step * power))
        error -= gain
        values += step * direction
        if target.size >= LARGE and step_count >= LEAST_STEPS and gain <= LEAST_GAIN * error:
            break
        residual -= step * product
        turned = inverse * residual
        before, power = power, np.sum(residual * turned, axis=2, keepdims=True)
        direction = turned + _ratio(power, before) * direction
    return values


def _ratio(above: Array, below: Array) -> Array:
    """0 where a row is solved and both are."""
    quotient: Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
