"""Round the columns of a matrix one after another, and let those to come make up for the error.

    for k = 1 .. K:   target_k = w_k + sum over j < k of (w_j - q_j) U_jk,    q_k = round(target_k)

U comes from H = U diag(d) U^T, H the second moment of the inputs, so that the output error
tr((W - Q) H (W - Q)^T) stays near its least: Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323, in the
form of Chee et al., QuIP, https://arxiv.org/abs/2307.13304. Columns of large second moment come first.

Columns that are rounded together have targets that none of them has been rounded for. With c their sums above over the
columns before them and T their own part of U:    target = w + c T^-1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.gram import feedback

Array = NDArray[Any]

TOGETHER = 2**18  # numbers of the moments that are factored together
BLOCK = 64  # columns between two products with the errors of all columns before
Round = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Turns:
    """The order (groups, K) in which columns are rounded, ``width`` together, and U (groups, K, K) float32 of H in that
    order: what takes longest, and is the same for all matrices of these inputs."""

    order: Array
    upper: Array
    width: int

    @classmethod
    def of(cls, moment: Array, groups: int, *, width: int = 1, in_order: bool = False) -> Turns:
        """moment: H, (groups, K, K) or (1, K, K). width: it must divide K, else ValueError. in_order: take the columns
        as they come, not those first that matter most."""
        length = moment.shape[2]
        if length % width:
            raise ValueError(f"width must divide the columns: {width}, {length}")
        moment = np.broadcast_to(moment, (groups, length, length)) if len(moment) == 1 else moment
        order = _order(moment, width, in_order)
        return cls(order, _feedback(moment, order), width)


def compensated(matrices: Array, moment: Array, rounded: Round, *, width: int = 1, in_order: bool = False) -> Array:
    """``compensated_in`` for one matrix of these inputs; see ``Turns.of``."""
    return compensated_in(Turns.of(moment, len(matrices), width=width, in_order=in_order), matrices, rounded)


def compensated_in(turns: Turns, matrices: Array, rounded: Round) -> Array:
    """Q (groups, rows, K) float32 near ``matrices`` in the sense of H, all of whose columns ``rounded`` made.

    matrices: (groups, rows, K). rounded: called with targets (groups, rows, width) and the positions (groups, width) of
    these columns; gives what they become.
    """
    order, upper, width, length = turns.order, turns.upper, turns.width, matrices.shape[2]
    taken = np.take_along_axis(np.asarray(matrices, np.float32), order[:, None, :], axis=2)
    result = np.empty_like(taken)
    error = np.zeros_like(taken)
    step = max(width, BLOCK // width * width)
    for start in range(0, length, step):
        stop = min(start + step, length)
        before = np.matmul(error[:, :, :start], upper[:, :start, start:stop])
        for at in range(start, stop, width):
            part = slice(at, at + width)
            owed = before[:, :, at - start : at - start + width]
            owed = owed + np.matmul(error[:, :, start:at], upper[:, start:at, part])
            if width > 1:
                owed = np.matmul(owed, np.linalg.inv(upper[:, part, part]))
            result[:, :, part] = rounded(taken[:, :, part] + owed, order[:, part])
            error[:, :, part] = taken[:, :, part] - result[:, :, part]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(result, back[:, None, :], axis=2)


def _order(moment: Array, width: int, in_order: bool) -> Array:
    """The columns (groups, K), runs of ``width`` kept together, those of the largest second moment first."""
    groups, length = moment.shape[:2]
    if in_order:
        return np.broadcast_to(np.arange(length), (groups, length))
    power = np.diagonal(moment, axis1=1, axis2=2).reshape(groups, length // width, width).sum(axis=2)
    runs = np.argsort(-power, axis=1, kind="stable")
    return (runs[:, :, None] * width + np.arange(width)).reshape(groups, length)


def _feedback(moment: Array, order: Array) -> Array:
    """U of the reordered H, float32; some groups at a time where they are large."""
    groups, length = order.shape
    upper = np.empty(moment.shape, np.float32)
    step = max(1, TOGETHER // length**2)
    for start in range(0, groups, step):
        part = slice(start, start + step)
        columns = order[part]
        taken = np.take_along_axis(moment[part], columns[:, :, None], axis=1)
        upper[part] = feedback(np.take_along_axis(taken, columns[:, None, :], axis=2))[0]
    return upper
