"""Codebooks against exact references: kmeans1d, and naive dynamic programs over all cuts."""

from __future__ import annotations

from typing import Any

import kmeans1d
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.quantizers.codebook import fit_codebook, fit_scaled_codebook, fit_vector_codebook
from onnxcomp.numerics.quantizers.prefix_sums import binned
from tests.sampling import one_in

Array = NDArray[Any]
N = 10_000


def draw(name: str) -> Array:
    rng = np.random.default_rng(7)
    draws = {
        "normal": lambda: rng.standard_normal(N),
        "laplace": lambda: rng.laplace(size=N),
        "cauchy": lambda: rng.standard_cauchy(N),
        "lognormal": lambda: np.exp(3 * rng.standard_normal(N)),
        "uniform": lambda: rng.random(N),
        "two_peaks": lambda: np.concatenate([rng.normal(-3, 0.01, N // 2), rng.normal(5, 1, N // 2)]),
        "mostly_zero": lambda: rng.standard_normal(N) * (rng.random(N) < 0.1),
        "few_distinct": lambda: np.round(rng.standard_normal(N) * 40),
        "near_one": lambda: 1 + 1e-3 * rng.standard_normal(N),
    }
    return draws[name]().astype(np.float32)


DRAWS = [
    "normal", "laplace", "cauchy", "lognormal", "uniform", "two_peaks", "mostly_zero", "few_distinct",
    "near_one",
]  # fmt: skip


def inertia(values: Array, levels: Array) -> float:
    flat = values.ravel().astype(np.float64)
    levels = levels.astype(np.float64)
    return float(np.square(flat - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, flat)]).sum())


def exact_inertia(values: Array, k: int) -> float:
    centroids = np.sort(np.array(kmeans1d.cluster(values.astype(np.float64), k).centroids))
    return inertia(values, centroids)


def naive_inertia(values: Array, k: int, keep_zero: bool) -> float:
    """The least squared error by trying every run for every last cluster; one cluster may be held at zero."""
    ordered = [float(value) for value in np.sort(values)]
    n = len(ordered)

    def cost(low: int, high: int, zero: bool) -> float:
        part = ordered[low:high]
        centre = 0.0 if zero else sum(part) / len(part)
        return sum((value - centre) ** 2 for value in part)

    error: dict[tuple[int, int, bool], float] = {(0, 0, False): 0.0}
    for runs in range(1, k + 1):
        for end in range(n + 1):
            for used in (False, True):
                choices = [
                    error[(runs - 1, begin, used)] + cost(begin, end, False)
                    for begin in range(end)
                    if (runs - 1, begin, used) in error
                ]
                if used:
                    choices += [
                        error[(runs - 1, begin, False)] + cost(begin, end, True)
                        for begin in range(end + 1)
                        if (runs - 1, begin, False) in error
                    ]
                if choices:
                    error[(runs, end, used)] = min(choices)
    return min(error[key] for key in error if key[1] == n and (key[2] or not keep_zero))


@one_in(3, name=DRAWS, k=[1, 2, 3, 16, 64, 65, 200])
def test_inertia_is_within_a_thousandth_of_the_optimum(name: str, k: int) -> None:
    values = draw(name)
    levels = fit_codebook(values, k)
    assert levels.dtype == np.float32
    assert levels.size <= k
    assert np.all(np.diff(levels) > 0)
    # 1e-9: the rounding of levels to float32, where the optimum is 0 or nearly so.
    assert inertia(values, levels) <= 1.001 * exact_inertia(values, k) + 1e-9


@pytest.mark.parametrize("k", [40, 80, 250])
@pytest.mark.parametrize("size", [300, 1000, 3000])
@pytest.mark.parametrize("name", ["normal", "cauchy", "two_peaks"])
def test_small_weights_are_within_a_thousandth_too(name: str, size: int, k: int) -> None:
    values = draw(name)[np.random.default_rng(k).permutation(N)[:size]]
    assert inertia(values, fit_codebook(values, k)) <= 1.001 * exact_inertia(values, k)


def test_large_weights_are_within_a_thousandth_too() -> None:
    values = np.random.default_rng(0).standard_t(2, 100_000).astype(np.float32)
    assert inertia(values, fit_codebook(values, 64)) <= 1.001 * exact_inertia(values, 64)


@pytest.mark.parametrize("k", [2, 16, 64, 100])
@pytest.mark.parametrize("name", DRAWS)
def test_bins_find_levels_within_a_hundredth_of_the_optimum(
    monkeypatch: pytest.MonkeyPatch, name: str, k: int
) -> None:
    monkeypatch.setattr("onnxcomp.numerics.quantizers.codebook.BINNED_FROM", 1)
    values = draw(name)
    levels = fit_codebook(values, k)
    assert levels.dtype == np.float32
    assert levels.size <= k
    assert inertia(values, levels) <= 1.01 * exact_inertia(values, k) + 1e-9
    with_zero = fit_codebook(values, k, keep_zero=True)
    assert np.count_nonzero(with_zero == 0) == 1
    beside = np.sort(np.append(fit_codebook(values, k - 1), 0))
    assert inertia(values, with_zero) <= 1.01 * inertia(values, beside) + 1e-9


def test_bins_hold_every_value_once_and_outliers_by_themselves() -> None:
    values = np.append(draw("normal"), np.float32([1e9, -3e-42, 0.0])).reshape(-1, 1)
    means, counts = binned(values)
    assert np.all(np.diff(means) > 0)
    assert counts.sum() == values.size
    assert means @ counts == pytest.approx(values.sum(dtype=np.float64))
    assert means[-1] == np.float32(1e9)
    kept = np.unique(values.ravel().view(np.uint32) >> 13)
    assert means.size == kept.size


def test_large_weights_are_told_by_bins_and_never_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((2**11, 2**11), np.float32)
    monkeypatch.setattr("onnxcomp.numerics.quantizers.codebook.SortedLine", None)
    assert inertia(values, fit_codebook(values, 16)) / values.size == pytest.approx(0.0095, rel=0.01)  # Max 1960
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        fit_codebook(values, 16)


@pytest.mark.parametrize("keep_zero", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_tiny_inputs_are_optimal(seed: int, k: int, keep_zero: bool) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(rng.normal(0, 2), 2, 2 + 3 * seed), 1).astype(np.float32)
    levels = fit_codebook(values, k, keep_zero=keep_zero)
    assert inertia(values, levels) == pytest.approx(naive_inertia(values, k, keep_zero), rel=1e-5, abs=1e-9)


@one_in(3, name=DRAWS, k=[2, 4, 16, 70, 128])
def test_a_level_at_zero_costs_at_most_the_level(name: str, k: int) -> None:
    values = draw(name)
    levels = fit_codebook(values, k, keep_zero=True)
    assert levels.size <= k
    assert np.count_nonzero(levels == 0) == 1
    assert not np.signbit(levels[levels == 0]).any()
    # Zero beside the best k - 1 levels is one valid answer.
    beside = np.sort(np.append(fit_codebook(values, k - 1), 0))
    assert inertia(values, levels) <= 1.001 * inertia(values, beside) + 1e-9
    assert np.abs(levels[:, None] - 0.0).argmin() == np.flatnonzero(levels == 0)[0]


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0], [0.0, -0.0], [1.0, -1.0, 1.0, 5.0]])
def test_all_distinct_values_come_back_where_there_are_few(values: list[float]) -> None:
    assert fit_codebook(np.array(values, np.float32), 8).tolist() == sorted({value + 0.0 for value in values})


