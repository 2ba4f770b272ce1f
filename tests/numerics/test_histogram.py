"""Histogram against numpy's quantiles of all values kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.numerics.histogram import HALF, Histogram


def filled(*parts: np.ndarray) -> Histogram:  # type: ignore[type-arg]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_quantiles_are_those_of_all_values_to_a_bin() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = filled(*np.split(values, 100))
    width = float(2 ** np.ceil(np.log2(np.abs(values).max())) / HALF)
    for share in (0.0001, 0.1, 0.5, 0.99, 0.9999):
        assert histogram.quantile(share) == pytest.approx(float(np.quantile(values, share)), abs=width)
    assert histogram.covering(1.0) == (values.min(), values.max())


def test_covering_cuts_both_ends_equally() -> None:
    values = np.arange(-1000, 1001, dtype=np.float32)
    low, high = filled(values).covering(0.9)
    assert low == pytest.approx(-900, abs=2) and high == pytest.approx(900, abs=2)


@given(st.permutations([0.001, 1.0, 300.0, 5e4]))
def test_order_and_growth_of_the_range_change_nothing(scales: list[float]) -> None:
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    sorted_way = filled(*(values * np.float32(each) for each in (0.001, 1.0, 300.0, 5e4)))
    drawn_way = filled(*(values * np.float32(each) for each in scales))
    for share in (0.01, 0.3, 0.5, 0.9, 0.999):
        assert drawn_way.quantile(share) == sorted_way.quantile(share)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    histogram = filled(np.array([1, np.nan, 2, np.inf, -np.inf], np.float32))
    assert (histogram.count, histogram.odd) == (2, 3)
    assert histogram.covering(1.0) == (1, 2)


def test_nothing_added_has_no_range() -> None:
    histogram = filled(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="no values"):
        histogram.covering(1.0)
    with pytest.raises(ValueError, match="no values"):
        histogram.quantile(0.5)


def test_zeros_and_halves_are_values_too() -> None:
    histogram = filled(np.zeros(10, np.float16), np.full(30, 2, np.float16))
    assert histogram.covering(1.0) == (0, 2)
    assert histogram.quantile(0.2) == pytest.approx(0, abs=4 / HALF)
    assert histogram.quantile(0.5) == pytest.approx(2, abs=4 / HALF)


def test_range_of_least_error_is_near_the_best_that_a_search_over_the_values_finds() -> None:
    values = np.append(np.random.default_rng(3).standard_normal(20_000), [-6.0, 30.0])

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        zero = np.rint(-low / step)
        codes = np.clip(np.rint(values / step) + zero, 0, 255)
        return float(np.sum(np.abs((codes - zero) * step - values) ** 2.4))

    best = min(error(low, high) for low in np.linspace(-6, -2, 41) for high in np.linspace(2, 30, 57))
    found = error(*filled(values).of_least_error())
    assert found < 1.1 * best
    assert found < error(values.min(), values.max())


def test_range_of_least_error_covers_what_comes_often() -> None:
    low, high = filled(np.repeat(np.array([0, 1, 6], np.float32), 1000)).of_least_error()
    assert low == 0 and high == pytest.approx(6, rel=0.02)
