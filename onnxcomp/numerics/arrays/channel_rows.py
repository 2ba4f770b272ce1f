"""A weight's values by group: (channels, n) with the channel axis first, or one row for the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rows_of(values: Array, axis: int | None) -> Array:
    """The values as (length of ``axis``, n), the other axes in order; (1, n) where ``axis`` is None."""
    if axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def along_axis(per_row: Array, axis: int | None, rank: int) -> Array:
    """One number for each row of ``rows_of`` as an array that broadcasts against the values.

    (channels,) -> (1, .., channels, .., 1); (1,) -> () where ``axis`` is None.
    """
    if axis is None:
        return per_row.reshape(())
    return per_row.reshape([-1 if each == axis else 1 for each in range(rank)])