def test_zero_joins_the_distinct_values() -> None:
    assert fit_codebook(np.array([1, 2, 2], np.float32), 8, keep_zero=True).tolist() == [0.0, 1.0, 2.0]
    assert fit_codebook(np.array([1, 2, 2], np.float32), 1, keep_zero=True).tolist() == [0.0]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30])
def test_float32_extremes_give_the_same_clusters(scale: float) -> None:
    values = (np.array([1, 2, 11, 12, 101, 102]) * np.float64(scale)).astype(np.float32)
    levels = fit_codebook(values, 3)
    wanted = [part.mean(dtype=np.float64) for part in (values[:2], values[2:4], values[4:])]
    assert levels == pytest.approx(np.array(wanted, np.float32), rel=1e-6)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1.0, 1e305])
def test_float64_extremes_give_the_same_clusters(scale: float) -> None:
    values = np.array([1.0, 1.0, 11.0, 11.0, 101.0, 102.0]) * scale
    levels = fit_codebook(values, 4)
    assert levels.dtype == np.float64
    assert levels.tolist() == sorted(set(values.tolist()))


def test_an_outlier_does_not_hide_the_rest() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1e-3, 5000).astype(np.float32)
    for outlier in (1e15, -1e15):
        levels = fit_codebook(np.append(values, np.float32(outlier)), 9)
        assert inertia(values, levels) <= 1.001 * exact_inertia(values, 8)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_short_floats_are_fitted_in_float32(dtype: Any) -> None:
    values = draw("normal").astype(dtype)
    levels = fit_codebook(values, 16)
    assert levels.dtype == np.float32
    assert inertia(values, levels) <= 1.001 * exact_inertia(values.astype(np.float32), 16)


