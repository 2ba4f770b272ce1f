"""The sparse matrix nearest in what it does, held against all masks there are and against Optimal Brain Surgeon."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.structure import sparse_fit
from onnxcomp.numerics.structure.masked_least_squares import best_under_mask
from onnxcomp.numerics.structure.patterns import OfEach, Pattern, ShareOfAll, ShareOfRows
from onnxcomp.numerics.structure.saliency import input_norm, magnitude, second_order
from onnxcomp.numerics.structure.sparse_fit import SparseFit


def moment_of(columns: int, seed: int, *, groups: int = 1, samples: int = 200) -> np.ndarray:
    """Of inputs a third of whose power they have in common."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, samples, columns)) + rng.standard_normal((groups, samples, 1))
    x *= rng.uniform(0.3, 2.0, columns)
    return x.swapaxes(1, 2) @ x / samples


def error(matrices: np.ndarray, found: np.ndarray, moment: np.ndarray) -> float:
    difference = found - matrices
    return float(np.einsum("grk,gkl,grl->", difference, np.broadcast_to(moment, (len(matrices), *moment.shape[1:])),
                           difference))  # fmt: skip


def best_by_enumeration(row: np.ndarray, moment: np.ndarray, count: int) -> float:
    """The least error of any mask with ``count`` values, each with its least squares in float64."""
    least = np.inf
    for chosen in itertools.combinations(range(row.size), count):
        own = list(chosen)
        values = np.zeros(row.size)
        values[own] = np.linalg.solve(moment[np.ix_(own, own)], moment[own] @ row)
        least = min(least, float((values - row) @ moment @ (values - row)))
    return least


def pruned_one_by_one(row: np.ndarray, moment: np.ndarray, count: int) -> float:
    """Optimal Brain Surgeon: the value of least w^2 / [H^-1]_kk goes, the others of the row make up for it, again."""
    own, values = list(range(row.size)), row.astype(np.float64).copy()
    while len(own) > count:
        inverse = np.linalg.inv(moment[np.ix_(own, own)])
        at = int(np.argmin(values[own] ** 2 / np.diag(inverse)))
        values[own] -= values[own[at]] / inverse[at, at] * inverse[at]
        values[own[at]] = 0.0
        del own[at]
    return float((values - row) @ moment @ (values - row))


@pytest.mark.parametrize("count", [3, 5, 7])
def test_is_near_the_best_of_all_masks_and_near_one_by_one(count: int) -> None:
    """Over 30 rows of 10: within a fifth of the best that enumeration finds, a twentieth of what OBS leaves."""
    found = best = single = 0.0
    for seed in range(30):
        moment, row = moment_of(10, seed), np.random.default_rng(100 + seed).standard_normal(10)
        values, kept = SparseFit(row[None, None], moment).fitted(ShareOfRows(1 - count / 10))
        assert kept.sum() == count
        found += error(row[None, None], values, moment)
        best += best_by_enumeration(row, moment[0], count)
        single += pruned_one_by_one(row, moment[0], count)
    assert best <= found * (1 + 1e-9)
    assert found < 1.2 * best
    assert found < 1.05 * single


@pytest.mark.parametrize("pattern", [ShareOfAll(0.7), ShareOfRows(0.7), OfEach(2, 4), OfEach(1, 4)])
def test_loses_less_than_masks_found_at_once(pattern: Pattern) -> None:
    moment, matrices = moment_of(40, 0), np.random.default_rng(1).standard_normal((1, 30, 40))
    search = SparseFit(matrices, moment)
    values, kept = search.fitted(pattern)
    assert np.array_equal(kept, values != 0)
    assert np.array_equal(pattern.kept(kept.astype(float)), kept)  # it is of the pattern
    for saliency in (magnitude, input_norm, second_order):
        at_once = best_under_mask(matrices, moment, pattern.kept(saliency(matrices, moment)))
        assert search.error(values) < 0.95 * search.error(at_once)


def test_groups_share_what_stays_by_what_it_is_worth() -> None:
    """Of a group whose inputs are ten times as large most values stay where half of all do."""
    moment = moment_of(12, 0, groups=2)
    moment[1] *= 100
    matrices = np.random.default_rng(1).standard_normal((2, 8, 12))
    _, kept = SparseFit(matrices, moment).fitted(ShareOfAll(0.5))
    assert kept.sum() == 96
    assert kept[1].mean() > 0.75


def test_what_is_not_allowed_stays_zero() -> None:
    moment, matrices = moment_of(12, 0), np.random.default_rng(1).standard_normal((1, 8, 12))
    allowed = np.random.default_rng(2).random(matrices.shape) < 0.6
    matrices[~allowed] = 0
    values, kept = SparseFit(matrices, moment).fitted(ShareOfAll(0.5), allowed)
    assert not kept[~allowed].any() and not values[~allowed].any()
    assert kept.sum() == 48


@pytest.mark.parametrize("pattern", [ShareOfAll(0.5), OfEach(2, 4, 3)])
def test_wide_matrices_in_parts_have_the_pattern_too(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_fit, "MOST_COLUMNS", 15)
    monkeypatch.setattr("onnxcomp.numerics.rounding.coordinate_descent.CHUNK_VALUES", 100)
    moment, matrices = moment_of(36, 0), np.random.default_rng(1).standard_normal((1, 6, 36))
    search = SparseFit(matrices, moment)
    values, kept = search.fitted(pattern)
    assert kept.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(pattern.kept(kept.astype(float)).sum(), kept.sum())
    plain = np.where(pattern.kept(np.abs(matrices)), matrices, 0)
    assert search.error(values) < search.error(plain)


def test_inputs_and_values_of_any_size_do() -> None:
    moment, matrices = moment_of(16, 0), np.random.default_rng(1).standard_normal((1, 8, 16))
    usual = SparseFit(matrices, moment).fitted(ShareOfAll(0.5))[1]
    assert np.array_equal(SparseFit(1e-20 * matrices, 1e15 * moment).fitted(ShareOfAll(0.5))[1], usual)
    zero = SparseFit(np.zeros((1, 8, 16)), moment)
    assert not zero.fitted(ShareOfAll(0.5))[0].any() and zero.error(np.zeros((1, 8, 16))) == 0
