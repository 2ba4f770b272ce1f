"""Low-rank factors against the whole singular value decomposition in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics.structure import lowrank
from onnxcomp.numerics.structure.lowrank import rank_for, singular_values, truncated_svd


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_product_is_the_best_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    left, right = truncated_svd(matrix, rank)
    kept = min(rank, *shape)
    assert left.shape == (shape[0], kept)
    assert right.shape == (kept, shape[1])
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    error = np.linalg.norm(matrix - left.astype(np.float64) @ right) ** 2
    assert error == pytest.approx(float(np.square(values[kept:]).sum()), rel=1e-4, abs=1e-10)


def test_factors_share_the_singular_values() -> None:
    left, right = truncated_svd(np.diag([16.0, 4.0]), 2)
    assert np.linalg.norm(left, axis=0) == pytest.approx([4, 2])
    assert np.linalg.norm(right, axis=1) == pytest.approx([4, 2])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_factors_have_the_type_of_the_matrix(dtype: Any) -> None:
    left, right = truncated_svd(np.eye(3).astype(dtype), 2)
    assert left.dtype == right.dtype == dtype


def test_randomized_comes_within_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "LARGE", 100)
    rng = np.random.default_rng(0)
    strong = rng.standard_normal((400, 20)) @ rng.standard_normal((20, 500))
    matrix = rng.standard_normal((400, 500)) + 2 * strong
    values = np.linalg.svd(matrix, compute_uv=False)
    left, right = truncated_svd(matrix, 40)
    best = np.square(values[40:]).sum()
    assert best * (1 - 1e-9) <= np.linalg.norm(matrix - left @ right) ** 2 <= 1.001 * best
    assert np.array_equal(left, truncated_svd(matrix, 40)[0])


@pytest.mark.parametrize(("energy", "rank"), [(0.0, 1), (0.5, 1), (0.64, 1), (0.65, 2), (1.0, 2)])
def test_rank_for_energy(energy: float, rank: int) -> None:
    assert rank_for(np.array([0.8, 0.6]), energy=energy) == rank


def test_rank_for_zeros_is_one() -> None:
    assert rank_for(np.zeros(3), energy=0.9) == 1


def test_singular_values_of_a_diagonal() -> None:
    assert singular_values(np.diag([1, 3]).astype(np.float16)).tolist() == [3, 1]


def test_refuses_rank_zero() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        truncated_svd(np.eye(2), 0)
