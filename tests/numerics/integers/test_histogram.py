"""Histogram against numpy's quantiles of all values kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.numerics.integers import histogram as module
from onnxcomp.numerics.integers.histogram import HALF, Extent, Histogram


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
    assert (histogram.count, histogram.non_finite) == (2, 3)
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


def test_of_large_arrays_evenly_spaced_values_are_counted_and_stand_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ALL_COUNTED", 1000)
    monkeypatch.setattr(module, "PART", 500)
    # Channels last, each with a value of its own: a constant step of 8 would only ever meet one.
    values = np.tile(np.arange(8, dtype=np.float32), 1000)
    histogram = filled(values, values)
    assert (histogram.low, histogram.high, histogram.count) == (0, 7, 16_000)
    assert histogram.counts.sum() == pytest.approx(16_000)
    per_channel = histogram.counts[histogram.counts > 0]
    assert len(per_channel) == 8 and per_channel == pytest.approx(2000, rel=0.02)


def test_what_lies_far_out_is_counted_wherever_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_COUNTED", 10_000)
    monkeypatch.setattr(module, "PART", 500)
    parts = [np.random.default_rng(i).standard_normal(20_000).astype(np.float32) for i in range(5)]
    for part in parts[1:]:
        part[7], part[11] = 50, -20
    histogram, values = filled(*parts), np.concatenate(parts)
    places = np.clip(np.abs(histogram.middles) > 10, 0, 1)
    assert (histogram.counts * places).sum() == 8
    assert histogram.counts.sum() == pytest.approx(values.size)
    for share in (0.0002, 0.001, 0.1, 0.5, 0.9, 0.999, 0.9998):
        assert np.mean(values < histogram.quantile(share)) == pytest.approx(share, abs=0.02 * min(1, 20 * share))


def test_zeros_that_come_often_do_not_count_as_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_COUNTED", 10_000)
    monkeypatch.setattr(module, "PART", 500)
    values = np.maximum(np.random.default_rng(0).standard_normal(20_000), 0).astype(np.float32)
    histogram, counted = Histogram(), []
    bins = histogram._bins
    monkeypatch.setattr(histogram, "_bins", lambda each: counted.append(each.size) or bins(each))
    for _ in range(3):
        histogram.add(values)
    assert counted[0] == 20_000 and sum(counted[1:]) < 2 * 600
    assert histogram.counts[HALF] == pytest.approx(3 * np.sum(values < histogram.width), rel=0.1)


def test_a_sample_stands_for_all_that_it_was_drawn_from() -> None:
    histogram = filled(np.float32([1, 2]))
    histogram.add_sample(np.float32([3, 3, 4, 4]), low=-1, high=6, count=10)
    assert (histogram.low, histogram.high, histogram.count) == (-1, 6, 12)
    assert histogram.quantile(6 / 12) == pytest.approx(3, abs=8 / HALF)
    assert histogram.mean_ends() == (0, 4)


def test_extents_are_those_of_the_finite_values() -> None:
    extent = Extent()
    for part in ([3, np.nan, -1], [np.inf], [], [7]):
        extent.add(np.array(part, np.float16))
    assert (extent.low, extent.high, extent.count, extent.non_finite, extent.parts) == (-1, 7, 3, 2, 2)
    assert extent.mean_ends() == (3, 5)
    with pytest.raises(ValueError, match="between"):
        extent.covering(0.9)
