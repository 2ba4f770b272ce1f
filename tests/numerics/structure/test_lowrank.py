"""Low-rank factors against the whole singular value decomposition in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics.structure import lowrank
from onnxcomp.numerics.structure.lowrank import Spectrum, TwoSidedSpectrum, rank_for, singular_values, truncated_svd


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


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
@pytest.mark.parametrize("groups", [1, 2])
def test_weighed_factors_are_the_best_of_their_rank(shape: tuple[int, int], groups: int) -> None:
    """Against whitening by a Cholesky factor, a whole decomposition, and its inverse."""
    random = np.random.default_rng(0)
    matrices = random.standard_normal((groups, *shape))
    rows = random.standard_normal((groups, 40, shape[1])) * np.linspace(0.1, 2, shape[1])
    moments = np.matmul(rows.swapaxes(1, 2), rows) / 40
    spectrum = Spectrum(matrices, moments, min(shape))
    for rank in (1, 3, min(shape)):
        left, right = spectrum.factors(matrices, rank)
        assert left.shape == (groups, shape[0], rank)
        lost = total = 0.0
        for each, own, other, moment in zip(matrices, left, right, moments, strict=True):
            root = np.linalg.cholesky(moment)
            u, s, v = np.linalg.svd(each @ root, full_matrices=False)
            best = (u[:, :rank] * s[:rank]) @ v[:rank] @ np.linalg.inv(root)
            np.testing.assert_allclose(own @ other, best, atol=1e-8)
            np.testing.assert_allclose(np.linalg.norm(own, axis=0), np.linalg.norm(other, axis=1))
            lost += float(np.square(s[rank:]).sum())
            total += float(np.square(s).sum())
        assert spectrum.error(rank) == pytest.approx(lost / total, abs=1e-12)
    assert spectrum.rank_for(1.0) == min(shape)


def test_a_diagonal_weighs_as_its_matrix() -> None:
    matrices = np.random.default_rng(0).standard_normal((1, 4, 12))
    shares = np.linspace(0, 1, 12)
    one, other = Spectrum(matrices, shares[None], 3), Spectrum(matrices, np.diag(shares)[None] + 0.0, 3)
    np.testing.assert_allclose(np.matmul(*one.factors(matrices, 2)), np.matmul(*other.factors(matrices, 2)), atol=1e-9)


def test_zeros_have_factors() -> None:
    spectrum = Spectrum(np.zeros((1, 4, 6)), np.eye(6)[None], 2)
    assert spectrum.error(1) == 0.0
    assert not np.matmul(*spectrum.factors(np.zeros((1, 4, 6)), 2)).any()


def test_outputs_that_count_more_are_nearer() -> None:
    random = np.random.default_rng(5)
    matrix = random.standard_normal((1, 20, 30)).astype(np.float32)
    weights, outputs = np.eye(30)[None], np.diag(np.where(np.arange(20) < 5, 100.0, 1.0))
    alike, told = Spectrum(matrix, weights, 20), TwoSidedSpectrum(matrix, weights, outputs, 20)

    def lost(spectrum: Spectrum | TwoSidedSpectrum) -> np.ndarray:
        left, right = spectrum.factors(matrix, 6)
        return np.square(matrix[0] - left[0] @ right[0]).sum(axis=1)

    assert lost(told)[:5].sum() < 0.3 * lost(alike)[:5].sum()
    assert lost(told).sum() > lost(alike).sum()  # which is the least there is
    left, right = told.factors(matrix, 20)
    np.testing.assert_allclose(left[0] @ right[0], matrix[0], atol=1e-5)


def test_the_error_that_is_told_is_the_weighed_one_of_the_factors() -> None:
    random = np.random.default_rng(6)
    matrix = random.standard_normal((1, 8, 12)).astype(np.float64)
    root = random.standard_normal((12, 12))
    inputs, outputs = root @ root.T + np.eye(12), np.diag(random.uniform(0.5, 3.0, 8))
    counted = outputs + np.trace(outputs) / 8 * np.eye(8)  # the mean is added once
    found = TwoSidedSpectrum(matrix, inputs[None], outputs, 8)
    left, right = found.factors(matrix, 3)
    rest = matrix[0] - left[0] @ right[0]
    ratio = np.trace(counted @ rest @ inputs @ rest.T) / np.trace(counted @ matrix[0] @ inputs @ matrix[0].T)
    assert found.error(3) == pytest.approx(ratio, rel=1e-8)
