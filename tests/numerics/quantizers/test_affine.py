"""Affine grids against hand-made ones, and the search against trying every scale."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.quantizers.affine import fit_grid

Array = NDArray[Any]


def quantized(values: Array, *, bits: int, axis: int | None = None, **more: Any) -> Array:
    scale, zero_point = fit_grid(values, bits=bits, axis=axis, **more)
    block_size = more.get("block_size")
    encoding = GridEncoding(
        dtype=str(values.dtype),
        levels=2**bits,
        scale=scale,
        zero_point=zero_point,
        axis=axis,
        block_size=block_size,
    )
    assert encoding.fits(values.shape)
    result = encoding.decode(encoding.nearest(values), values.shape)
    assert encoding.encode(result) is not None
    return result


def test_symmetric_grid_covers_both_ends() -> None:
    scale, zero_point = fit_grid(np.array([-1.0, 0.3, 12.7], np.float32), bits=8)
    assert scale.dtype == np.float32
    assert scale == np.float32(0.1)
    assert zero_point == 128
    scale, _ = fit_grid(np.array([-12.8, 1.0], np.float32), bits=8)
    assert scale == np.float32(0.1)


def test_asymmetric_grid_covers_the_range_with_zero() -> None:
    scale, zero_point = fit_grid(np.array([-5.0, 250.0], np.float32), bits=8, symmetric=False)
    assert (scale, zero_point) == (1.0, 5)
    scale, zero_point = fit_grid(np.array([100.0, 255.0], np.float32), bits=8, symmetric=False)
    assert (scale, zero_point) == (1.0, 0)
    scale, zero_point = fit_grid(np.array([-30.0, -1.0], np.float32), bits=4, symmetric=False)
    assert (scale, zero_point) == (2.0, 15)


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("axis", "block_size"), [(None, None), (0, None), (2, None), (1, 4), (1, 12)])
def test_values_move_by_half_a_step_at_most(
    bits: int, symmetric: bool, search: bool, axis: int | None, block_size: int | None
) -> None:
    values = np.random.default_rng(0).standard_normal((3, 12, 5)).astype(np.float32)
    values[0, 0, 0] = 0
    result = quantized(values, bits=bits, symmetric=symmetric, search=search, axis=axis, block_size=block_size)
    assert result[0, 0, 0] == 0
    scale, _ = fit_grid(values, bits=bits, symmetric=symmetric, axis=axis, block_size=block_size)
    if not search:
        # The zero point is rounded, so that one end of the range may lie up to a step outside the grid.
        assert np.abs(values - result).max() <= scale.max() * (0.501 if symmetric else 1.001)


@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_have_grids_of_their_own(symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    scale, zero_point = fit_grid(values, bits=4, symmetric=symmetric, axis=1, block_size=4)
    assert scale.shape == zero_point.shape == (2, 2, 1, 3)
    for row in range(2):
        for block in range(2):
            for column in range(3):
                part = values[row, 4 * block : 4 * block + 4, column]
                one = fit_grid(part, bits=4, symmetric=symmetric)
                assert (scale[row, block, 0, column], zero_point[row, block, 0, column]) == one


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-45, 3e38, -3e38])
def test_constant_channels_have_a_usable_scale(value: float, symmetric: bool, search: bool) -> None:
    values = np.full((2, 5), value, np.float32)
    scale, _ = fit_grid(values, bits=8, symmetric=symmetric, axis=0, search=search)
    assert np.all(np.isfinite(scale))
    assert np.all(scale >= np.finfo(np.float32).tiny)
    result = quantized(values, bits=8, symmetric=symmetric, axis=0, search=search)
    assert result == pytest.approx(values, rel=1e-6, abs=1e-38)


@pytest.mark.filterwarnings("error")
def test_the_whole_float32_range_does_not_overflow() -> None:
    values = np.array([-3.4e38, 3.4e38], np.float32)
    assert np.all(np.isfinite(quantized(values, bits=8, symmetric=False)))
    assert np.all(np.isfinite(quantized(values, bits=2, symmetric=True)))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_comes_near_to_the_best_of_all_ranges(bits: int, symmetric: bool) -> None:
    values = np.random.default_rng(1).laplace(size=(4, 500)).astype(np.float32)
    found = quantized(values, bits=bits, symmetric=symmetric, axis=0, search=True)
    plain = quantized(values, bits=bits, symmetric=symmetric, axis=0)
    for row in range(4):
        best = np.inf
        step = 2**bits - 1
        for scale in np.linspace(0.05, 1, 400) * 2 * np.abs(values[row]).max() / step:
            zeros = [2 ** (bits - 1)] if symmetric else range(2**bits)
            for zero in zeros:
                codes = np.clip(np.rint(values[row] / scale) + zero, 0, step)
                best = min(best, float(np.square((codes - zero) * scale - values[row]).sum()))
        error = float(np.square(found[row] - values[row]).sum())
        assert error <= float(np.square(plain[row] - values[row]).sum())
        # Asymmetric ranges are drawn in at both ends alike, which leaves some zero points untried.
        assert error <= best * (1.02 if symmetric else 1.35)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_keep_their_type(dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((4, 6)).astype(dtype)
    scale, _ = fit_grid(values, bits=8, axis=0)
    assert scale.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert quantized(values, bits=8, axis=0).dtype == dtype


def test_refuses_blocks_that_do_not_divide_the_axis() -> None:
    with pytest.raises(ValueError, match="block_size must divide"):
        fit_grid(np.zeros((2, 5), np.float32), bits=4, axis=1, block_size=2)
