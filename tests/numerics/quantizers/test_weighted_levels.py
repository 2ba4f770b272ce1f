"""Levels of values that count unevenly, against all ways to cut the sorted values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from onnxcomp.numerics.quantizers.codebook import fit_codebook, fit_scaled_codebook
from onnxcomp.numerics.quantizers.weighted_levels import fit_weighted_codebook, fit_weighted_scaled_codebook

Array = np.ndarray[Any, Any]


def cost(values: Array, counts: Array, levels: Array) -> float:
    return float((counts * np.square(values[:, None] - levels).min(axis=1)).sum())


def least_cost(values: Array, counts: Array, k: int, *, zero: bool) -> float:
    """Over all cuts of the sorted values in k runs, one of which may be held at zero."""
    order = np.argsort(values)
    v, f = values[order], counts[order]
    found = np.inf
    for inner in itertools.combinations(range(1, v.size), k - 1):
        parts = np.split(np.arange(v.size), inner)
        means = np.array([np.average(v[part], weights=f[part]) for part in parts])
        for held in range(k) if zero else (None,):
            levels = means.copy()
            if held is not None:
                levels[held] = 0
            found = min(found, cost(values, counts, levels))
    return found


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_levels_cost_the_least(seed: int, zero: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(14).astype(np.float32)
    counts = rng.gamma(0.5, size=14) + 0.01
    levels = fit_weighted_codebook(values, counts, 4, keep_zero=zero)
    assert levels.size <= 4
    assert not zero or 0 in levels
    assert cost(values, counts, levels) <= 1.02 * least_cost(values, counts, 4, zero=zero)


def test_equal_counts_give_the_plain_codebook() -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    ones = np.ones(5000)
    plain = cost(values, ones, fit_codebook(values, 8))
    assert cost(values, ones, fit_weighted_codebook(values, ones * 7, 8)) == pytest.approx(plain, rel=1e-4)


def test_values_that_count_nothing_still_get_a_level_near_them() -> None:
    values = np.array([0.0, 0.1, 0.2, 5.0, 5.1], np.float32)
    levels = fit_weighted_codebook(values, np.array([1.0, 1.0, 1.0, 0.0, 0.0]), 2)
    assert np.abs(levels - 5.05).min() < 0.1


def test_all_distinct_values_come_back_where_there_are_few() -> None:
    values = np.array([3.0, -1.0, 3.0], np.float32)
    np.testing.assert_array_equal(fit_weighted_codebook(values, np.ones(3), 4, keep_zero=True), [-1, 0, 3])


def test_scaled_levels_cost_less_by_counts_than_those_that_ignore_them() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((6, 400)) * [[0.1], [1], [3], [0.5], [2], [0.2]]).astype(np.float32)
    counts = rng.gamma(0.3, size=rows.shape)
    counts[:, 200:] *= 1e-2
    scale, book = fit_weighted_scaled_codebook(rows, counts, 6)
    plain_scale, plain = fit_scaled_codebook(rows, 6)

    def total(scale: Array, book: Array) -> float:
        return sum(cost(row, own, book * each) for row, own, each in zip(rows, counts, scale, strict=True))

    assert total(scale, book) < 0.95 * total(plain_scale, plain)
    assert (scale > 0).all()
