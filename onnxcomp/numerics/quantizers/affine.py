"""Affine grids: w -> (code - zero_point) * scale, code an integer from 0 to 2^bits - 1.

symmetric    zero_point = 2^(bits - 1); the scale is the least that covers both ends
asymmetric   the grid covers [min(w, 0), max(w, 0)]

Either way zero is a code, so that zeros stay zero. With ``search`` the ends are drawn in, group by group,
to where the squared error is least, and the scale then is set to its least-squares optimum. Squares may be
weighted, value by value, by how much an error there costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import compute_dtype, split_shape

Array = NDArray[Any]
Fit = Callable[["Grids"], tuple[Array, Array]]

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
    weights: Array | None = None,
    fit: Fit | None = None,
) -> tuple[Array, Array]:
    """The scale and zero point of a GridEncoding with 2^bits levels for finite values of any float type.

    axis: None for one grid, else one for each index of ``axis``, or with ``block_size`` (which must divide
    the axis, else ValueError) one for each block along it. weights: of the squared errors that ``search``
    minimizes, not negative, in the shape of the values. fit: another way to find the grids, on values of size 1.
    Gives the scale in the type that decoders compute in, positive and never denormal, and the zero point as
    uint8, both in the shape that GridEncoding takes.
    """
    if axis is not None and block_size is not None and values.shape[axis] % block_size:
        raise ValueError(f"block_size must divide the axis: {block_size}, {values.shape[axis]}")
    compute = compute_dtype(values.dtype)
    shape = split_shape(values.shape, axis, block_size)
    split = np.asarray(values).astype(compute).reshape(shape)
    grids = Grids(split, _reduced_axes(split.ndim, axis, block_size), bits, symmetric)
    if fit is None and search:
        fit = Grids.searched
    if fit is None:
        scale, zero_point = grids.covering(*grids.ends())
    else:
        given = None if weights is None else weights.astype(compute).reshape(shape)
        scale, zero_point = _fitted(grids, given, fit)
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


def _fitted(grids: Grids, weights: Array | None, fit: Fit) -> tuple[Array, Array]:
    """What ``fit`` finds on values of size 1, so that no square overflows."""
    low, high = grids.ends()
    exponent = np.frexp(np.maximum(high, -low))[1]
    if weights is not None:
        # A weight is a matter of proportion inside a group; one of zeros throughout says nothing.
        peak = weights.max(axis=grids.axes, keepdims=True, initial=0)
        weights = np.where(peak > 0, weights / np.where(peak > 0, peak, 1), 1).astype(weights.dtype)
    even = Grids(np.ldexp(grids.split, -exponent), grids.axes, grids.bits, grids.symmetric, weights)
    scale, zero_point = fit(even)
    usable = np.maximum(np.ldexp(scale, exponent), np.finfo(grids.split.dtype).tiny)
    return np.where(high > low, usable, np.ones_like(scale)), zero_point


def _within_range(scale: Array, zero_point: Array, bits: int, dtype: np.dtype[Any]) -> Array:
    """The scale, less where a rounded zero point would push an end of the grid beyond the type's range."""
    reach = np.maximum(zero_point, 2**bits - 1 - zero_point)
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    within: Array = np.minimum(scale, (largest * (1 - 1e-6) / reach).astype(scale.dtype))
    return within


class Grids:
    """The grids of all groups of ``split``; the values of a group lie along ``axes``.

    weights: in the shape of ``split``, of the squared errors.
    """

    def __init__(
        self, split: Array, axes: tuple[int, ...], bits: int, symmetric: bool, weights: Array | None = None
    ) -> None:
        self.split = split
        self.axes = axes
        self.bits = bits
        self.symmetric = symmetric
        self.weights = weights
        self._steps = 2**bits - 1

    def ends(self) -> tuple[Array, Array]:
        """The least and the largest value of each group, zero among them, as float64."""
        low = self.split.min(axis=self.axes, keepdims=True, initial=0).astype(np.float64)
        high = self.split.max(axis=self.axes, keepdims=True, initial=0).astype(np.float64)
        return low, high

    def covering(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The finest grid that reaches from low to high (float64; low <= 0 <= high), group by group."""
        middle = (self._steps + 1) // 2
        if self.symmetric:
            scale = np.maximum(high / max(1, self._steps - middle), -low / middle)
        else:
            scale = high / self._steps - low / self._steps
        scale = self.usable(scale)
        if self.symmetric:
            return scale, np.full(scale.shape, float(middle))
        return scale, self.whole(-low / scale)

    def searched(self) -> tuple[Array, Array]:
        """The grid of least squared error among drawn-in ranges, group by group, its scale then refined."""
        low, high = self.ends()
        best = _Best(*self.covering(low, high))
        for shrink in COARSE_SHRINKS:
            self._try(best, np.full(low.shape, shrink), low, high)
        around = best.shrink.copy()
        for step in FINE_STEPS:
            self._try(best, around + step, low, high)
        for _ in range(3):
            scale = self.refined(best.scale, best.zero_point, self.split)
            best.keep(self._error(scale, best.zero_point), best.shrink, scale, best.zero_point)
        return best.scale, best.zero_point

    def _try(self, best: _Best, shrink: Array, low: Array, high: Array) -> None:
        scale, zero_point = self.covering(low * shrink, high * shrink)
        best.keep(self._error(scale, zero_point), shrink, scale, zero_point)

    def codes(self, scale: Array, zero_point: Array) -> Array:
        """Codes less the zero point, in the compute type."""
        low = (-zero_point).astype(scale.dtype)
        high = (self._steps - zero_point).astype(scale.dtype)
        codes = self.split / scale
        return np.clip(np.rint(codes, out=codes), low, high, out=codes)

    def _error(self, scale: Array, zero_point: Array) -> Array:
        rest = self.codes(scale, zero_point)
        rest *= scale
        rest -= self.split
        rest *= rest
        if self.weights is not None:
            rest *= self.weights
        error: Array = rest.sum(axis=self.axes, keepdims=True, dtype=np.float64)
        return error

    def refined(self, scale: Array, zero_point: Array, target: Array) -> Array:
        """The scale at which the present codes lie nearest to ``target``, by (weighted) least squares."""
        codes = self.codes(scale, zero_point)
        weighted = codes if self.weights is None else codes * self.weights
        along = np.sum(weighted * target, axis=self.axes, keepdims=True, dtype=np.float64)
        power = np.sum(weighted * codes, axis=self.axes, keepdims=True, dtype=np.float64)
        return self.usable(np.where(power > 0, along / np.where(power > 0, power, 1), scale))

    def whole(self, zero_point: Array) -> Array:
        """The nearest zero point that is a code."""
        return np.clip(np.rint(zero_point), 0, self._steps)

    def usable(self, scale: Array) -> Array:
        """In the compute type; 1 where there is nothing but zeros, never below the least normal number."""
        limits = np.finfo(self.split.dtype)
        plain = np.clip(scale, float(limits.tiny), float(limits.max))
        return np.where(scale > 0, plain, 1.0).astype(self.split.dtype)


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
