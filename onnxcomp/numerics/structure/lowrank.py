"""Low-rank factors: W (m, n) -> left (m, r) @ right (r, n), the best of rank r in the sense of least squares.

Eckart and Young: cut the singular value decomposition after the r largest values. Both factors get the root
of the singular values, so that neither is harder to quantize than the other.

    of least |W - L R|^2        L = U sqrt(S), R = sqrt(S) V^T          W = U S V^T
    of least |(W - L R) C|^2    L = U, R = U^T W                        W C = U S V^T, U of the r largest S

The second is that of least error at the outputs, with C C^T = H the second moments of the inputs (Wang et al. 2024,
SVD-LLM, https://arxiv.org/abs/2403.07378). U are the first eigenvectors of W H W^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxcomp.numerics.encodings.encoding import compute_dtype

Array = NDArray[Any]

LARGE = 1536
OVERSAMPLE = 32
POWER_ITERATIONS = 6
OUTPUT_SHRINKAGE = 1.0  # held-out divergence of LeNet-300 at an eighth: 1.41 at 0.1, 1.33 at 1, 1.37 at 3; 1.79 without


@dataclass(frozen=True)
class Svd:
    """A singular value decomposition, of which the vectors may be there for the largest values only: left (m, r),
    values (min(m, n),), right (r, n)."""

    left: Array
    values: Array
    right: Array

    @property
    def rank(self) -> int:
        """How many vectors there are."""
        return len(self.right)

    def error(self, rank: int) -> float:
        """The squared error of the best matrix of that rank, over the squared norm."""
        power = np.square(self.values.astype(np.float64))
        return float(power[rank:].sum() / power.sum()) if power.any() else 0.0


def svd(matrix: Array, rank: int) -> Svd:
    """The decomposition of a matrix (m, n) of any float type with the first ``rank`` vectors."""
    left, values, right = _decomposed(_computed(matrix))
    return Svd(left[:, :rank].copy(), values, right[:rank].copy())


def truncated_svd(matrix: Array, rank: int, *, seed: int = 0, known: Svd | None = None) -> tuple[Array, Array]:
    """left (m, r) and right (r, n) whose product is nearest to the matrix (m, n), r = min(rank, m, n).

    In the matrix's type, computed in float64 for float64, else in float32. Where both sides are above
    1,536 and the rank is below a quarter of the smaller, by subspace iteration from a seeded start (Halko,
    Martinsson, Tropp 2011), whose error is within a thousandth of the optimum on weights; known: the decomposition
    to take where that is not so, as far as its vectors reach. It changes no bit.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    smaller = min(matrix.shape)
    rank = min(rank, smaller)
    if smaller > LARGE and rank + OVERSAMPLE < smaller // 4:
        left, values, right = _randomized(_computed(matrix), rank, seed)
    elif known is not None and known.rank >= rank:
        left, values, right = known.left, known.values, known.right
    else:
        left, values, right = _decomposed(_computed(matrix))
    root = np.sqrt(values[:rank])
    return (left[:, :rank] * root).astype(matrix.dtype), (root[:, None] * right[:rank]).astype(matrix.dtype)


def singular_values(matrix: Array) -> Array:
    """The singular values (min(m, n),), largest first, of a matrix of any float type."""
    values: Array = np.linalg.svd(_computed(matrix), compute_uv=False)
    return values


def rank_for(values: Array, *, energy: float) -> int:
    """The least rank, at least 1, whose share of the squared singular values is at least ``energy``."""
    power = np.cumsum(np.square(values.astype(np.float64)))
    if power.size == 0 or power[-1] == 0:
        return 1
    # The last few bits of the sum must not ask for one rank more than there are.
    return min(int(np.searchsorted(power, energy * power[-1] * (1 - 1e-12))) + 1, power.size)


def _computed(matrix: Array) -> Array:
    """The matrix in the type to compute in."""
    return np.asarray(matrix).astype(compute_dtype(matrix.dtype))


def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    import scipy.linalg

    with threadpool_limits(1):  # scipy's BLAS is its own, which no limit from before the import reaches
        try:
            return scipy.linalg.svd(matrix, full_matrices=False)  # type: ignore[no-any-return]
        except np.linalg.LinAlgError:
            # Divide and conquer does not converge on some ill-conditioned matrices; QR iteration does.
            return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")  # type: ignore[no-any-return]


def _randomized(matrix: Array, rank: int, seed: int) -> tuple[Array, Array, Array]:
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], rank + OVERSAMPLE), matrix.dtype)
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, right = _decomposed(basis.T @ matrix)
    return basis @ left, values, right


