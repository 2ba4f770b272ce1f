"""The bucket search against trying every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.arrays.nearest import bounds_between, nearest_codes
from onnxcomp.numerics.encodings.encoding import CodebookEncoding

N = 6000


def naive(values: NDArray[Any], levels: NDArray[Any]) -> NDArray[Any]:
    """By float64 distance, the lower level of two equally near ones."""
    distance = np.abs(values.astype(np.float64)[:, None] - levels.astype(np.float64))
    return distance.argmin(axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 3, 16, 256])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "random"])
def test_codes_are_those_of_the_nearest_level(draw: str, k: int, dtype: Any) -> None:
    rng = np.random.default_rng(k)
    levels = np.sort(getattr(rng, draw)(k)).astype(dtype)
    values = np.concatenate([getattr(rng, draw)(N), levels, bounds_between(levels), [-1e30, 1e30]]).astype(dtype)
    codes = nearest_codes(values, levels)
    assert codes.dtype == np.uint8
    wanted = naive(values, levels)
    # Beside a bound, the rounding of the bound decides; both levels are then equally far but for rounding.
    exact = values.astype(np.float64)
    away = np.abs(np.abs(exact - levels[codes]) - np.abs(exact - levels[wanted]))
    rounding = 4 * np.finfo(dtype).eps * (np.abs(exact) + np.abs(levels[codes]))
    assert np.all((codes == wanted) | (away <= rounding))
    assert np.array_equal(codes, np.searchsorted(bounds_between(levels), values))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0, 3e38])
def test_neighbouring_numbers_are_told_apart(start: float, dtype: Any) -> None:
    levels = [dtype(start)]
    for _ in range(9):
        levels.append(np.nextafter(levels[-1], dtype(-np.inf)))
    ascending = np.array(levels[::-1])
    values = np.random.default_rng(0).choice(ascending, N)
    encoding = CodebookEncoding(dtype=np.dtype(dtype).name, codebook=ascending)
    assert encoding.encode(values) is not None


def test_the_whole_range_does_not_overflow() -> None:
    levels = np.array([-3.4e38, 0, 3.4e38], np.float32)
    values = np.random.default_rng(0).choice(levels, N)
    assert np.array_equal(levels[nearest_codes(values, levels)], values)


def test_infinities_and_nan_have_some_code() -> None:
    values = np.zeros(N, np.float32)
    values[:3] = np.nan, np.inf, -np.inf
    codes = nearest_codes(values, np.arange(16, dtype=np.float32))
    assert codes[1:4].tolist() == [15, 0, 0]
    assert codes[0] < 16


def test_refuses_more_levels_than_a_byte_has() -> None:
    with pytest.raises(ValueError, match="at most 256 levels"):
        nearest_codes(np.zeros(1), np.arange(257.0))
