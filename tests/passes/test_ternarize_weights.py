"""ternarize-weights: values by hand, against a search over thresholds, and what is left alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.passes.revalued import random_weight, revalue

NAME = "ternarize-weights"


def test_each_output_channel_has_its_scale() -> None:
    values = np.array([[4, 10], [-4, 1], [1, 0], [0, -2]], np.float32)
    done = revalue(values, (NAME, {}))
    assert done.values.tolist() == [[4, 10], [-4, 0], [0, 0], [0, 0]]
    assert done.codes is not None
    assert done.codes.tolist() == [[2, 2], [0, 1], [1, 1], [1, 1]]


def test_rows_are_the_channels_of_a_transposed_gemm() -> None:
    done = revalue(np.array([[4, -4, 1, 0], [10, 1, 0, -2]], np.float32), (NAME, {}), op="Gemm")
    assert done.values.tolist() == [[4, -4, 0, 0], [10, 0, 0, 0]]


def test_one_scale_for_the_whole() -> None:
    done = revalue(np.array([[6, 1], [-8, -1]], np.float32), (NAME, {"granularity": "tensor"}))
    assert done.values.tolist() == [[7, 0], [-7, 0]]
    # (1 + 1 + 1 + 1) of 36 + 1 + 64 + 1
    assert done.details["error"] == pytest.approx(4 / 102)


def test_no_threshold_does_better() -> None:
    values = random_weight(40, 1)
    error = float(np.square(revalue(values, (NAME, {})).values - values).sum())
    for threshold in np.linspace(0, np.abs(values).max() * 0.999, 200):
        kept = np.abs(values) > threshold
        other = np.where(kept, np.sign(values) * np.abs(values[kept]).mean(), 0)
        assert error <= float(np.square(other - values).sum()) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_stay(dtype: Any) -> None:
    done = revalue(random_weight(9, 4, dtype=dtype), (NAME, {}))
    assert done.values.dtype == dtype
    assert done.codes is not None
    assert all(len(np.unique(np.abs(column.astype(np.float64)))) <= 2 for column in done.values.T)


def test_no_channels_no_scales() -> None:
    assert "channel axis" in revalue(random_weight(3, 4), (NAME, {}), op="Add").reason
    assert not revalue(random_weight(3, 4), (NAME, {"granularity": "tensor"}), op="Add").outcome.skipped


def test_least_numbers_of_float16_are_kept() -> None:
    values = np.array([[6e-8, 0], [0, 6e-8]], np.float16)
    done = revalue(values, (NAME, {}))
    assert done.codes is not None
    assert done.values.tolist() == values.tolist()
