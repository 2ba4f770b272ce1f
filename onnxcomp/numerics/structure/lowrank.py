"""Low-rank factors: W (m, n) -> left (m, r) @ right (r, n), the best of rank r in the sense of least squares.

Eckart and Young: cut the singular value decomposition after the r largest values. Both factors get the root
of the singular values, so that neither is harder to quantize than the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import compute_dtype

Array = NDArray[Any]

LARGE = 1536
OVERSAMPLE = 32
POWER_ITERATIONS = 6


def truncated_svd(matrix: Array, rank: int, *, seed: int = 0) -> tuple[Array, Array]:
    """left (m, r) and right (r, n) whose product is nearest to the matrix (m, n), r = min(rank, m, n).

    In the matrix's type, computed in float64 for float64, else in float32. Where both sides are above
    1,536 and the rank is below a quarter of the smaller, by subspace iteration from a seeded start (Halko,
    Martinsson, Tropp 2011), whose error is within a thousandth of the optimum on weights.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    plain = np.asarray(matrix).astype(compute_dtype(matrix.dtype))
    smaller = min(plain.shape)
    rank = min(rank, smaller)
    if smaller > LARGE and rank + OVERSAMPLE < smaller // 4:
        left, values, right = _randomized(plain, rank, seed)
    else:
        left, values, right = _decomposed(plain)
    root = np.sqrt(values[:rank])
    return (left[:, :rank] * root).astype(matrix.dtype), (root[:, None] * right[:rank]).astype(matrix.dtype)


def singular_values(matrix: Array) -> Array:
    """The singular values (min(m, n),), largest first, of a matrix of any float type."""
    values: Array = np.linalg.svd(np.asarray(matrix).astype(compute_dtype(matrix.dtype)), compute_uv=False)
    return values


def rank_for(values: Array, *, energy: float) -> int:
    """The least rank, at least 1, whose share of the squared singular values is at least ``energy``."""
    power = np.cumsum(np.square(values.astype(np.float64)))
    if power.size == 0 or power[-1] == 0:
        return 1
    # The last few bits of the sum must not ask for one rank more than there are.
    return min(int(np.searchsorted(power, energy * power[-1] * (1 - 1e-12))) + 1, power.size)


def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    import scipy.linalg

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
