"""Columns rounded one after another, wide matrices part by part.

Factoring H takes K^3 operations and K^2 numbers, whatever the rows are. Beyond some thousand columns H is therefore
taken for block diagonal: the errors of a part are made up for inside it, and what parts have in common is not used.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.error_feedback import Round, compensated

Array = NDArray[Any]

MOST_COLUMNS = 4096  # of a part: factored in about a second, in 128 MB
FEWEST_COLUMNS = 1024  # of a part, however few the rows are
COLUMNS_PER_ROW = 64  # more would take most of the time to factor H


def compensated_in_parts(matrices: Array, moment: Array, rounded: Round) -> Array:
    """Q (groups, rows, K) float32 near ``matrices`` in the sense of H, as ``compensate.compensated`` has it.

    moment: H, (groups or 1, K, K). rounded: as there; positions are those among all K columns.
    """
    length = matrices.shape[2]
    parts = -(-length // part_width(matrices.shape[1]))
    if parts <= 1:
        return compensated(matrices, moment, rounded)
    result = np.empty(matrices.shape, np.float32)
    edges = np.linspace(0, length, parts + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        part = slice(start, stop)
        shifted = functools.partial(_shifted, rounded, start)
        result[:, :, part] = compensated(matrices[:, :, part], moment[:, part, part], shifted)
    return result


def part_width(rows: int) -> int:
    """How many columns of matrices with so many rows are rounded with one factored H."""
    return min(MOST_COLUMNS, max(FEWEST_COLUMNS, COLUMNS_PER_ROW * rows))


def _shifted(rounded: Round, start: int, target: Array, columns: Array) -> Array:
    return rounded(target, columns + start)
