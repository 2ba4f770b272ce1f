"""smooth: factors by hand, errors as a loop over elements has them, and a strength that serves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.channels.smoothquant import Reader, best_smoothing, on_grid, smoothing_factors


def reader(rows: np.ndarray, matrix: np.ndarray, numbers: list[int] | None = None) -> Reader:
    columns = np.arange(rows.shape[1]) if numbers is None else np.array(numbers)
    low, high = rows.min(axis=0), rows.max(axis=0)
    return Reader(matrix[None].astype(np.float32), rows[None].astype(np.float32), low[None], high[None], columns[None])


@pytest.mark.parametrize(("strength", "expected"), [(1.0, [16, 1]), (0.0, [1 / 4, 1]), (0.5, [2, 1])])
def test_factors_by_hand(strength: float, expected: list[float]) -> None:
    # max|X| = 16, 1; max|W| = 4, 1: s = 16^a / 4^(1 - a), here over its geometric mean
    s = smoothing_factors(np.array([16.0, 1.0]), np.array([4.0, 1.0]), strength, largest=1e9)
    np.testing.assert_allclose(s[0] / s[1], expected[0] / expected[1])
    np.testing.assert_allclose(s[0] * s[1], 1)


def test_channels_of_which_nothing_is_known_stay() -> None:
    s = smoothing_factors(np.array([4.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0]), 1.0, largest=1e9)
    np.testing.assert_allclose(s, [2, 1, 1, 0.5])


def test_factors_stay_below_the_largest() -> None:
    s = smoothing_factors(np.array([1e6, 1e-6]), np.ones(2), 1.0, largest=8.0)
    np.testing.assert_allclose(s, [8, 1 / 8])


def test_grid_has_zero_and_256_levels() -> None:
    values = np.linspace(-1, 3, 5000, dtype=np.float32)
    made = on_grid(values, -1, 3)
    assert len(np.unique(made)) == 256 and 0 in made
    assert np.abs(made - values).max() <= 4 / 255 * 0.51
    np.testing.assert_allclose(on_grid(np.array([-9, 9], np.float32), -1, 3), [-1, 3], atol=4 / 255)


def naive_error(rows: np.ndarray, matrix: np.ndarray, s: np.ndarray) -> float:
    """Both sides rounded element by element, over the whole range of X."""
    scaled = rows / s
    low, high = min(0.0, scaled.min()), max(0.0, scaled.max())
    step = (high - low) / 255
    x = np.array([[step * round(v / step) for v in row] for row in scaled])
    w = np.zeros_like(matrix)
    for i, row in enumerate(matrix * s):
        unit = max(abs(row)) / 127
        w[i] = [unit * round(v / unit) for v in row]
    exact = rows @ matrix.T
    return float(np.square(x @ w.T - exact).sum() / np.square(exact).sum())


def test_error_is_that_of_rounding_both_sides() -> None:
    random = np.random.default_rng(0)
    rows, matrix = random.uniform(-1, 1, (40, 6)), random.normal(size=(5, 6))
    s = np.exp(random.normal(size=6) * 0.3)
    # uniform inputs are served best by their whole range; float32 and the zero point round a little differently
    np.testing.assert_allclose(reader(rows, matrix).error(s), naive_error(rows, matrix, s), rtol=0.15)


def test_an_outlier_channel_is_smoothed() -> None:
    random = np.random.default_rng(1)
    rows, matrix = random.normal(size=(200, 16)), random.normal(size=(8, 16))
    rows[:, 3] *= 100
    matrix[:, 3] /= 100
    found = best_smoothing([reader(rows, matrix)], np.arange(16), 16, largest=2.0**16)
    assert found.after < 0.2 * found.before
    assert found.factors[3] == found.factors.max()
    ones = np.ones(16)
    assert found.before == pytest.approx(reader(rows, matrix).error(ones))


def test_even_channels_are_best_left_alone() -> None:
    random = np.random.default_rng(2)
    found = best_smoothing(
        [reader(random.normal(size=(200, 8)), random.normal(size=(8, 8)))], np.arange(8), 8, largest=9
    )
    assert found.after > 0.8 * found.before


def test_only_the_channels_named_get_factors() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(100, 4)) * [1, 100, 1, 1]
    found = best_smoothing([reader(rows, random.normal(size=(3, 4)), [0, 1, 2, 3])], np.array([1, 2]), 4, largest=99)
    assert found.factors[0] == found.factors[3] == 1 and found.factors[1] > 1
