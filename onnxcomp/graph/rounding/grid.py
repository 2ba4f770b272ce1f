"""Round one weight to an affine grid of few bits, by any of the algorithms: its values and how they are made.

    nearest   each value to the nearest level
    hqq       the same, on a grid that fits most values well and cares less about the few far out
    awq       input channels scaled by how large their inputs are, the range drawn in by the output error
    gptq      column by column, the error of each made up for by the columns not yet rounded

The last two need the second moments of the inputs; a weight without them is rounded to the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import NO_CHANNELS, decoded
from onnxcomp.numerics.encodings.encoding import (
    Encoding,
    GridEncoding,
    RescaledEncoding,
    compute_dtype,
    short_scales,
    split_shape,
)
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.quantizers.affine import fit_grid
from onnxcomp.numerics.quantizers.awq import EXPONENTS, channel_factors
from onnxcomp.numerics.quantizers.hqq import robust_grids
from onnxcomp.numerics.quantizers.least_squares_scale import gains, output_products
from onnxcomp.numerics.rounding.gptq_blocks import compensated_in_parts
from onnxcomp.numerics.rounding.gram import output_error, shrunk

ALGORITHMS = ("nearest", "hqq", "gptq", "awq")
ON_DATA = ("gptq", "awq")  # need the second moments
GRANULARITIES = ("tensor", "channel", "block")


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """Which grid a weight is to get: as ``quantize-weights`` has these fields."""

    bits: int
    granularity: str = "channel"
    block_size: int = 32
    symmetric: bool = True
    search_range: bool = True

    def axis(self, weight: Weight) -> int | None:
        """The axis along which grids change, None for one grid or where there is no such axis."""
        if self.granularity == "tensor":
            return None
        if self.granularity == "channel":
            return weight.channel_axis
        # The rows of a table that is only looked up have no summed axis; blocks run along them.
        if weight.input_axis is None and weight.kinds == {"embedding"} and weight.channel_axis == 0:
            return len(weight.shape) - 1
        return weight.input_axis

    def obstacle(self, weight: Weight) -> str | None:
        """Why the weight cannot have such a grid, or None."""
        axis = self.axis(weight)
        if self.granularity == "channel" and axis is None:
            return NO_CHANNELS
        if self.granularity == "block":
            if axis is None:
                return "its readers have no summed axis in common"
            if weight.shape[axis] % self.block_size:
                return f"blocks of {self.block_size} do not divide its axis of {weight.shape[axis]}"
        return None


@dataclass(frozen=True)
class Rounded:
    """A weight's new values, their encoding, which algorithm made them and the relative squared error.

    on_output: the error is that of the node's output, not of the values.
    """

    values: Array
    encoding: Encoding
    algorithm: str
    error: float
    on_output: bool


def round_to_grid(weight: Weight, grid: GridSpec, algorithm: str, gram: Array | None = None) -> Rounded | None:
    """The weight on the grid, or None where its float type is too coarse for the scale.

    gram: (groups or 1, K, K) second moments of its inputs in its matrix form. The weight must have no obstacle.
    """
    rounding = _Rounding(weight, grid, gram)
    if algorithm in ON_DATA and rounding.form is None:
        algorithm = "nearest"
    made = {"nearest": rounding.nearest, "hqq": rounding.robust, "awq": rounding.rescaled, "gptq": rounding.compensated}
    found = made[algorithm]()
    if found is None:
        return None
    values, encoding = found
    return Rounded(values, encoding, algorithm, rounding.error(values), rounding.form is not None)


Made = tuple[Array, Encoding] | None


class _Rounding:
    def __init__(self, weight: Weight, grid: GridSpec, gram: Array | None) -> None:
        self.old = np.asarray(weight.values)
        self.weight = weight
        self.grid = grid
        self.axis = grid.axis(weight)
        self.block_size = grid.block_size if grid.granularity == "block" else None
        self.form: MatrixForm | None = None if gram is None else matrix_form(weight)
        self.moment = None if gram is None else shrunk(gram, dtype=np.float32)

    def nearest(self) -> Made:
        return self._rounded(self._fitted(self.old))

    def robust(self) -> Made:
        scale, zero_point = fit_grid(
            self.old, bits=self.grid.bits, symmetric=self.grid.symmetric, axis=self.axis,
            block_size=self.block_size, fit=robust_grids,
        )  # fmt: skip
        return self._rounded(self._encoding(scale, zero_point))

    def rescaled(self) -> Made:
        """The plain or the scaled grid of least output error, its range then drawn in where that makes it less."""
        power = self._power()
        plain = np.ones((1,) * self.old.ndim, np.float32)
        factor = min((plain, *self._factors(power)), key=lambda each: self._cost(self._rescaled(each)))
        found = [self._rescaled(factor)]
        if self.grid.search_range:
            found += [self._rescaled(factor, weights) for weights in (power, np.ones_like(power))]
        return min(found, key=self._cost)

    def compensated(self) -> Made:
        """Column by column on the grid that fits the values; its scales then are set to fit the outputs."""
        encoding = self._fitted(self.old)
        assert encoding.scale is not None
        encoding = replace(encoding, scale=short_scales(encoding.scale))
        found = self._compensated(encoding)
        if found is None:
            return None
        better = self._refitted(encoding, found[0])
        return min((found, better), key=self._cost)

    def _cost(self, made: Made) -> float:
        """The squared error of the outputs, infinite where nothing was made; to compare with one another only."""
        assert self.form is not None and self.moment is not None
        if made is None:
            return np.inf
        difference = self.form.pack(made[0]).astype(np.float32) - self.form.pack(self.old).astype(np.float32)
        cost = output_error(difference, self.moment)
        return cost if np.isfinite(cost) else np.inf

    def _refitted(self, encoding: GridEncoding, values: Array) -> Made:
        """The same codes with the scales of each channel (or all) changed by one factor."""
        assert self.form is not None and self.moment is not None and encoding.scale is not None
        along, power = output_products(self.form.pack(self.old), self.form.pack(values), self.moment)
        axis = None if self.grid.granularity == "tensor" else self.weight.channel_axis
        factor = gains(self.form.unpack(along), self.form.unpack(power), axis)
        if self.axis is None:
            factor = factor.reshape(())
        elif self.block_size is not None:
            factor = np.expand_dims(factor, self.axis + 1)
        scale = short_scales((encoding.scale * factor).astype(encoding.scale.dtype))
        changed = replace(encoding, scale=np.maximum(scale, np.finfo(scale.dtype).tiny))
        made = changed.decode(encoding.nearest(values), values.shape)
        return None if changed.encode(made) is None else (made, changed)

    def _compensated(self, encoding: GridEncoding) -> Made:
        assert self.form is not None and self.moment is not None
        old = self.form.pack(self.old).astype(np.float32)
        scale, zero_point = (self._by_value(each) for each in (encoding.scale, encoding.zero_point))
        pruned = old == 0 if (old == 0).any() else None
        steps = encoding.levels - 1

        def rounded(target: Array, columns: Array) -> Array:
            size, zero = _columns(scale, columns), _columns(zero_point, columns)
            codes: Array = np.clip(np.rint(target / size), -zero, steps - zero) * size
            return codes if pruned is None else np.where(_columns(pruned, columns), 0, codes)

        values = self.form.unpack(compensated_in_parts(old, self.moment, rounded))
        return self._rounded(encoding, values.astype(self.old.dtype))

    def _by_value(self, per_group: Array | None) -> Array:
        """A grid's scale or zero point for each value, in the matrix form, float32."""
        assert self.form is not None and per_group is not None
        split = split_shape(self.old.shape, self.axis, self.block_size)
        spread = np.broadcast_to(per_group.astype(np.float32), split).reshape(self.old.shape)
        packed = self.form.pack(spread)
        return packed[:, :, :1] if (packed == packed[:, :, :1]).all() else packed

    def error(self, values: Array) -> float:
        """Of the node's output where its inputs are known, else of the values; relative, squared."""
        if self.form is None or self.moment is None:
            return relative_error(self.old, values)
        old, new = (self.form.pack(each).astype(np.float32) for each in (self.old, values))
        power = output_error(old, self.moment)
        return output_error(new - old, self.moment) / power if power > 0 else 0.0

    def _factors(self, power: Array) -> list[Array]:
        axis = self.weight.input_axis
        if axis is None or self.old.shape[axis] == 1:
            return []
        others = tuple(each for each in range(self.old.ndim) if each != axis)
        shape = [-1 if each == axis else 1 for each in range(self.old.ndim)]
        by_channel = power.mean(axis=others, dtype=np.float64)
        return [channel_factors(by_channel, exponent).reshape(shape) for exponent in EXPONENTS]

    def _power(self) -> Array:
        """The mean square of the input that each value is multiplied with, in the weight's shape."""
        assert self.form is not None and self.moment is not None
        diagonal = np.diagonal(self.moment, axis1=1, axis2=2)[:, None, :]
        return self.form.unpack(np.broadcast_to(diagonal, self.form.pack(self.old).shape))

    def _rescaled(self, factor: Array, weights: Array | None = None) -> Made:
        """Rounded on the grid of the values over the factor: with ``weights`` of least squares, else covering."""
        compute = compute_dtype(self.old.dtype)
        search = weights is not None
        if factor.size == 1:
            return self._rounded(self._fitted(self.old, weights, search=search))
        factor = factor.astype(compute)
        weights = None if weights is None else weights * np.square(factor)
        inner = self._fitted(self.old.astype(compute) / factor, weights, search=search)
        return self._rounded(RescaledEncoding(dtype=str(self.old.dtype), inner=inner, factor=factor))

    def _fitted(self, values: Array, weights: Array | None = None, *, search: bool | None = None) -> GridEncoding:
        scale, zero_point = fit_grid(
            values, bits=self.grid.bits, symmetric=self.grid.symmetric, axis=self.axis, block_size=self.block_size,
            search=self.grid.search_range if search is None else search, weights=weights,
        )  # fmt: skip
        return self._encoding(scale, zero_point, str(values.dtype))

    def _encoding(self, scale: Array, zero_point: Array, dtype: str | None = None) -> GridEncoding:
        return GridEncoding(
            dtype=dtype or str(self.old.dtype), levels=2**self.grid.bits, scale=scale, zero_point=zero_point,
            axis=self.axis, block_size=self.block_size,
        )  # fmt: skip

    def _rounded(self, encoding: Encoding, near: Array | None = None) -> Made:
        """The nearest values that the encoding makes, to the old ones or to others."""
        values = decoded(encoding, self.old if near is None else near)
        return None if values is None else (values, encoding)


def _columns(matrices: Array, positions: Array) -> Array:
    """Of each group the columns at (groups, width); where all columns are alike, the one that stands for them."""
    if matrices.shape[2] == 1:
        return matrices
    if len(positions) == 1:
        return matrices[:, :, positions[0]]
    return np.take_along_axis(matrices, positions[:, None, :], axis=2)
