"""prune-nm: along which axis neighbours stand, what is left alone, and that masks are kept and composed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.registry import get_pass
from tests.passes.revalued import random_weight, revalue


def test_two_of_each_four_along_the_summed_axis() -> None:
    values = np.array([[1, 8], [-2, 7], [3, 6], [-4, 5]], np.float32)  # (K, N): inputs lie along axis 0
    done = revalue(values, ("prune-nm", {}))
    assert done.values.tolist() == [[0, 8], [0, 7], [3, 0], [-4, 0]]
    assert isinstance(done.encoding, MaskEncoding)
    assert done.details["sparsity"] == 0.5


def test_neighbours_of_a_convolution_are_channels_at_one_place_of_the_kernel() -> None:
    values = random_weight(3, 8, 2, 2)
    done = revalue(values, ("prune-nm", {"n": 1, "m": 4}), op="Conv")
    for channel, start, y, x in np.ndindex(3, 2, 2, 2):
        run = slice(4 * start, 4 * start + 4)
        kept = np.flatnonzero(done.values[channel, run, y, x])
        assert kept.tolist() == [int(np.argmax(np.abs(values[channel, run, y, x])))]


def test_a_last_run_may_be_shorter() -> None:
    done = revalue(random_weight(6, 5), ("prune-nm", {"n": 2, "m": 4}))
    assert (np.count_nonzero(done.values, axis=0) == 4).all()
    assert done.values[4:].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (4, 8), (3, 7)])
def test_holds_for_any_n_and_m(dtype: Any, n: int, m: int) -> None:
    done = revalue(random_weight(m * 3, 5, dtype=dtype), ("prune-nm", {"n": n, "m": m}))
    assert done.values.dtype == dtype
    assert (np.count_nonzero(done.values.reshape(3, m, 5), axis=1) == n).all()


def test_zeros_that_are_there_count() -> None:
    values = np.array([[0], [0], [3], [4]], np.float32).repeat(2, axis=1)
    assert revalue(values, ("prune-nm", {})).reason == "it has no more than 2 in each 4 already"


def test_half_of_a_pruned_weight_stays_pruned() -> None:
    values = random_weight(16, 8)
    before = revalue(values, ("prune-weights", {"sparsity": 0.3}))
    after = revalue(values, ("prune-weights", {"sparsity": 0.3}), ("prune-nm", {}))
    assert not after.values[before.values == 0].any()


@pytest.mark.parametrize(
    ("op", "shape", "reason"),
    [
        ("MatMul", (3, 8), "its outputs have 3 inputs, fewer than 4"),
        ("Gather", (8, 8), "its readers have no summed axis in common"),
        ("Conv", (8, 2, 3, 3), "its outputs have 2 inputs, fewer than 4"),
    ],
)
def test_what_has_no_such_neighbours_is_left_alone(op: str, shape: tuple[int, ...], reason: str) -> None:
    assert revalue(random_weight(*shape), ("prune-nm", {}), op=op).reason == reason


def test_n_is_less_than_m() -> None:
    with pytest.raises(ParameterError, match="n must be less than m = 4, got 4"):
        get_pass("prune-nm")(n=4)
