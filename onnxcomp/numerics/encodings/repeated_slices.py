"""Arrays whose slices along an axis repeat: the different slices, and which one stands where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from onnxcomp.numerics.encodings.distinct_values import bits_of_values
from onnxcomp.numerics.encodings.expression import Array, Literal, Term, cast, gather, literal, transpose
from onnxcomp.numerics.encodings.table_decoder import INDEX, Memo

SAMPLED = 16  # elements of each slice that are compared first
WORTH = 0.75  # share of slices that may be different


def repeated_slices(read: Callable[[], Array], memo: Memo) -> Iterator[tuple[str, Term]]:
    """(name, term) for the first and the last axis, where at most three quarters of the slices are different."""
    values = read()
    for axis in sorted({0, values.ndim - 1}) if values.ndim > 1 else ():
        places = _places(np.moveaxis(values, axis, 0))
        if places is None:
            continue
        first, which = places
        shape = (first.size, *(size for other, size in enumerate(values.shape) if other != axis))
        rows = memo(lambda axis=axis, first=first: np.moveaxis(read(), axis, 0)[first])  # type: ignore[misc]
        kind = np.uint8 if first.size <= 256 else np.uint16 if first.size <= 65536 else INDEX
        found = gather(Literal(shape, values.dtype, rows), cast(literal(which.astype(kind)), INDEX))
        order = (*range(1, axis + 1), 0, *range(axis + 1, values.ndim))
        yield f"{first.size} of {values.shape[axis]} slices of axis {axis}", transpose(found, order)


def _places(slices: Array) -> tuple[Array, Array] | None:
    """(u,) where each different slice stands first, (n,) which one each slice is; None where few repeat."""
    count = len(slices)
    inner = slices.shape[1:]
    seen = np.linspace(0, math.prod(inner) - 1, SAMPLED).astype(np.int64)
    index: tuple[Any, ...] = (slice(None), *np.unravel_index(seen, inner))
    sample = slices[index]
    if len(np.unique(_keys(sample))) > WORTH * count:
        return None
    _, first, which = np.unique(_keys(slices.reshape(count, -1)), return_index=True, return_inverse=True)
    if first.size > WORTH * count or first.size < 2:
        return None
    return first, which.reshape(-1)


def _keys(rows: Array) -> Array:
    """(n,) the bytes of each row as one element."""
    bits = bits_of_values(rows).reshape(rows.shape)
    kind = np.dtype((np.void, bits.dtype.itemsize * rows.shape[-1]))
    found: Array = np.ascontiguousarray(bits).view(kind)
    return found.reshape(-1)