class PlainSpectrum:
    """The decompositions of stacked matrices (g, m, n), all cut at the same rank; most: the largest rank wanted."""

    def __init__(self, matrices: Array, most: int) -> None:
        self.parts = [svd(each, most) for each in matrices]
        power = np.sum([np.square(each.values.astype(np.float64)) for each in self.parts], axis=0)
        self._whole = Svd(self.parts[0].left, np.sqrt(power), self.parts[0].right)

    def error(self, rank: int) -> float:
        """The squared error of the best matrices of that rank over the squared norm."""
        return self._whole.error(rank)

    def rank_for(self, energy: float) -> int:
        """The least rank, at least 1, that leaves no more than 1 - energy of the squared norm."""
        return rank_for(self._whole.values, energy=energy)


class Spectrum:
    """The decomposition of stacked matrices (g, m, n), all cut at the same rank, by errors that are weighed.

    weights: (g or 1, n, n) symmetric and positive definite, or (g or 1, n) its diagonal. most: the largest rank wanted.
    """

    def __init__(self, matrices: Array, weights: Array, most: int) -> None:
        parts = [_weighted(each, weights[at % len(weights)]) for at, each in enumerate(matrices)]
        self._power = np.sum([power for power, _ in parts], axis=0)
        self._total = float(self._power.sum())
        self._basis = np.stack([basis[:, :most].astype(compute_dtype(matrices.dtype)) for _, basis in parts])

    def error(self, rank: int) -> float:
        """The squared error, weighed, of the best matrices of that rank over the squared norm."""
        return float(self._power[rank:].sum() / self._total) if self._total > 0 else 0.0

    def rank_for(self, energy: float) -> int:
        """The least rank, at least 1, that leaves no more than 1 - energy of the squared norm."""
        return rank_for(np.sqrt(self._power), energy=energy)

    def factors(self, matrices: Array, rank: int) -> tuple[Array, Array]:
        """left (g, m, r), right (g, r, n) of the matrices' type; both of a size, for each of the r."""
        left = np.asarray(self._basis[:, :, :rank], np.float64)
        right = np.matmul(left.swapaxes(1, 2), np.asarray(matrices, np.float64))
        size = np.sqrt(np.linalg.norm(right, axis=2))  # the columns of left have norm 1
        size[size == 0] = 1.0
        return (left * size[:, None, :]).astype(matrices.dtype), (right / size[:, :, None]).astype(matrices.dtype)


def _weighted(matrix: Array, weights: Array) -> tuple[Array, Array]:
    """Squared singular values (k,), largest first, of W C, and its left singular vectors (m, k), k = min(m, n)."""
    wide = np.asarray(matrix, np.float64)
    rows, columns = wide.shape
    if rows <= columns:
        seen = wide * weights if weights.ndim == 1 else wide @ weights
        power, basis = np.linalg.eigh(seen @ wide.T)
        return np.maximum(power[::-1], 0.0), basis[:, ::-1]
    root = np.diag(np.sqrt(weights)) if weights.ndim == 1 else np.linalg.cholesky(weights)
    left, values, _ = _decomposed(wide @ root)
    return np.square(values), left


class TwoSidedSpectrum:
    """The decomposition of one matrix (n, K) by errors that are weighed at its inputs and at its outputs.

    least tr(M (W - LR) H (W - LR)^T) = |S (W - LR) C|^2,  S S = M,  C C^T = H

    weights: (1, K, K) or (1, K), as for ``Spectrum``. outputs: M (n, n) symmetric, of which ``OUTPUT_SHRINKAGE`` times
    its mean is added: outputs that few samples tell of count too.
    """

    def __init__(self, matrices: Array, weights: Array, outputs: Array, most: int) -> None:
        power, basis = np.linalg.eigh(np.asarray(outputs, np.float64))
        mean = float(np.trace(outputs)) / len(outputs)
        root = np.sqrt(np.maximum(power, 0.0) + (OUTPUT_SHRINKAGE * mean if mean > 0 else 1.0))
        self._turned, self._back = (basis * root) @ basis.T, (basis / root) @ basis.T
        self._inner = Spectrum(self._of(matrices), weights, most)

    def _of(self, matrices: Array) -> Array:
        turned: Array = np.matmul(self._turned, np.asarray(matrices, np.float64))
        return turned

    def error(self, rank: int) -> float:
        """The squared error, weighed, of the best matrix of that rank over the squared norm."""
        return self._inner.error(rank)

    def rank_for(self, energy: float) -> int:
        """The least rank, at least 1, that leaves no more than 1 - energy of the squared norm."""
        return self._inner.rank_for(energy)

    def factors(self, matrices: Array, rank: int) -> tuple[Array, Array]:
        """left (1, n, r), right (1, r, K) of the matrices' type; both of a size, for each of the r."""
        left, right = self._inner.factors(self._of(matrices), rank)
        left = np.matmul(self._back, left)
        size = np.sqrt(np.linalg.norm(right, axis=2) / np.maximum(np.linalg.norm(left, axis=1), 1e-300))
        size[size == 0] = 1.0
        return (left * size[:, None, :]).astype(matrices.dtype), (right / size[:, :, None]).astype(matrices.dtype)
