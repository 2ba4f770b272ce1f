"""Integer arithmetic as ONNX and its kernels do it.

x ~ (x_q - zero_point) * scale                        activations: one grid a tensor, zero is a code
w ~ (w_q - zero_point[channel]) * scale[channel]      weights: |w_q - zero_point| <= limit where symmetric
b ~ b_q * (x_scale * w_scale[channel])                biases: int32, in the unit of the accumulator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEAST_SCALE = float(np.finfo(np.float32).tiny) * 2**20  # quotients by it stay finite
BIAS_LIMIT = 2**30  # leaves the accumulator as much room again


@dataclass(frozen=True)
class Grid:
    """The grid of a tensor: scale () float32, zero_point () of the integer type; (channels,) for one a channel."""

    scale: Array
    zero_point: Array

    def times(self, factor: float) -> Grid:
        """The grid on which the same codes stand for ``factor`` > 0 times as much."""
        return self if factor == 1 else Grid(self.scale * np.float32(factor), self.zero_point)


def activation_grid(low: float, high: float, *, dtype: str = "uint8", symmetric: bool = False) -> Grid:
    """The grid over [min(low, 0), max(high, 0)], of all codes; ValueError for a range that is not finite."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"the range must be finite, got {low} to {high}")
    low, high = min(low, 0.0), max(high, 0.0)
    limits = np.iinfo(dtype)
    if symmetric:
        middle = (int(limits.min) + int(limits.max) + 1) // 2
        return Grid(_scale(max(high, -low) / (int(limits.max) - middle)), np.array(middle, dtype))
    steps = int(limits.max) - int(limits.min)
    scale = _scale((high - low) / steps)
    if low == 0 and float(scale) * steps > high > LEAST_SCALE * steps:
        scale = np.nextafter(scale, np.float32(0))  # what is clipped at high must not be above it
    zero_point = np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max)
    return Grid(scale, zero_point.astype(dtype))


def quantize(values: Array, grid: Grid) -> Array:
    """The codes of ``values``, as QuantizeLinear gives them (ties to even, saturated)."""
    limits = np.iinfo(grid.zero_point.dtype)
    codes = np.rint(values.astype(np.float32) / grid.scale) + np.float32(grid.zero_point)
    return np.clip(codes, limits.min, limits.max).astype(grid.zero_point.dtype)


def weight_grid(
    values: Array,
    axis: int | None,
    *,
    dtype: str = "int8",
    symmetric: bool = True,
    limit: int = 127,
    floor: Array | None = None,
) -> Grid:
    """One grid for each channel along ``axis``, or a single one where it is None; scale 1 for channels of zeros.

    limit: of the codes' distance from the zero point, where the grid is symmetric.
    floor: scales not to go below, of the same shape: where a bias needs a coarser unit.
    """
    axes = tuple(each for each in range(values.ndim) if each != axis)
    high = values.max(axis=axes, initial=0.0).astype(np.float64)
    low = values.min(axis=axes, initial=0.0).astype(np.float64)
    limits = np.iinfo(dtype)
    plain = np.maximum(high, -low) / limit if symmetric else (high - low) / (int(limits.max) - int(limits.min))
    scale = _scale(plain if floor is None else np.maximum(plain, floor))
    if symmetric:
        zero_point = np.full(scale.shape, (int(limits.min) + int(limits.max) + 1) // 2)
    else:
        zero_point = np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)
    return Grid(scale, zero_point.astype(dtype))


def quantize_weight(values: Array, grid: Grid, axis: int | None, *, limit: int | None = 127) -> Array:
    """The codes of a weight on a grid of ``weight_grid``; ``limit`` as there, None for all that the type holds."""
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    codes = values / grid.scale.reshape(shape)
    np.rint(codes, out=codes)
    if limit is not None:
        np.clip(codes, -limit, limit, out=codes)
    codes += grid.zero_point.astype(np.float32).reshape(shape)
    limits = np.iinfo(grid.zero_point.dtype)
    return np.clip(codes, limits.min, limits.max, out=codes).astype(grid.zero_point.dtype)


def bias_floor(bias: Array, input_scale: float) -> Array:
    """The least weight scales (channels,) for which the bias's codes stay within 2^30."""
    return np.abs(bias).astype(np.float64) / (BIAS_LIMIT * input_scale)


def quantize_bias(bias: Array, scales: Array) -> Array:
    """The int32 codes of a bias (channels,) for scales = input scale * weight scales."""
    codes = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(codes, -BIAS_LIMIT * 2 + 1, BIAS_LIMIT * 2 - 1).astype(np.int32)


def _scale(scale: Any) -> Array:
    """In float32; 1 where all values are zero, never so small that quotients overflow."""
    plain = np.asarray(scale, np.float64)
    return np.where(plain > 0, np.maximum(plain, LEAST_SCALE), 1.0).astype(np.float32)
