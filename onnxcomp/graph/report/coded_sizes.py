"""What weights would take in codes of so many bits, before anything is fitted."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.numerics.encodings.storage_options import estimate_bytes

GAIN_BITS = (8, 6, 5, 4, 3, 2)
SHAPES = 1024


def coded_bytes(weight: Weight, bits: int) -> int:
    """About how many bytes a weight takes in codes of so many bits with a codebook, never more than now."""
    return _of_shape(weight.shape, weight.dtype, weight.stored_bytes, bits)


def bytes_by_bits(shape: tuple[int, ...], dtype: np.dtype[Any], size_bytes: int) -> dict[int, int]:
    """The same of a weight of this shape, for each of ``GAIN_BITS``."""
    return {bits: _of_shape(shape, dtype, size_bytes, bits) for bits in GAIN_BITS}


@functools.lru_cache(SHAPES)  # thousands of weights have few shapes
def _of_shape(shape: tuple[int, ...], dtype: np.dtype[Any], size_bytes: int, bits: int) -> int:
    if 2**bits > math.prod(shape):
        return size_bytes
    codebook = np.arange(2**bits, dtype=np.float32).astype(dtype)
    encoding = CodebookEncoding(dtype=str(dtype), codebook=codebook)
    return min(size_bytes, estimate_bytes(shape, dtype, encoding))
