"""quantize-weights: grids by hand, granularity, and what is left alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.numerics.encoding import GridEncoding
from onnxcomp.registry import get_pass
from tests.passes.revalued import Revalued, random_weight, revalue

NAME = "quantize-weights"
PLAIN = {"search_range": False}


def grid(done: Revalued) -> GridEncoding:
    assert isinstance(done.encoding, GridEncoding)
    return done.encoding


def test_symmetric_grid_for_each_output_channel() -> None:
    values = np.array([[7, 0.7], [-3.4, 0.14], [0.6, -0.36], [0, 0]], np.float32)
    done = revalue(values, (NAME, {"bits": 4, **PLAIN}))
    assert done.values == pytest.approx(np.array([[7, 0.7], [-3, 0.1], [1, -0.4], [0, 0]]), rel=1e-6)
    assert grid(done).scale is not None
    assert grid(done).scale == pytest.approx(np.array([[1, 0.1]]))
    assert np.array_equal(grid(done).zero_point, [[8, 8]])
    assert done.codes is not None
    assert done.codes.tolist() == [[15, 15], [5, 9], [9, 4], [8, 8]]


def test_asymmetric_grid_for_the_whole() -> None:
    values = np.array([[-5, 250], [20.4, 0]], np.float32)
    done = revalue(values, (NAME, {"bits": 8, "granularity": "tensor", "symmetric": False, **PLAIN}))
    assert done.values.tolist() == [[-5, 250], [20, 0]]
    assert done.codes is not None
    assert done.codes.tolist() == [[0, 255], [25, 5]]


def test_blocks_run_along_the_summed_axis() -> None:
    values = np.array([[3, 300], [1, 100], [30, 3], [10, 1]], np.float32)
    done = revalue(values, (NAME, {"bits": 3, "granularity": "block", "block_size": 2, **PLAIN}))
    assert grid(done).axis == 0
    assert grid(done).scale is not None
    assert np.squeeze(grid(done).scale).tolist() == [[1, 100], [10, 1]]
    assert done.values.tolist() == values.tolist()


def test_blocks_of_a_table_run_along_its_rows() -> None:
    done = revalue(random_weight(5, 8), (NAME, {"bits": 4, "granularity": "block", "block_size": 4}), op="Gather")
    assert grid(done).axis == 1


def test_search_makes_the_error_less() -> None:
    values = random_weight(4096, 4)
    plain = revalue(values, (NAME, {"bits": 3, **PLAIN})).details["error"]
    found = revalue(values, (NAME, {"bits": 3})).details["error"]
    assert found < 0.5 * plain
    # Eight equal steps for a normal distribution leave 0.0374 (Max 1960), there with zero between two levels.
    assert found == pytest.approx(0.044, rel=0.1)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_other_float_types_stay(bits: int, dtype: Any, granularity: str) -> None:
    fields = {"bits": bits, "granularity": granularity, "block_size": 8}
    done = revalue(random_weight(32, 8, dtype=dtype), (NAME, fields))
    assert done.values.dtype == dtype
    assert done.codes is not None
    assert done.details["bits"] == bits


def test_what_has_few_levels_is_left_alone() -> None:
    steps = (NAME, {"bits": 4}), (NAME, {"bits": 5})
    assert revalue(random_weight(32, 8), *steps).reason == "it already has no more than 32 levels"
    again = revalue(random_weight(32, 8), (NAME, {"bits": 4}), (NAME, {"bits": 3}))
    assert again.details["bits"] == 3


def test_reasons() -> None:
    blocks = {"granularity": "block", "block_size": 32}
    assert "channel axis" in revalue(random_weight(3, 4), (NAME, {}), op="Add").reason
    assert "summed axis" in revalue(random_weight(3, 4), (NAME, blocks), op="Add").reason
    assert revalue(random_weight(33, 4), (NAME, blocks)).reason == "blocks of 32 do not divide its axis of 33"


def test_excluded_weights_stay() -> None:
    values = random_weight(8, 8)
    assert np.array_equal(revalue(values, (NAME, {"bits": 2}), exclude=("w",)).values, values)


def test_refuses_nine_bits() -> None:
    with pytest.raises(ParameterError, match="quantize-weights: bits must be"):
        get_pass(NAME)(bits=9)
