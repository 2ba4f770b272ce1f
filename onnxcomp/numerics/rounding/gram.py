"""The quadratic form by which an error in a weight counts at the node's output: dW H dW^T, row by row.

H is the second moment of the inputs, G = E[x x^T], shrunk towards the identity,

    H = (1 - a) G + a * mean(diag G) * I

so that an input which never fired in calibration is not thrown away (Ledoit & Wolf 2004,
https://doi.org/10.1016/S0047-259X(03)00096-4, choose the identity as the target too).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

SHRINKAGE = 0.02
CAUTIOUS_SHRINKAGE = 0.05  # better on samples that were not seen where these are few, worse on those that were
LEAST_SHRINKAGE = 0.03  # however many inputs were seen
LEAST_SPREAD = 1e-4  # of the inputs' power: constant inputs have no other spread
JITTER = 1e-6
LEAST_WORTH = 1e-6  # of the mean: an output that no sample showed to count counts a little


def shrunk(gram: Array, amount: float = SHRINKAGE, *, dtype: DTypeLike = np.float64) -> Array:
    """H (groups, K, K) for G of the same shape; the identity where all inputs were zero."""
    power = np.trace(gram, axis1=1, axis2=2, dtype=np.float64) / gram.shape[1]
    mixed = np.array(gram, dtype)  # in place from here on: K may be some thousands
    mixed *= 1 - amount
    diagonal = np.einsum("gkk->gk", mixed)
    diagonal += np.where(power > 0, amount * power, 1.0)[:, None]
    return mixed


def shrunk_by_count(gram: Array, mean: Array, count: float) -> Array:
    """H (groups, K, K) for G (groups, K, K), the inputs' mean (groups, K) and how many independent ones there were.

    H = (1 - a) S + a * mean(diag S) * I + mean mean^T,   S = G - mean mean^T, with a of the oracle approximating
    shrinkage (Chen et al. 2010, https://arxiv.org/abs/0907.4698): with fewer inputs than columns, what they have in
    common by chance is not taken for a law. At least ``LEAST_SHRINKAGE``; the identity where all inputs were zero.
    """
    outer = np.asarray(mean, np.float64)[:, :, None] * np.asarray(mean, np.float64)[:, None, :]
    spread = np.asarray(gram, np.float64) - outer
    length = spread.shape[1]
    total, squares = np.maximum(np.trace(spread, axis1=1, axis2=2), 0), np.einsum("gkl,gkl->g", spread, spread)
    above = (1 - 2 / length) * squares + total**2
    below = (count + 1 - 2 / length) * (squares - total**2 / length)
    amount = np.clip(np.divide(above, below, out=np.ones_like(above), where=below > 0), LEAST_SHRINKAGE, 1.0)
    power = np.trace(gram, axis1=1, axis2=2, dtype=np.float64) / length
    floor = np.where(power > 0, np.maximum(amount * total / length, LEAST_SPREAD * power), 1.0)
    moment: Array = (1 - amount)[:, None, None] * spread + outer
    np.einsum("gkk->gk", moment)[...] += floor[:, None]
    return moment


def feedback(moment: Array) -> tuple[Array, Array]:
    """U (groups, K, K) unit upper triangular and d (groups, K) with H = U diag(d) U^T.

    With errors e_j = w_j - q_j of the columns before k, w_k + sum_j e_j U_jk is what column k should become, and
    what is then left costs d_k times its square (Chee et al., QuIP, https://arxiv.org/abs/2307.13304: the same
    steps as GPTQ, https://arxiv.org/abs/2210.17323, without the inverse of H).
    """
    turned = moment[:, ::-1, ::-1]
    scale = np.trace(turned, axis1=1, axis2=2)[:, None, None] / turned.shape[1]
    lower = np.linalg.cholesky(turned + JITTER * scale * np.eye(turned.shape[1]))
    upper = lower[:, ::-1, ::-1]
    root = np.diagonal(upper, axis1=1, axis2=2)
    return upper / root[:, None, :], np.square(root)


def best_weights(matrices: Array, gram: Array, cross: Array, amount: float = CAUTIOUS_SHRINKAGE) -> Array:
    """V (g, r, k) of least E|W x - V x'|^2 for W (g, r, k), gram = E[x' x'^T] and cross = E[x x'^T] (g or 1, k, k).

    Both moments are shrunk towards the same multiple of the identity, so that V is W where the inputs are the same.
    """
    moment = shrunk(gram, amount)
    spread = (np.trace(np.asarray(gram, np.float64), axis1=1, axis2=2) / gram.shape[1])[:, None, None]
    mixed = (1 - amount) * np.asarray(cross, np.float64) + amount * spread * np.eye(gram.shape[1])
    mixed = np.where(spread > 0, mixed, np.eye(gram.shape[1]))
    product = np.matmul(np.asarray(matrices, np.float64), mixed)
    solved: Array = np.linalg.solve(moment, product.swapaxes(1, 2)).swapaxes(1, 2)
    return solved


def removal_cost(matrices: Array, moment: Array) -> Array:
    """What setting each value to zero adds to the output error when all others of its row make up for it, (g, r, k).

    w^2 / [H^-1]_kk: LeCun et al. 1989 and Hassibi & Stork 1992 (Optimal Brain Surgeon).
    """
    inverse = np.linalg.inv(moment)
    spare = np.diagonal(inverse, axis1=1, axis2=2)[:, None, :]
    cost: Array = np.square(np.asarray(matrices, np.float64)) / spare
    return cost


def output_worth(squares: Array, moment: Array) -> Array:
    """(g, r) E d^2 of each output, d the gradient with respect to it, from E (d x)^2 of each weight (g, r, k) and the
    second moment (g or 1, k, k) of the inputs: as if d and x did not depend on each other (Martens & Grosse 2015,
    K-FAC, https://arxiv.org/abs/1503.05671). None is less than a millionth of their mean; all are 1 where nothing
    tells them."""
    power = np.einsum("gkk->g", np.asarray(moment, np.float64))[:, None]
    worth = np.sum(squares, axis=2, dtype=np.float64) / np.maximum(power, np.finfo(np.float64).tiny)
    mean = float(worth.mean()) if worth.size else 0.0
    if not (mean > 0 and np.isfinite(mean)):
        return np.ones_like(worth)
    raised: Array = np.maximum(worth, LEAST_WORTH * mean)
    return raised


def output_error(difference: Array, moment: Array) -> float:
    """sum of dW H dW^T over the rows of all groups, for dW (groups, rows, K); H may have one group for all."""
    product = np.matmul(difference, moment.astype(difference.dtype, copy=False))
    return float(np.sum(product * difference, dtype=np.float64))


class OutputError:
    """How far the node's outputs are from those of a reference (groups, rows, K), relative to their power.

    Each row counts by its own power, so that outputs that are small but as much read as others weigh alike.
    """

    def __init__(self, reference: Array, moment: Array) -> None:
        self._largest, power = np.abs(reference).max(initial=0.0), np.abs(moment).max(initial=0.0)
        self._total = 0.0
        if self._largest > 0 and power > 0:
            self._wanted = np.asarray(reference, np.float64) / self._largest
            self._form = (moment / power).astype(np.float32)  # of about one, so that float32 holds all products
            self._total = output_error(self._wanted.astype(np.float32), self._form)

    def relative(self, matrices: Array) -> float:
        """The squared error of the outputs of other matrices; 0 where the reference gives no output."""
        if not self._total > 0:
            return 0.0
        difference = np.asarray(matrices, np.float64) / self._largest - self._wanted
        return output_error(difference.astype(np.float32), self._form) / self._total


def relative_output_error(reference: Array, matrices: Array, moment: Array) -> float:
    """The squared error of the node's output relative to its power; 0 where the reference gives no output.

    reference, matrices: (groups, rows, K). See ``OutputError``.
    """
    return OutputError(reference, moment).relative(matrices)
