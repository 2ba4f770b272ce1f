"""binarize-weights: values by hand, and what pruned weights keep."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.passes.revalued import random_weight, revalue

NAME = "binarize-weights"


def test_each_output_channel_has_its_mean_magnitude() -> None:
    done = revalue(np.array([[4, 1], [-2, -1], [3, 4]], np.float32), (NAME, {}))
    assert done.values.tolist() == [[3, 2], [-3, -2], [3, 2]]
    assert done.codes is not None
    assert done.codes.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_one_mean_for_the_whole() -> None:
    done = revalue(np.array([[4, 1], [-2, -1]], np.float32), (NAME, {"granularity": "tensor"}))
    assert done.values.tolist() == [[2, 2], [-2, -2]]
    assert done.details["error"] == pytest.approx((4 + 1 + 0 + 1) / 22)


def test_zeros_take_part_where_the_weight_is_not_pruned() -> None:
    done = revalue(np.array([[4], [0], [0], [-4]], np.float32), (NAME, {}))
    assert done.values.ravel().tolist() == [2, -2, -2, -2]


def test_small_values_of_a_pruned_weight_take_the_sign_too() -> None:
    values = np.array([[8], [-1], [0.5], [0.25]], np.float32)
    done = revalue(values, ("prune-weights", {"sparsity": 0.25}), (NAME, {}))
    scale = np.float32(9.5) / 3
    assert done.values.ravel() == pytest.approx([scale, -scale, scale, 0])
    assert done.values[3, 0] == 0
    assert done.codes is not None


def test_zero_channels_stay_zero() -> None:
    done = revalue(np.array([[0, 1], [0, -1]], np.float32), (NAME, {}))
    assert done.values.tolist() == [[0, 1], [0, -1]]
    assert done.codes is not None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_stay(dtype: Any) -> None:
    done = revalue(random_weight(9, 4, dtype=dtype), (NAME, {}))
    assert done.values.dtype == dtype
    assert done.codes is not None


def test_no_channels_no_scales() -> None:
    assert "channel axis" in revalue(random_weight(3, 4), (NAME, {}), op="Add").reason
