"""Two factors of a matrix on grids of few bits: rounded by output error, and what error that leaves, foreseen.

    W (n, K)  ->  L (n, r) @ R (r, K)      R on a grid for each of its r rows, L on a finer one for each of its n rows

R is rounded first, column by column with the error made up for by the columns to come (``rounding.error_feedback``).
L is then solved anew for the inputs that R gives it, and rounded in the same way. Errors in L count for more: they meet
inputs that do not depend on each other, which leave nothing to make up for. So its codes are wider.

Foreseen is the sum of what the rank leaves and of what rounding adds: the noise of a grid of so many bits, times
tr D / K for R, with H = U D U^T (Chee et al. 2023, https://arxiv.org/abs/2307.13304), and for L, whose columns are
scaled for least error, times (sum of sqrt(l))^2 / (r sum of l), with l the power of each of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import GridEncoding, short_scales
from onnxcomp.numerics.quantizers.affine import fit_grid
from onnxcomp.numerics.rounding.gptq_blocks import compensated_in_parts
from onnxcomp.numerics.rounding.gram import JITTER, shrunk
from onnxcomp.numerics.rounding.gram import feedback as decomposed

Array = NDArray[Any]

WIDER = 2  # bits by which the codes of L are wider than those of R
MOST_BITS = 8
# Squared error of the best uniform grid of 2^bits levels on normally distributed values, over their power (Max 1960).
NOISE = {2: 0.1188, 3: 0.0374, 4: 0.0115, 5: 0.00349, 6: 0.00104, 7: 3.1e-4, 8: 8.9e-5}


@dataclass(frozen=True)
class CodedFactor:
    """A factor's values, all of which its grids make: ``encoding`` has one for each row."""

    values: Array
    encoding: GridEncoding


def outer_bits(bits: int) -> int:
    """Of the codes of L where those of R have so many."""
    return min(MOST_BITS, bits + WIDER)


def coded_bytes(rows: int, columns: int, rank: int, bits: int) -> int:
    """What the codes and scales of both factors of a matrix (rows, columns) take."""
    codes = rank * columns * bits + rows * rank * outer_bits(bits)
    return -(-codes // 8) + 2 * (rank + rows)


def coded_factors(matrix: Array, factors: tuple[Array, Array], moment: Array, bits: int) -> list[CodedFactor] | None:
    """L and R on grids, near in product to the matrix (n, K) where its inputs have the second moments H.

    factors: L (n, r) and R (r, K) to begin with. moment: (K, K) symmetric and positive definite, or (K,), its diagonal.
    None where a scale is beyond what the matrix's type holds.
    """
    kind = matrix.dtype
    wide, weights = np.asarray(matrix, np.float64), np.asarray(moment, np.float64)
    _, right = (np.asarray(each, np.float64) for each in factors)
    power = np.einsum("rk,rk->r", _weighed(right, weights), right)
    right = right / np.maximum(power, np.finfo(np.float64).tiny)[:, None] ** 0.25
    inner = _rounded(right.astype(kind), None if weights.ndim == 1 else weights, bits)
    if inner is None:
        return None
    seen = _weighed(np.asarray(inner.values, np.float64), weights)
    gram = seen @ np.asarray(inner.values, np.float64).T
    gram[np.diag_indices_from(gram)] += max(JITTER * float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny)
    left = np.linalg.solve(gram, seen @ wide.T).T
    outer = _rounded(left.astype(kind), gram, outer_bits(bits))
    return None if outer is None else [outer, inner]


def directions(matrix: Array, moment: Array) -> tuple[Array, Array]:
    """Of the outputs of a matrix (n, K), in the directions (n,) that hold most of them, largest first: their power, and
    the squared norm of the matrix's rows. moment: as for ``coded_factors``."""
    wide, weights = np.asarray(matrix, np.float64), np.asarray(moment, np.float64)
    power, basis = np.linalg.eigh(_weighed(wide, weights) @ wide.T)
    norms = np.square(basis.T @ wide).sum(axis=1)
    return np.maximum(power[::-1], 0.0), norms[::-1]


def rounding_error(powers: Array, norms: Array, rank: int, feedback: float, bits: int) -> float:
    """The relative squared output error that rounding adds to the best factors of a rank.

    powers, norms: ``directions``. feedback: ``mean_feedback`` of the inputs' moment.
    """
    total = float(powers.sum())
    if not total > 0:
        return 0.0
    own = np.maximum(powers[:rank], 0.0)
    spread = float(np.sqrt(own).sum()) ** 2 / max(rank, 1)
    inner = NOISE[bits] * float(norms[:rank].sum()) * feedback
    return (inner + NOISE[outer_bits(bits)] * spread) / total


def mean_feedback(moment: Array) -> float:
    """tr D / K of H = U D U^T: what an error in one column costs once all others make up for it, on the average."""
    weights = np.asarray(moment, np.float64)
    return float(weights.mean()) if weights.ndim == 1 else float(decomposed(weights[None])[1].mean())


def _weighed(rows: Array, weights: Array) -> Array:
    return rows * weights if weights.ndim == 1 else rows @ weights


def _rounded(matrix: Array, moment: Array | None, bits: int) -> CodedFactor | None:
    """On a grid for each row; moment: of its inputs, None where columns count alike and apart."""
    scale, zero_point = fit_grid(matrix, bits=bits, axis=0, search=True)
    levels, zero = 2**bits, 2 ** (bits - 1)
    encoding = GridEncoding(
        dtype=str(matrix.dtype), levels=levels, scale=short_scales(scale), zero_point=zero_point, axis=0
    )
    near = matrix
    if moment is not None:
        assert encoding.scale is not None
        size = encoding.scale.reshape(1, -1, 1).astype(np.float32)

        def on_grid(target: Array, columns: Array) -> Array:
            codes: Array = np.clip(np.rint(target / size), -zero, levels - 1 - zero) * size
            return codes

        form = shrunk(moment[None], JITTER, dtype=np.float32)
        near = compensated_in_parts(matrix[None].astype(np.float32), form, on_grid)[0].astype(matrix.dtype)
    values = encoding.decode(encoding.nearest(near), matrix.shape)
    return None if encoding.encode(values) is None else CodedFactor(values, encoding)
