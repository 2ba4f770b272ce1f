"""onnxcomp.numerics.metrics.arrays: arrays of samples cut by position and by channel, against loops."""

import numpy as np
import pytest

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics.arrays import by_channel

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_are_brought_last_and_positions_keep_their_order(axis: int) -> None:
    block = RNG.normal(size=(2, 3, 4, 5))
    got = by_channel(block, axis)
    for sample in range(2):
        for channel in range(block.shape[1 + axis]):
            expected = np.take(block[sample], channel, axis=axis).ravel()
            np.testing.assert_array_equal(got[sample, :, channel], expected)


def test_without_an_axis_all_is_one_channel() -> None:
    assert by_channel(np.zeros((2, 3, 4)), None).shape == (2, 12, 1)
    assert by_channel(np.zeros((0, 3, 4)), None).shape == (0, 12, 1)


def test_a_weight_stands_for_neighbouring_positions() -> None:
    """(samples, tokens) of weights and (samples, tokens x 3, channels) of values."""
    values, weights = RNG.normal(size=(4, 6, 2)), np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    got = metrics.over_positions(values, weights)
    expected = [values[0, :3].mean(0), values[1, 3:].mean(0), values[2].mean(0), [0, 0]]
    np.testing.assert_allclose(got, expected)


def test_weights_that_are_not_about_the_positions_are_left_out() -> None:
    values = RNG.normal(size=(2, 5))
    for weights in (None, np.array([[1, 0], [0, 1]], bool), np.zeros((2, 0), bool)):
        np.testing.assert_allclose(metrics.over_positions(values, weights), values.mean(axis=1))


def test_no_positions_make_zero() -> None:
    assert metrics.over_positions(np.zeros((3, 0, 4)), None).tolist() == np.zeros((3, 4)).tolist()


def test_only_new_nan_and_infinity_count() -> None:
    reference = np.array([1.0, np.nan, -np.inf, 2.0])
    assert metrics.new_nonfinite(reference, np.array([1.0, 5.0, np.nan, 2.0])) == 0
    assert metrics.new_nonfinite(reference, np.array([np.inf, 5.0, np.nan, np.nan])) == 2
    assert metrics.new_nonfinite(np.array([1]), np.array([1])) == 0
    assert metrics.new_nonfinite(np.array(["a"], object), np.array(["b"], object)) == 0