def test_order_and_shape_do_not_matter() -> None:
    values = draw("laplace")
    shuffled = np.random.default_rng(1).permutation(values).reshape(100, -1)
    assert np.array_equal(fit_codebook(values, 32), fit_codebook(shuffled, 32))


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 0.0], [-np.inf, 0.0]])
def test_refuses_what_has_no_codebook(values: list[float]) -> None:
    with pytest.raises(ValueError, match="a codebook needs"):
        fit_codebook(np.array(values, np.float32), 2)


def relative_error(rows: Array, scale: Array, codebook: Array) -> float:
    """The mean over channels of |w - q|^2 / |w|^2, in a loop."""
    errors = []
    for row, factor in zip(rows.astype(np.float64), scale.astype(np.float64), strict=True):
        levels = codebook.astype(np.float64) * factor
        nearest = levels[np.abs(row[:, None] - levels).argmin(axis=1)]
        errors.append(np.square(row - nearest).sum() / np.square(row).sum())
    return float(np.mean(errors))


@pytest.mark.parametrize("keep_zero", [False, True])
def test_scaled_codebook_beats_one_codebook_where_channels_differ(keep_zero: bool) -> None:
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((32, 500)) * np.exp(rng.normal(0, 2, (32, 1)))).astype(np.float32)
    scale, codebook = fit_scaled_codebook(rows, 16, keep_zero=keep_zero)
    plain = fit_codebook(rows, 16, keep_zero=keep_zero)
    assert scale.shape == (32,)
    assert np.all(scale > 0)
    assert (0.0 in codebook) or not keep_zero
    assert relative_error(rows, scale, codebook) < 0.1 * relative_error(rows, np.ones(32), plain)
    # Sixteen levels for one normal distribution leave 0.00954 of its power (Max 1960).
    assert relative_error(rows, scale, codebook) < 0.0105


def test_scaled_codebook_finds_scales_and_levels_that_made_the_values() -> None:
    levels = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    codes = np.random.default_rng(0).integers(0, 5, (8, 200))
    rows = (levels[codes] * np.array([1e-4, 1, 3, 7, 0.1, 2, 1, 1e4])[:, None]).astype(np.float32)
    scale, codebook = fit_scaled_codebook(rows, 8)
    assert relative_error(rows, scale, codebook) < 1e-3


def test_scaled_codebook_is_no_worse_than_scales_by_root_mean_square() -> None:
    rng = np.random.default_rng(5)
    rows = (rng.standard_t(3, (64, 9)) * np.exp(rng.standard_normal((64, 1)))).astype(np.float32)
    power = np.sqrt(np.mean(np.square(rows), axis=1))
    start = fit_codebook(rows / power[:, None], 8)
    assert relative_error(rows, *fit_scaled_codebook(rows, 8)) < 0.95 * relative_error(rows, power, start)


def test_zero_channels_stay_zero() -> None:
    rows = np.array([[0, 0, 0], [1, 2, 3]], np.float32)
    scale, codebook = fit_scaled_codebook(rows, 2)
    assert scale[0] == 0
    scale, codebook = fit_scaled_codebook(rows, 3, keep_zero=True)
    assert scale[0] == 1
    assert 0.0 in codebook
    scale, codebook = fit_scaled_codebook(np.zeros((2, 3), np.float32), 4)
    assert scale.tolist() == [1, 1]
    assert codebook.tolist() == [0]


def test_vector_codebook_finds_separate_heaps() -> None:
    centres = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, (400, 2)).astype(np.float32)
    rows = centres[np.arange(400) % 4] + noise
    book = fit_vector_codebook(rows, 4, seed=1)
    for index in range(4):
        wanted = rows[index::4].mean(axis=0, dtype=np.float64)
        assert np.abs(book - wanted).max(axis=1).min() < 1e-4
    assert np.array_equal(book, fit_vector_codebook(rows, 4, seed=1))


def test_vector_codebook_gives_distinct_rows_back() -> None:
    rows = np.array([[1, 2], [0, 1], [1, 2]], np.float32)
    assert fit_vector_codebook(rows, 4, seed=0).tolist() == [[0, 1], [1, 2]]


def test_vector_codebook_of_many_rows_uses_them_all() -> None:
    rows = np.random.default_rng(0).standard_normal((150_000, 2)).astype(np.float32)
    book = fit_vector_codebook(rows, 16, seed=0).astype(np.float64)
    error = np.mean(((rows[:, None, :].astype(np.float64) - book) ** 2).sum(axis=2).min(axis=1))
    scalar = fit_codebook(rows, 4)
    assert error < 2 * inertia(rows, scalar) / rows.size
