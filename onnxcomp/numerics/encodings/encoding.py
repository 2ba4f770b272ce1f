"""The encodings: grids, codebooks, codebooks of vectors, grids with one more factor, masks.

Terms compute in float32 (float64 for float64 weights) and cast at the end.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxcomp.numerics.arrays.nearest import nearest_codes
from onnxcomp.numerics.encodings.definition import Encoding as Encoding
from onnxcomp.numerics.encodings.definition import encoding_kind, is_float
from onnxcomp.numerics.encodings.distinct_values import same_bits as same_bits
from onnxcomp.numerics.encodings.expression import (
    Term,
    binary,
    cast,
    gather,
    literal,
    parameter,
    reshape,
    scatter,
    transpose,
)  # fmt: skip

Array = NDArray[Any]

NEAR_DISTANCES = 2**16  # between values and levels, computed together: they stay in the cache
LEAST_SHORT, LARGEST_SHORT = 2.0**-14, 2.0**14  # normal numbers of float16; levels up to 4 times larger stay in range


def compute_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The type that decoders compute in before the final cast: float64 for float64, else float32."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def float_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a float weight by name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def short_scales(scale: Array) -> Array:
    """Scales rounded to what float16 holds, in their own type, so that they can be stored in half the bytes.

    That changes them by a 2048th at most, far less than few bits do. Left as they are where one is out of the range
    that float16 holds at full precision.
    """
    size = np.abs(scale[scale != 0])
    if size.size and not (size.min() >= LEAST_SHORT and size.max() <= LARGEST_SHORT):
        return scale
    return scale.astype(np.float16).astype(scale.dtype)


def split_shape(shape: tuple[int, ...], axis: int | None, block_size: int | None) -> tuple[int, ...]:
    """The shape with ``axis`` cut in (blocks, block_size); the shape itself where there are no blocks."""
    if axis is None or block_size is None:
        return shape
    return (*shape[:axis], shape[axis] // block_size, block_size, *shape[axis + 1 :])


def _broadcasts(parameter: Array, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is one for all, or has the rank of the shape and 1 or the size along each axis."""
    if parameter.ndim == 0:
        return True
    return parameter.ndim == len(shape) and all(
        own in (1, size) for own, size in zip(parameter.shape, shape, strict=True)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledEncoding(Encoding):
    """A scale for the whole weight, for each index of ``axis``, or for each block along ``axis``.

    scale: shape broadcastable against ``split_shape(shape, axis, block_size)``, in the compute dtype;
        for an axis without blocks all dimensions but ``axis`` are 1. None means 1.
    """

    scale: Array | None = None
    axis: int | None = None
    block_size: int | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        if self.axis is not None and not 0 <= self.axis < len(shape):
            return False
        block_size = self.block_size
        if self.axis is not None and block_size is not None and (block_size < 1 or shape[self.axis] % block_size):
            return False
        split = split_shape(shape, self.axis, self.block_size)
        return self.scale is None or _broadcasts(self.scale, split)

    def _positions(self, values: Array) -> Array:
        """The values in units of the scale (of one where it is zero), in the type that terms compute in."""
        split = np.asarray(values).reshape(split_shape(values.shape, self.axis, self.block_size))
        split = split.astype(compute_dtype(values.dtype), copy=False)
        if self.scale is None:
            return split
        return np.asarray(split / np.where(self.scale == 0, np.ones_like(self.scale), self.scale))


@dataclass(frozen=True, eq=False, kw_only=True)
class GridEncoding(ScaledEncoding):
    """values = (code - zero_point) * scale, code in [0, levels): an affine grid.

    zero_point: integers of the scale's shape, or floats, which may be trained; ``levels``: at most 256 codes.
    """

    kind: ClassVar[str] = "grid"
    levels: int
    zero_point: Array

    @property
    def level_count(self) -> int:
        return self.levels

    def fits(self, shape: tuple[int, ...]) -> bool:
        if not super().fits(shape):
            return False
        return _broadcasts(self.zero_point, split_shape(shape, self.axis, self.block_size))

    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        own = float_dtype(self.dtype)
        compute = compute_dtype(own)
        numbers = cast(reshape(codes, split_shape(shape, self.axis, self.block_size)), compute)
        numbers = binary("Sub", numbers, self._array("zero_point", compute))
        scale = literal(np.ones((), compute)) if self.scale is None else self._array("scale", compute)
        return reshape(cast(binary("Mul", numbers, scale), own), shape)

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole multiples of the scale: the zero points are integers."""
        return not is_float(np.asarray(self.zero_point).dtype)

    def trimmed(self, used: Array) -> tuple[Array, GridEncoding]:
        low, high = int(used[0]), int(used[-1])
        if not self.is_whole:  # a zero point less the lowest code would be rounded
            return np.arange(high + 1), replace(self, levels=high + 1)
        points = np.asarray(self.zero_point).astype(np.int64) - low
        if (points == points.flat[0]).all():
            points = np.asarray(points.flat[0])
        return np.arange(low, high + 1), replace(self, levels=high - low + 1, zero_point=points)

    def nearest(self, values: Array) -> Array:
        position = self._positions(values)
        if self.is_whole:
            own = None if self.scale is None else position  # without a scale it is the caller's
            position = np.asarray(np.rint(position, out=own))
            position += self.zero_point
        else:
            position = np.asarray(np.rint(position + self.zero_point))
        return np.clip(position, 0, self.levels - 1, out=position).astype(np.uint8).reshape(values.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class CodebookEncoding(ScaledEncoding):
    """values = codebook[code] * scale.

    codebook: (k,) ascending, k <= 256, in the compute dtype (in the weight's own dtype without a scale).
    """

    kind: ClassVar[str] = "codebook"
    codebook: Array

    @property
    def level_count(self) -> int:
        return int(self.codebook.size)

    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        values = gather(self._array("codebook"), reshape(codes, split_shape(shape, self.axis, self.block_size)))
        if self.scale is not None:
            values = binary("Mul", values, self._array("scale", values.dtype))
        return reshape(cast(values, float_dtype(self.dtype)), shape)

    def trimmed(self, used: Array) -> tuple[Array, CodebookEncoding]:
        return used, replace(self, codebook=self.codebook[used])

    def nearest(self, values: Array) -> Array:
        book = self.codebook.astype(compute_dtype(values.dtype))
        return nearest_codes(self._positions(values), book).reshape(values.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class VectorEncoding(Encoding):
    """The values, read in row-major order with ``axis`` last, are rows of a codebook (product quantization).

    codebook: (k, d) in the weight's dtype, k <= 65536; the length of ``axis`` is a multiple of d.
    """

    kind: ClassVar[str] = "vector"
    codebook: Array
    axis: int

    @property
    def level_count(self) -> int:
        return int(self.codebook.shape[0])

    def fits(self, shape: tuple[int, ...]) -> bool:
        return 0 <= self.axis < len(shape) and shape[self.axis] % self.codebook.shape[1] == 0

    @property
    def label(self) -> str:
        return f"vectors of {self.codebook.shape[1]}"

    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        axis, width = self.axis, self.codebook.shape[1]
        moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        back = (*range(axis), len(shape) - 1, *range(axis, len(shape) - 1))
        rows = gather(self._array("codebook"), reshape(codes, (*moved[:-1], moved[-1] // width)))
        return transpose(reshape(rows, moved), back)

    def trimmed(self, used: Array) -> tuple[Array, VectorEncoding]:
        return used, replace(self, codebook=self.codebook[used])

    def nearest(self, values: Array) -> Array:
        rows, shape = self._rows(np.asarray(values))
        return self._codes(rows, compute_dtype(values.dtype)).reshape(shape)

    def encode(self, values: Array) -> Array | None:
        if str(values.dtype) != self.dtype or not self.fits(values.shape):
            return None
        rows, shape = self._rows(np.asarray(values))
        codes = self._codes(rows, compute_dtype(values.dtype))
        missed = (self.codebook[codes] != rows).any(axis=1)  # of two vectors closer than the type can tell
        codes[missed] = self._codes(rows[missed], np.dtype(np.float64))
        found = codes.reshape(shape)
        return found if same_bits(self.decode(found, values.shape), np.asarray(values)) else None

    def _rows(self, values: Array) -> tuple[Array, tuple[int, ...]]:
        """The vectors (n, d) of the values, and the shape of their codes."""
        width = self.codebook.shape[1]
        moved = np.moveaxis(values, self.axis, -1)
        return moved.reshape(-1, width), (*moved.shape[:-1], moved.shape[-1] // width)

    def _codes(self, rows: Array, compute: np.dtype[Any]) -> Array:
        book = self.codebook.astype(compute)
        half = np.square(book).sum(axis=1) / 2
        codes = np.empty(len(rows), np.uint16 if len(book) > 256 else np.uint8)
        step = max(1, NEAR_DISTANCES // len(book))
        for start in range(0, len(rows), step):
            distance = rows[start : start + step].astype(compute) @ -book.T
            distance += half
            codes[start : start + step] = distance.argmin(axis=1)
        return codes


@dataclass(frozen=True, eq=False, kw_only=True)
class RescaledEncoding(Encoding):
    """values = inner * factor: what another encoding makes, with one more scale along another axis.

    inner: a grid in the type that decoders compute in. factor: positive, of the weight's rank, broadcast.
    """

    kind: ClassVar[str] = "rescaled"
    inner: GridEncoding
    factor: Array

    @property
    def level_count(self) -> int:
        return self.inner.level_count

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.factor.ndim == len(shape) and _broadcasts(self.factor, shape) and self.inner.fits(shape)

    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        values = self.inner.term(codes, shape)
        scaled = binary("Mul", values, self._array("factor", values.dtype))
        return cast(scaled, float_dtype(self.dtype))

    @property
    def label(self) -> str:
        return self.inner.label

    def trimmed(self, used: Array) -> tuple[Array, RescaledEncoding]:
        kept, inner = self.inner.trimmed(used)
        return kept, replace(self, inner=inner)

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        own = {name: values for name, values in arrays.items() if name == "factor"}
        inner = self.inner.with_arrays({name: values for name, values in arrays.items() if name not in own})
        return replace(super().with_arrays(own), inner=inner)

    def nearest(self, values: Array) -> Array:
        compute = float_dtype(self.inner.dtype)
        return self.inner.nearest(np.asarray(values).astype(compute) / self.factor.astype(compute))


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskEncoding(Encoding):
    """The zeros of the weight are meant: a pruning mask. The other values are free."""

    kind: ClassVar[str] = "mask"
    values_are_free: ClassVar[bool] = True

    @property
    def level_count(self) -> int:
        return 2

    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        return reshape(codes, shape)

    def trainable(self, codes: Array, shape: tuple[int, ...]) -> Term:
        """The values that are not zero, one after another, are the parameter ``values``."""
        flat = np.asarray(codes).reshape(-1)
        places = np.flatnonzero(flat)
        return self.term(scatter(literal(flat), literal(places), parameter("values", flat[places])), shape)

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        """Itself: what may be trained is in the values, not in the encoding."""
        return self

    def nearest(self, values: Array) -> Array:
        return np.asarray(values)


def encoding_from_dict(content: dict[str, Any]) -> Encoding:
    """The inverse of ``Encoding.to_dict``; KeyError for an unknown kind, ValueError for broken content."""
    entries = dict(content)
    kind = encoding_kind(entries.pop("kind"))
    return kind(**{name: _from_plain(value) for name, value in entries.items()})


def _from_plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return encoding_from_dict(value) if "kind" in value else _array_from_dict(value)


def _array_from_dict(content: dict[str, Any]) -> Array:
    flat = np.frombuffer(base64.b64decode(content["data"]), float_dtype(content["dtype"]))
    return flat.reshape(content["shape"])
