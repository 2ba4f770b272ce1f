"""Short floats: what fits, and by which power of two it is made to fit."""

import numpy as np
import pytest

from onnxcomp.numerics.integers.short_float import (
    DTYPES,
    largest,
    misfit,
    peak_of,
    power_of_two_scale,
    rounded,
    smallest_normal,
)


@pytest.mark.parametrize(
    ("name", "most", "least"),
    [
        ("float16", 65504.0, 2.0**-14),
        ("bfloat16", 3.3895313892515355e38, 2.0**-126),
        ("float8e4m3fn", 448.0, 2.0**-6),
        ("float8e5m2", 57344.0, 2.0**-14),
    ],
)
def test_ranges_are_those_of_the_formats(name: str, most: float, least: float) -> None:
    assert largest(name) == most
    assert smallest_normal(name) == least


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([1e-12], "too small"),
        ([1e-7], "too small"),
        ([1e-6], None),
        ([1e-5], None),
        ([0.0], None),
        ([], None),
        ([1.0, 1e-12], None),
        ([65504.0], None),
        ([-65600.0], "too large"),
        ([-3.4e38, 0.0], "too large"),
        ([np.inf, 1.0], None),
        ([np.nan], None),
    ],
)
def test_a_tensor_fits_float16_when_its_largest_value_does(values: list[float], fault: str | None) -> None:
    assert misfit(np.array(values, np.float32), "float16") == fault


def test_scalars_are_tensors_too() -> None:
    assert peak_of(np.array(-3.0, np.float32)) == 3.0
    assert misfit(np.array(1e-12, np.float32), "float16") == "too small"


@pytest.mark.parametrize("name", ["float8e4m3fn", "float8e5m2"])
@pytest.mark.parametrize("peak", [1e-6, 0.02, 0.9999, 1.0, 447.0, 448.0, 449.0, 3e5])
def test_scale_is_the_least_power_of_two_that_brings_all_into_range(name: str, peak: float) -> None:
    scale = power_of_two_scale(np.array([peak, -peak / 3], np.float32), name)
    assert np.log2(scale) == round(np.log2(scale))
    assert np.float32(peak) / scale <= largest(name) < np.float32(peak) / (scale / 2)


def test_zeros_need_no_scale() -> None:
    assert power_of_two_scale(np.zeros(3, np.float32), "float8e4m3fn") == 1.0


def test_rounding_is_to_the_nearest() -> None:
    values = np.linspace(-3, 3, 1001, dtype=np.float32)
    grid = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    grid = grid[np.isfinite(grid)]
    nearest = np.array([np.abs(grid - value).min() for value in values.astype(np.float64)])
    error = np.abs(rounded(values, "float16").astype(np.float64) - values)
    np.testing.assert_allclose(error, nearest, rtol=1e-12, atol=0)
    assert {name: rounded(values, name).dtype for name in DTYPES} == DTYPES
