"""cluster-weights: levels by hand, the choice of scales and bits, vectors, and what is left alone."""

from __future__ import annotations

from typing import Any

import kmeans1d
import ml_dtypes
import numpy as np
import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, VectorEncoding
from onnxcomp.registry import get_pass
from tests.passes.revalued import random_weight, revalue

NAME = "cluster-weights"


def uneven(channels: int, n: int) -> np.ndarray:
    """A Gemm weight (channels, n) whose channels differ in size by orders of magnitude."""
    return random_weight(channels, n) * np.logspace(-3, 3, channels, dtype=np.float32)[:, None]


def test_levels_by_hand() -> None:
    values = np.array([[1, 1.5, 10], [2, 11, 1.5], [12, 11, 11]], np.float32)
    done = revalue(values, (NAME, {"bits": 1}))
    assert done.values.tolist() == [[1.5, 1.5, 11], [1.5, 11, 1.5], [11, 11, 11]]
    assert done.codes is not None
    assert done.codes.tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_one_codebook_is_optimal(bits: int) -> None:
    values = random_weight(60, 50)
    done = revalue(values, (NAME, {"bits": bits, "granularity": "tensor"}))
    exact = kmeans1d.cluster(values.astype(np.float64).ravel(), 2**bits)
    best = np.array(exact.centroids)[np.array(exact.clusters)]
    assert len(np.unique(done.values)) <= 2**bits
    error = np.square(done.values.ravel().astype(np.float64) - values.ravel()).sum()
    assert error <= 1.001 * np.square(best - values.ravel()).sum()


def test_auto_takes_scales_where_channels_differ() -> None:
    done = revalue(uneven(16, 400), (NAME, {"bits": 4}), op="Gemm")
    assert isinstance(done.encoding, CodebookEncoding)
    assert done.encoding.scale is not None
    assert done.encoding.scale.shape == (16, 1)
    assert done.encoding.axis == 0
    assert done.codes is not None


def test_auto_takes_no_scales_where_they_do_not_pay() -> None:
    done = revalue(random_weight(64, 20), (NAME, {"bits": 4}), op="Gemm")
    assert isinstance(done.encoding, CodebookEncoding)
    assert done.encoding.scale is None
    assert done.encoding.axis is None


@pytest.mark.parametrize(("op", "shape", "scales"), [("MatMul", (40, 6), (1, 6)), ("Conv", (6, 5, 3, 3), (6, 1, 1, 1))])
def test_scales_follow_the_output_channels(op: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    done = revalue(random_weight(*shape), (NAME, {"bits": 3, "granularity": "channel"}), op=op)
    assert isinstance(done.encoding, CodebookEncoding)
    assert done.encoding.scale is not None
    assert done.encoding.scale.shape == scales
    assert done.codes is not None


def test_fewest_bits_that_reach_the_error() -> None:
    values = random_weight(100, 100)
    done = revalue(values, (NAME, {"bits": 8, "target_error": 0.02, "granularity": "tensor"}))
    # A normal distribution loses 0.0345 of its power at 8 levels, 0.0095 at 16 (Max 1960).
    assert done.details["bits"] == 4
    assert done.details["error"] == pytest.approx(0.0095, rel=0.05)
    done = revalue(values, (NAME, {"bits": 3, "target_error": 0.02}))
    assert done.reason.startswith("3 bits leave a relative error of 0.03")


def test_zero_is_kept_on_request() -> None:
    values = random_weight(30, 30) + 1
    values[::2] = 0
    done = revalue(values, (NAME, {"bits": 2, "keep_zero": True}))
    assert np.all(done.values[::2] == 0)
    assert done.codes is not None


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_other_float_types_stay(bits: int, dtype: Any, granularity: str) -> None:
    values = random_weight(64, 32, dtype=dtype)
    done = revalue(values, (NAME, {"bits": bits, "granularity": granularity}))
    assert done.values.dtype == dtype
    assert done.codes is not None
    assert done.encoding is not None
    assert done.encoding.level_count <= 2**bits


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vectors_along_the_summed_axis(dtype: Any) -> None:
    pairs = np.array([[1, 2], [-3, 4], [5, 0], [0, 0]], dtype)
    codes = np.random.default_rng(0).integers(0, 4, (6, 5))
    values = np.moveaxis(pairs[codes], 2, 1).reshape(12, 5)
    done = revalue(values, (NAME, {"bits": 2, "vector_size": 2}))
    assert isinstance(done.encoding, VectorEncoding)
    assert done.encoding.axis == 0
    assert np.array_equal(done.values, values)
    noisy = revalue((values + random_weight(12, 5) / 100).astype(dtype), (NAME, {"bits": 2, "vector_size": 2}))
    assert noisy.values == pytest.approx(values.astype(np.float32), abs=0.03)
    assert noisy.codes is not None


def test_the_same_seed_gives_the_same_vectors() -> None:
    values = random_weight(32, 32)
    fields = {"bits": 4, "vector_size": 2}
    assert np.array_equal(
        revalue(values, (NAME, fields), seed=3).values, revalue(values, (NAME, fields), seed=3).values
    )


def test_dead_and_nearly_dead_channels_do_no_harm() -> None:
    values = random_weight(8, 64)
    values[0], values[1], values[2] = 0, values[1] * 1e-38, values[2] * 1e-44
    done = revalue(values, (NAME, {"bits": 4, "granularity": "channel"}), op="Gemm")
    assert np.all(done.values[0] == 0)
    assert np.abs(done.values[1:3]).max() < 1e-29
    assert np.square(done.values[3:] - values[3:]).mean() < 0.013
    assert done.codes is not None


@pytest.mark.parametrize(
    ("fields", "op", "reason"),
    [
        ({"bits": 8}, "MatMul", "too few for 256 levels"),
        ({"bits": 2, "granularity": "channel"}, "Add", "channel axis"),
        ({"bits": 1, "vector_size": 3}, "MatMul", "vectors of 3 do not divide its axis of 4"),
        ({"bits": 1, "vector_size": 2}, "Add", "summed axis"),
        ({"bits": 1, "vector_size": 8}, "MatMul", "too few"),
    ],
)
def test_reasons(fields: dict[str, Any], op: str, reason: str) -> None:
    assert reason in revalue(random_weight(4, 4), (NAME, fields), op=op).reason


def test_what_has_few_levels_is_left_alone() -> None:
    values = random_weight(32, 8)
    assert "already" in revalue(values, (NAME, {"bits": 4}), (NAME, {"bits": 4})).reason
    assert revalue(values, (NAME, {"bits": 4}), (NAME, {"bits": 3})).details["bits"] == 3


@pytest.mark.parametrize("fields", [{"keep_zero": True}, {"granularity": "channel"}])
def test_vectors_have_neither_scales_nor_zero(fields: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="vector_size must be 1"):
        get_pass(NAME)(vector_size=2, **fields)
