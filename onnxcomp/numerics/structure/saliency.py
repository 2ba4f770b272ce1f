"""How much a value matters to its node's outputs: what pruning ranks values by, the least first.

    magnitude      |w|                        Han et al. 2015, https://arxiv.org/abs/1506.02626
    input-norm     |w| sqrt(H_kk)             Wanda, Sun et al. 2023, https://arxiv.org/abs/2306.11695
    second-order   |w| / sqrt([H^-1]_kk)      Optimal Brain Surgeon, Hassibi & Stork 1992; H^-1 of each row

H = E[x x^T] is the second moment of the inputs. The squares of the last two are what the outputs lose, summed over a
row: when the value alone is dropped, and when all others of its row make up for it. Where gradients tell what each
output's errors count (importance = fisher, ``PrunedMatrices``), rows are multiplied by that first.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.gram import removal_cost

Array = NDArray[Any]


class Saliency(Protocol):
    """Anything that ranks the values of matrices, from whatever is known of them: moments here, gradients as well."""

    def __call__(self, matrices: Array, moment: Array, /) -> Array:
        """The saliencies (g, r, k), none negative, of matrices (g, r, k) whose inputs have this moment (g or 1, k, k),
        positive definite."""


def magnitude(matrices: Array, moment: Array) -> Array:
    """The size of the value itself, whatever its inputs are."""
    return np.abs(np.asarray(matrices, np.float64))


def input_norm(matrices: Array, moment: Array) -> Array:
    """The root mean square of what the value adds to its output."""
    power = np.diagonal(moment, axis1=1, axis2=2)[:, None, :]
    weighed: Array = np.abs(np.asarray(matrices, np.float64)) * np.sqrt(power)
    return weighed


def second_order(matrices: Array, moment: Array) -> Array:
    """The root mean square of what its output misses without it when all other values of the row make up for it."""
    lost: Array = np.sqrt(removal_cost(matrices, moment))
    return lost


SALIENCIES: dict[str, Saliency] = {
    "magnitude": magnitude,
    "input-norm": input_norm,
    "second-order": second_order,
}
