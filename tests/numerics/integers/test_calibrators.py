"""Ranges against searches over all values and against sums written as loops."""

import math

import numpy as np
import pytest

from onnxcomp.numerics.integers.calibrators import BY_ENDS, CALIBRATORS, divergence, error, range_by
from onnxcomp.numerics.integers.histogram import HALF, Extent, Histogram


def filled(*parts: np.ndarray) -> Histogram:  # type: ignore[type-arg]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def normal(count: int = 20_000, *, seed: int = 3) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@pytest.mark.parametrize(("method", "power"), [("error", 2.4), ("mse", 2.0)])
def test_least_error_is_near_the_best_that_a_search_over_the_values_finds(method: str, power: float) -> None:
    values = np.append(normal().astype(np.float64), [-6.0, 30.0])

    def lost(low: float, high: float) -> float:
        step = (high - low) / 255
        zero = np.rint(-low / step)
        codes = np.clip(np.rint(values / step) + zero, 0, 255)
        return float(np.sum(np.abs((codes - zero) * step - values) ** power))

    best = min(lost(low, high) for low in np.linspace(-6, -2, 41) for high in np.linspace(2, 30, 57))
    found = lost(*range_by(method, filled(values)))
    assert found < 1.1 * best
    assert found < lost(values.min(), values.max())


def test_least_error_covers_what_comes_often() -> None:
    low, high = range_by("error", filled(np.repeat(np.array([0, 1, 6], np.float32), 1000)))
    assert low == 0 and high == pytest.approx(6, rel=0.02)


@pytest.mark.parametrize("ends", [(-1.0, 2.0), (-3.0, 0.5), (0.0, 3.0), (-3.5, 3.5)])
def test_error_is_what_a_loop_over_the_bins_adds_up(ends: tuple[float, float]) -> None:
    histogram, (low, high) = filled(normal(500)), ends
    half, expected = (high - low) / 255 / 2, 0.0
    for middle, count in zip(histogram.middles.tolist(), histogram.counts.tolist(), strict=True):
        if middle > high:
            expected += count * (middle - high) ** 2.4
        elif middle < low:
            expected += count * (low - middle) ** 2.4
        elif abs(middle) > half:
            expected += count * half**2.4 / 3.4
    got = error(histogram, 2.4, 255)(np.array([low]), np.array([high]))
    assert got[0] == pytest.approx(expected, rel=1e-9)


def naive_divergence(histogram: Histogram, low: float, high: float, steps: int) -> float:
    """KL(p, q) with a dictionary of levels."""
    counts = histogram.counts.tolist()
    counts[HALF - 1], counts[HALF] = min(counts[HALF - 1 : HALF - 3 : -1]), min(counts[HALF : HALF + 2])
    middles = histogram.middles.tolist()
    inside = [i for i, middle in enumerate(middles) if low <= middle <= high]
    p = {i: counts[i] for i in inside}
    p[inside[0]] += sum(counts[: inside[0]])
    p[inside[-1]] += sum(counts[inside[-1] + 1 :])
    level_of = {i: min(steps, math.floor((middles[i] - low) / (high - low) * steps + 0.5)) for i in inside}
    total, kept = sum(p.values()), sum(counts[i] for i in inside)
    found = 0.0
    for i in inside:
        if not p[i]:
            continue
        mates = [j for j in inside if level_of[j] == level_of[i] and p[j]]
        q = sum(counts[j] for j in mates) / len(mates) / kept
        found += p[i] / total * math.log(p[i] / total / max(q, 1e-12))
    return found


@pytest.mark.parametrize("ends", [(-1.0, 2.0), (-3.0, 0.5), (0.0, 1.7), (-3.9, 3.9), (-0.3, 0.0)])
def test_divergence_is_what_loops_over_bins_and_levels_add_up(ends: tuple[float, float]) -> None:
    histogram, (low, high) = filled(normal(3000)), ends
    got = divergence(histogram, 15)(np.array([low]), np.array([high]))
    assert got[0] == pytest.approx(naive_divergence(histogram, low, high, 15), abs=1e-9)


def test_entropy_leaves_rare_outliers_and_keeps_what_is_even() -> None:
    low, high = range_by("entropy", filled(normal(100_000), np.float32([-60, 60])))
    assert -20 < low < -1.5 and 1.5 < high < 20
    low, high = range_by("entropy", filled(np.linspace(-1, 1, 100_001, dtype=np.float32)))
    assert low == pytest.approx(-1, abs=0.05) and high == pytest.approx(1, abs=0.05)


def test_many_zeros_do_not_narrow_the_range_by_entropy() -> None:
    values = np.abs(normal())
    plain = range_by("entropy", filled(values))
    assert range_by("entropy", filled(values, np.zeros(1_000_000, np.float32)))[1] == pytest.approx(plain[1], rel=0.1)


def test_moving_average_is_the_mean_of_the_ranges_of_the_parts() -> None:
    parts = [np.float32([-1, 4]), np.float32([-3, 2]), np.float32([5])]
    assert range_by("moving-average", filled(*parts)) == (pytest.approx(1 / 3), pytest.approx(11 / 3))


def test_percentile_cuts_both_ends_and_minmax_none() -> None:
    histogram = filled(np.arange(-1000, 1001, dtype=np.float32))
    assert range_by("percentile", histogram, coverage=0.9) == (pytest.approx(-900, abs=2), pytest.approx(900, abs=2))
    assert range_by("minmax", histogram) == (-1000, 1000)


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0], [0.0, 1e-30], [-1e30, 1e30], [5.0, 5.0, 6.0]])
def test_any_values_have_a_range_within_them_and_zero(method: str, values: list[float]) -> None:
    low, high = range_by(method, filled(np.float32(values)))
    assert min(0.0, *np.float32(values)) <= low <= high <= max(0.0, *np.float32(values))


@pytest.mark.parametrize("method", CALIBRATORS)
def test_the_ends_alone_serve_those_that_need_no_histogram(method: str) -> None:
    extent = Extent()
    extent.add(np.float32([1, 2]))
    if method in BY_ENDS:
        assert range_by(method, extent) == (1, 2)
        return
    with pytest.raises(TypeError, match="histogram"):
        range_by(method, extent)


@pytest.mark.parametrize("method", CALIBRATORS)
def test_nothing_added_has_no_range(method: str) -> None:
    with pytest.raises(ValueError, match="no values"):
        range_by(method, Histogram())
