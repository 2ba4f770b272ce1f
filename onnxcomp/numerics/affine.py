"""Affine grids: w -> (code - zero_point) * scale, code an integer from 0 to 2^bits - 1.

symmetric    zero_point = 2^(bits - 1); the scale is the least that covers both ends
asymmetric   the grid covers [min(w, 0), max(w, 0)]

Either way zero is a code, so that zeros stay zero. With ``search`` the ends are drawn in, group by group,
to where the squared error is least, and the scale then is set to its least-squares optimum.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encoding import compute_dtype, split_shape

Array = NDArray[Any]

COARSE_SHRINKS = np.arange(1.0, 0.19, -0.08)
FINE_STEPS = (-0.06, -0.04, -0.02, 0.02, 0.04, 0.06)


def fit_grid(
    values: Array,
    *,
    bits: int,
    symmetric: bool = True,
    axis: int | None = None,
    block_size: int | None = None,
    search: bool = False,
) -> tuple[Array, Array]:
    """The scale and zero point of a GridEncoding with 2^bits levels for finite values of any float type.

    axis: None for one grid, else one for each index of ``axis``, or with ``block_size`` (which must divide
    the axis, else ValueError) one for each block along it. Gives the scale in the type that decoders compute
    in, positive and never denormal, and the zero point as uint8, both in the shape that GridEncoding takes.
    """
    if axis is not None and block_size is not None and values.shape[axis] % block_size:
        raise ValueError(f"block_size must divide the axis: {block_size}, {values.shape[axis]}")
    compute = compute_dtype(values.dtype)
    split = np.asarray(values).astype(compute).reshape(split_shape(values.shape, axis, block_size))
    axes = _reduced_axes(split.ndim, axis, block_size)
    low = split.min(axis=axes, keepdims=True, initial=0).astype(np.float64)
    high = split.max(axis=axes, keepdims=True, initial=0).astype(np.float64)
    if search:
        scale, zero_point = _searched(split, axes, bits, symmetric, low, high)
    else:
        scale, zero_point = _Grid(split, axes, bits, symmetric).covering(low, high)
    scale = _within_range(scale, zero_point, bits, values.dtype)
    if axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return scale, zero_point.astype(np.uint8)


def _reduced_axes(rank: int, axis: int | None, block_size: int | None) -> tuple[int, ...]:
    """The axes of the split values that share one grid."""
    if axis is None:
        return tuple(range(rank))
    if block_size is not None:
        return (axis + 1,)
    return tuple(each for each in range(rank) if each != axis)


def _searched(
    split: Array, axes: tuple[int, ...], bits: int, symmetric: bool, low: Array, high: Array
) -> tuple[Array, Array]:
    """The grids of least squared error, found on values of size 1 so that no square overflows."""
    exponent = np.frexp(np.maximum(high, -low))[1]
    grid = _Grid(np.ldexp(split, -exponent), axes, bits, symmetric)
    scale, zero_point = grid.search(np.ldexp(low, -exponent), np.ldexp(high, -exponent))
    usable = np.maximum(np.ldexp(scale, exponent), np.finfo(split.dtype).tiny)
    return np.where(high > low, usable, np.ones_like(scale)), zero_point


def _within_range(scale: Array, zero_point: Array, bits: int, dtype: np.dtype[Any]) -> Array:
    """The scale, less where a rounded zero point would push an end of the grid beyond the type's range."""
    reach = np.maximum(zero_point, 2**bits - 1 - zero_point)
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    within: Array = np.minimum(scale, (largest * (1 - 1e-6) / reach).astype(scale.dtype))
    return within


class _Grid:
    """The grids of all groups of ``split``, which share the axes ``axes``."""

    def __init__(self, split: Array, axes: tuple[int, ...], bits: int, symmetric: bool) -> None:
        self._split = split
        self._axes = axes
        self._steps = 2**bits - 1
        self._symmetric = symmetric

    def covering(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The finest grid that reaches from low to high (float64; low <= 0 <= high), group by group."""
        middle = (self._steps + 1) // 2
        if self._symmetric:
            scale = np.maximum(high / max(1, self._steps - middle), -low / middle)
        else:
            scale = high / self._steps - low / self._steps
        scale = self._usable(scale)
        if self._symmetric:
            return scale, np.full(scale.shape, float(middle))
        zero_point = np.rint(-low / scale)
        return scale, np.clip(zero_point, 0, self._steps)

    def search(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The grid of least squared error among drawn-in ranges, group by group, its scale then refined."""
        best = _Best(*self.covering(low, high))
        for shrink in COARSE_SHRINKS:
            self._try(best, np.full(low.shape, shrink), low, high)
        around = best.shrink.copy()
        for step in FINE_STEPS:
            self._try(best, around + step, low, high)
        for _ in range(3):
            scale = self._refined(best.scale, best.zero_point)
            best.keep(self._error(scale, best.zero_point), best.shrink, scale, best.zero_point)
        return best.scale, best.zero_point

    def _try(self, best: _Best, shrink: Array, low: Array, high: Array) -> None:
        scale, zero_point = self.covering(low * shrink, high * shrink)
        best.keep(self._error(scale, zero_point), shrink, scale, zero_point)

    def _codes(self, scale: Array, zero_point: Array) -> Array:
        """Codes less the zero point, in the compute type."""
        low = (-zero_point).astype(scale.dtype)
        high = (self._steps - zero_point).astype(scale.dtype)
        codes = self._split / scale
        return np.clip(np.rint(codes, out=codes), low, high, out=codes)

    def _error(self, scale: Array, zero_point: Array) -> Array:
        rest = self._codes(scale, zero_point)
        rest *= scale
        rest -= self._split
        rest *= rest
        error: Array = rest.sum(axis=self._axes, keepdims=True, dtype=np.float64)
        return error

    def _refined(self, scale: Array, zero_point: Array) -> Array:
        """The scale of least squared error for the present codes."""
        codes = self._codes(scale, zero_point)
        along = np.sum(codes * self._split, axis=self._axes, keepdims=True, dtype=np.float64)
        power = np.sum(codes * codes, axis=self._axes, keepdims=True, dtype=np.float64)
        return self._usable(np.where(power > 0, along / np.where(power > 0, power, 1), scale))

    def _usable(self, scale: Array) -> Array:
        """In the compute type; 1 where there is nothing but zeros, never below the least normal number."""
        limits = np.finfo(self._split.dtype)
        plain = np.clip(scale, float(limits.tiny), float(limits.max))
        return np.where(scale > 0, plain, 1.0).astype(self._split.dtype)


class _Best:
    """The best grid so far of each group."""

    def __init__(self, scale: Array, zero_point: Array) -> None:
        self.scale = scale
        self.zero_point = zero_point
        self.shrink = np.ones(scale.shape)
        self.error = np.full(scale.shape, np.inf)

    def keep(self, error: Array, shrink: Array, scale: Array, zero_point: Array) -> None:
        """Take over the groups in which the error is less."""
        better = error < self.error
        self.error = np.where(better, error, self.error)
        self.shrink = np.where(better, shrink, self.shrink)
        self.scale = np.where(better, scale, self.scale)
        self.zero_point = np.where(better, zero_point, self.zero_point)
