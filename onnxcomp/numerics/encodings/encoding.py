"""How a weight's values are made: values = decode(codes), to the bit.

An Encoding keeps parameters only (levels, scales, axis, block). The codes follow from the values:
``encode`` finds them and gives None as soon as one value is not the exact decode of a code, so an
encoding that a later pass made untrue can never be written. Decoders compute in float32 (float64 for
float64 weights) and cast at the end, as the ONNX decoder does, so both agree bit for bit.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxcomp.numerics.quantizers.nearest import nearest_codes

Array = NDArray[Any]

NEAR_DISTANCES = 2**16  # between values and levels, computed together: they stay in the cache
LEAST_SHORT, LARGEST_SHORT = 2.0**-14, 2.0**14  # normal numbers of float16; levels up to 4 times larger stay in range


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays agree in shape, dtype and every bit (-0.0 differs from 0.0, NaN equals itself)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    kind = np.dtype(f"u{left.dtype.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(left).view(kind), np.ascontiguousarray(right).view(kind)))


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
class Encoding(ABC):
    """Parameters from which codes become values of type ``dtype`` (a float type's name)."""

    kind: ClassVar[str]
    dtype: str

    @property
    @abstractmethod
    def level_count(self) -> int:
        """How many different codes there are."""

    @abstractmethod
    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        """The values of ``shape`` that the codes stand for."""

    @abstractmethod
    def nearest(self, values: Array) -> Array:
        """The codes whose decode lies nearest to the values."""

    def encode(self, values: Array) -> Array | None:
        """The codes whose decode equals the values bit for bit, or None where there are none."""
        if str(values.dtype) != self.dtype or not self.fits(values.shape):
            return None
        codes = self.nearest(values)
        return codes if same_bits(self.decode(codes, values.shape), np.asarray(values)) else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the parameters can describe a weight of this shape."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The encoding as plain JSON values; arrays as base64 of their little-endian bytes."""
        content: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = _array_to_dict(value)
            content[field.name] = value.to_dict() if isinstance(value, Encoding) else value
        return content


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

    def _split(self, values: Array) -> Array:
        return values.reshape(split_shape(values.shape, self.axis, self.block_size))

    def _safe_scale(self) -> Array:
        assert self.scale is not None
        return np.where(self.scale == 0, np.ones_like(self.scale), self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class GridEncoding(ScaledEncoding):
    """values = (code - zero_point) * scale, code in [0, levels): an affine grid.

    zero_point: integers of the scale's shape; ``levels``: at most 256 codes.
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

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        compute = compute_dtype(float_dtype(self.dtype))
        split = codes.reshape(split_shape(shape, self.axis, self.block_size)).astype(compute)
        values: Array = (split - self.zero_point.astype(compute)) * self._scale(compute)
        return values.astype(float_dtype(self.dtype)).reshape(shape)

    def _scale(self, compute: np.dtype[Any]) -> Array:
        return np.ones((), compute) if self.scale is None else self.scale.astype(compute)

    def nearest(self, values: Array) -> Array:
        compute = compute_dtype(values.dtype)
        split = self._split(np.asarray(values)).astype(compute)
        position = split if self.scale is None else split / self._safe_scale()
        position = np.rint(position) + self.zero_point
        return np.clip(position, 0, self.levels - 1).astype(np.uint8).reshape(values.shape)


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

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        values: Array = self.codebook[codes.reshape(split_shape(shape, self.axis, self.block_size))]
        if self.scale is not None:
            values = values * self.scale.astype(values.dtype)
        return values.astype(float_dtype(self.dtype)).reshape(shape)

    def nearest(self, values: Array) -> Array:
        compute = compute_dtype(values.dtype)
        split = self._split(np.asarray(values)).astype(compute)
        position = split if self.scale is None else split / self._safe_scale()
        return nearest_codes(position, self.codebook.astype(compute)).reshape(values.shape)


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

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        moved = (*shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis])
        return np.moveaxis(self.codebook[codes.ravel()].reshape(moved), -1, self.axis)

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

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        values = self.inner.decode(codes, shape)
        scaled: Array = values * self.factor.astype(values.dtype)
        return scaled.astype(float_dtype(self.dtype))

    def nearest(self, values: Array) -> Array:
        compute = float_dtype(self.inner.dtype)
        return self.inner.nearest(np.asarray(values).astype(compute) / self.factor.astype(compute))


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskEncoding(Encoding):
    """The zeros of the weight are meant: a pruning mask. The other values are free."""

    kind: ClassVar[str] = "mask"

    @property
    def level_count(self) -> int:
        return 2

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        return codes.reshape(shape)

    def nearest(self, values: Array) -> Array:
        return np.asarray(values)


ENCODINGS: dict[str, type[Encoding]] = {
    encoding.kind: encoding
    for encoding in (GridEncoding, CodebookEncoding, VectorEncoding, RescaledEncoding, MaskEncoding)
}


def encoding_from_dict(content: dict[str, Any]) -> Encoding:
    """The inverse of ``Encoding.to_dict``; KeyError for an unknown kind, ValueError for broken content."""
    entries = dict(content)
    kind = ENCODINGS[entries.pop("kind")]
    return kind(**{name: _from_plain(value) for name, value in entries.items()})


def _from_plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return encoding_from_dict(value) if "kind" in value else _array_from_dict(value)


def _array_to_dict(array: Array) -> dict[str, Any]:
    little = np.ascontiguousarray(array)
    if little.dtype.byteorder == ">":
        little = little.astype(little.dtype.newbyteorder("<"))
    content = base64.b64encode(little.tobytes()).decode()
    return {"dtype": str(little.dtype), "shape": list(little.shape), "data": content}


def _array_from_dict(content: dict[str, Any]) -> Array:
    flat = np.frombuffer(base64.b64decode(content["data"]), float_dtype(content["dtype"]))
    return flat.reshape(content["shape"])
