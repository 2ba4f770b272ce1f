"""Magnitude pruning: which values of one array or of many lie among the smallest.

The count is exact. The threshold is found by a radix select on the bits of |w| as float64 (for positive
floats, order of bits is order of values): four counts of 16 bits each, chunk by chunk, so that the memory
does not grow with the arrays. Of values equal to the threshold the first ones, in order, are pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 2**20
DIGIT_BITS = 16


def pruned_masks(arrays: Sequence[Array], *, sparsity: float) -> list[Array]:
    """A mask for each array, True where it is to be zero: together the ``sparsity`` smallest magnitudes.

    sparsity: 0 to 1 of all values of all arrays together, rounded to the nearest count; zeros that are there
    count among the smallest.
    """
    total = sum(array.size for array in arrays)
    count = round(sparsity * total)
    if count == 0:
        return [np.zeros(array.shape, bool) for array in arrays]
    threshold, ties = smallest(arrays, count)
    masks = []
    for array in arrays:
        flat = array.reshape(-1)
        mask = np.empty(flat.size, bool)
        for start in range(0, flat.size, CHUNK):
            keys = _keys(flat[start : start + CHUNK])
            part = keys < threshold
            equal = np.flatnonzero(keys == threshold)[:ties]
            part[equal] = True
            ties -= equal.size
            mask[start : start + CHUNK] = part
        masks.append(mask.reshape(array.shape))
    return masks


def smallest(arrays: Sequence[Array], count: int) -> tuple[np.uint64, int]:
    """The bits of the count-th smallest magnitude, and how many of its equals are among the count."""
    prefix, left = 0, count
    for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = np.zeros(2**DIGIT_BITS, np.int64)
        for keys in _chunks(arrays):
            if prefix or shift < 64 - DIGIT_BITS:
                keys = keys[keys >> np.uint64(shift + DIGIT_BITS) == np.uint64(prefix)]
            digits = (keys >> np.uint64(shift)) & np.uint64(2**DIGIT_BITS - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=2**DIGIT_BITS)
        before = np.cumsum(counts)
        digit = int(np.searchsorted(before, left))
        left -= int(before[digit] - counts[digit])
        prefix = (prefix << DIGIT_BITS) | digit
    return np.uint64(prefix), left


def _chunks(arrays: Sequence[Array]) -> Iterator[Array]:
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            yield _keys(flat[start : start + CHUNK])


def _keys(values: Array) -> Array:
    return np.abs(values.astype(np.float64)).view(np.uint64)
