"""Grids that fit most values well and care less about the few far out (half-quadratic quantization).

    min over s, z of  sum |w - (q - z) s|^p,   p < 1,   q = clip(round(w / s) + z)

The norm is split by an auxiliary error e: a shrinkage step sets e, then s (or z) is the least-squares optimum
for w - e, in turn, while the penalty that ties e to the true error grows. No data are needed.
Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.quantizers.affine import Grids

Array = NDArray[Any]

NORM = 0.7  # p, as the authors have it
FIRST_PENALTY = 10.0  # beta
GROWTH = 1.01  # kappa, of beta at each turn
TURNS = 20


def robust_grids(grids: Grids) -> tuple[Array, Array]:
    """Scale and zero point of each group, (groups' shape) each: the turn at which the p-norm of the errors was least.

    Deviations from the authors: zero points are whole numbers, so that zero stays a level; beside (for symmetric
    grids: instead of) the zero point the scale is optimized; errors count in steps of the grid, which makes
    the result independent of the weight's unit.
    """
    scale, zero_point = grids.covering(*grids.ends())
    best_scale, best_zero = scale, zero_point
    least = np.full(scale.shape, np.inf)
    penalty = FIRST_PENALTY
    for _ in range(TURNS):
        codes = grids.codes(scale, zero_point)
        error = grids.split / scale - codes
        norm = _norm(error, scale, grids.axes)
        better = norm < least
        least = np.where(better, norm, least)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero_point, best_zero)
        target = grids.split - shrunk(error, penalty) * scale
        scale = grids.refined(scale, zero_point, target)
        if not grids.symmetric:
            shift = np.mean(codes - target / scale, axis=grids.axes, keepdims=True, dtype=np.float64)
            zero_point = grids.whole(zero_point + shift)
        penalty *= GROWTH
    return best_scale, best_zero


def shrunk(error: Array, penalty: float) -> Array:
    """sign(x) max(0, |x| - |x|^(p-1) / penalty): about the minimizer of |e|^p / p + penalty / 2 (e - error)^2."""
    size = np.abs(error)
    least = np.finfo(error.dtype).tiny
    left = np.maximum(0, size - np.power(np.maximum(size, least), NORM - 1, dtype=error.dtype) / penalty)
    signed: Array = np.copysign(left, error).astype(error.dtype)
    return signed


def _norm(error: Array, scale: Array, axes: tuple[int, ...]) -> Array:
    """The p-norm (to the power p) of each group's errors, given in steps."""
    total = np.sum(np.abs(error) ** error.dtype.type(NORM), axis=axes, keepdims=True, dtype=np.float64)
    return np.asarray(total * scale.astype(np.float64) ** NORM)
