"""Grids and codes against the formulas of QuantizeLinear, one value at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.numerics.integers.affine_int8 import (
    BIAS_LIMIT,
    activation_grid,
    bias_floor,
    quantize,
    quantize_bias,
    quantize_weight,
    weight_grid,
)

FINITE = st.floats(-1e6, 1e6, width=32)


@given(FINITE, FINITE, st.sampled_from(["uint8", "int8"]), st.booleans())
def test_every_value_of_the_range_is_met_to_a_step(a: float, b: float, dtype: str, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    grid = activation_grid(low, high, dtype=dtype, symmetric=symmetric)
    scale, zero = float(grid.scale), int(grid.zero_point)
    limits = np.iinfo(dtype)
    for value in (low, high, 0.0, (low + high) / 2):
        code = min(max(round(value / scale) + zero, limits.min), limits.max)
        assert abs((code - zero) * scale - value) <= scale * 1.01  # half a step, and half for the zero point
    assert scale > 0 and limits.min <= zero <= limits.max


def test_a_range_from_zero_has_its_zero_point_at_the_end_and_does_not_pass_the_top() -> None:
    grid = activation_grid(0.0, 6.0)
    assert int(grid.zero_point) == 0
    assert float(grid.scale) * 255 <= 6.0


def test_a_tensor_of_zeros_has_a_usable_grid() -> None:
    grid = activation_grid(0.0, 0.0)
    assert (float(grid.scale), int(grid.zero_point)) == (1.0, 0)


def test_a_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        activation_grid(0.0, np.inf)


def test_codes_are_those_of_quantize_linear() -> None:
    grid = activation_grid(-1.0, 1.55)  # scale 0.01, zero point 100
    values = np.array([-2, -1, 0, 0.004, 0.006, 1.55, 3], np.float32)
    assert quantize(values, grid).tolist() == [0, 0, 100, 100, 101, 255, 255]


def test_weights_have_a_scale_per_channel_and_stay_within_the_limit() -> None:
    values = np.array([[1, -2, 0.5], [0, 0, 0], [100, 50, -25]], np.float32)
    grid = weight_grid(values, 0)
    np.testing.assert_allclose(grid.scale, [2 / 127, 1, 100 / 127], rtol=1e-6)
    codes = quantize_weight(values, grid, 0)
    assert codes.dtype == np.int8
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0], [127, 64, -32]]
    assert np.abs(quantize_weight(values, weight_grid(values, 0, limit=64), 0, limit=64)).max() == 64
    assert weight_grid(values, None).scale.shape == ()


def test_weights_of_uint8_have_their_zero_in_the_middle_or_use_the_whole_range() -> None:
    values = np.array([[1.0, -0.275, 0.0], [2.55, 0.0, 1.27]], np.float32)
    middle = weight_grid(values, 0, dtype="uint8")
    assert middle.zero_point.tolist() == [128, 128]
    assert quantize_weight(values, middle, 0).tolist() == [[255, 93, 128], [255, 128, 191]]
    whole = weight_grid(values, 0, dtype="uint8", symmetric=False)
    np.testing.assert_allclose(whole.scale, [0.005, 0.01], rtol=1e-6)
    assert whole.zero_point.tolist() == [55, 0]
    assert quantize_weight(values, whole, 0, limit=None).tolist() == [[255, 0, 55], [255, 0, 127]]


def test_sixteen_bits_have_all_their_steps() -> None:
    grid = activation_grid(-1.0, 2.0, dtype="uint16")
    assert float(grid.scale) == pytest.approx(3 / 65535)
    assert int(grid.zero_point) == 21845
    assert quantize(np.array([-1, 0, 2, 9], np.float32), grid).tolist() == [0, 21845, 65535, 65535]


def test_a_large_bias_coarsens_its_channel_only() -> None:
    values = np.array([[1e-6], [1.0]], np.float32)
    bias = np.array([1000.0, 0.5], np.float32)
    scales = weight_grid(values, 0, floor=bias_floor(bias, 0.01)).scale
    codes = quantize_bias(bias, 0.01 * scales.astype(np.float64))
    assert np.abs(codes.astype(np.int64)).max() <= BIAS_LIMIT * 1.0001
    np.testing.assert_allclose(codes * (0.01 * scales.astype(np.float64)), bias, rtol=1e-4)
    assert scales[1] == pytest.approx(1 / 127)
