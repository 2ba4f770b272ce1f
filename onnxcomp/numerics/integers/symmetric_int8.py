"""A weight as signed 8-bit codes with one scale for each slice: w ~ codes * scale, |codes| <= limit.

What already lies on such a grid keeps its values: the codes are taken from its encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import Encoding, GridEncoding
from onnxcomp.numerics.integers.affine_int8 import LEAST_SCALE

Array = NDArray[Any]

FULL_LIMIT = 127
# u8 x s8 products are added in pairs in 16 bits on x86 without VNNI: 2 * 255 * 64 fits, 2 * 255 * 127 does not.
REDUCED_LIMIT = 64


@dataclass(frozen=True, eq=False)
class SignedCodes:
    """codes: int8 of the weight's shape. scales: float32, of the same rank, 1 along the axes that share a scale."""

    codes: Array
    scales: Array

    def values(self) -> Array:
        """What the codes stand for, in float32."""
        values: Array = self.codes.astype(np.float32) * self.scales
        return values


def fit_codes(values: Array, shared: tuple[int, ...], *, limit: int = FULL_LIMIT) -> SignedCodes:
    """The finest symmetric grids that cover finite float32 ``values``; ``shared``: the axes that share a scale."""
    largest = np.max(np.abs(values), axis=shared, keepdims=True, initial=0.0).astype(np.float64)
    scales = np.where(largest > 0, np.maximum(largest / limit, LEAST_SCALE), 1.0).astype(np.float32)
    codes = values / scales
    np.rint(codes, out=codes)
    return SignedCodes(np.clip(codes, -limit, limit, out=codes).astype(np.int8), scales)


def is_sliced(encoding: Encoding, shape: tuple[int, ...], shared: tuple[int, ...]) -> bool:
    """Whether the encoding is a grid of integers with one scale and zero point for all along the ``shared`` axes."""
    if not isinstance(encoding, GridEncoding) or not encoding.is_whole:
        return False
    if encoding.axis is not None and encoding.block_size is not None:
        return False
    parameters = [encoding.zero_point, *([] if encoding.scale is None else [encoding.scale])]
    return all(each.ndim == 0 or all(each.shape[axis] == 1 for axis in shared) for each in parameters)


def codes_of_grid(
    encoding: GridEncoding, codes: Array, shared: tuple[int, ...], *, limit: int = FULL_LIMIT
) -> SignedCodes | None:
    """The codes of an encoding that ``is_sliced`` less its zero points; None where they exceed the limit.

    -128 counts as within a limit of 127: it makes no sum overflow that 127 does not.
    """
    signed = codes.astype(np.int16) - encoding.zero_point.astype(np.int16)
    lowest = -128 if limit == FULL_LIMIT else -limit
    if signed.size and (signed.min() < lowest or signed.max() > limit):
        return None
    form = tuple(1 if axis in shared else size for axis, size in enumerate(codes.shape))
    scale = np.ones((), np.float32) if encoding.scale is None else encoding.scale
    return SignedCodes(signed.astype(np.int8), np.broadcast_to(scale.astype(np.float32), form))
