"""Errors of rewritten values against loops over channels in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.metrics.weight_error import channel_error, relative_error, whole_and_channel_error

Array = NDArray[Any]


def by_loop(reference: Array, values: Array, axis: int) -> float:
    """The mean of the channels' own errors, one channel after the other."""
    errors = []
    for channel in range(reference.shape[axis]):
        old, new = (np.take(each, channel, axis).astype(np.float64) for each in (reference, values))
        if np.any(old):
            errors.append(np.square(new - old).sum() / np.square(old).sum())
    return float(np.mean(errors)) if errors else 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 5), 0), ((3, 5), 1), ((700, 130), 0), ((700, 130), 1), ((2, 90_000), 0), ((90_000, 2), 1), ((40_000, 3), 0),
     ((8, 6, 5, 5), 0), ((8, 600, 5, 5), 1), ((4, 1, 3, 3), 1)],
)  # fmt: skip
def test_one_pass_gives_what_loops_give(shape: tuple[int, ...], axis: int, dtype: Any) -> None:
    rng = np.random.default_rng(len(shape) + axis)
    reference = (rng.standard_normal(shape) * np.exp(rng.normal(0, 1, shape[axis])[0])).astype(dtype)
    reference[(slice(None),) * axis + (0,)] = 0
    values = (reference + rng.normal(0, 0.1, shape)).astype(dtype)
    told = whole_and_channel_error(reference, values, axis=axis)
    if not np.any(reference):
        assert told == (0.0, 0.0)
        return
    whole = np.square(values.astype(np.float64) - reference).sum() / np.square(reference.astype(np.float64)).sum()
    wanted = by_loop(reference, values, axis)
    assert relative_error(reference, values) == pytest.approx(whole, rel=1e-12)
    assert told == pytest.approx((whole, wanted), rel=1e-12)
    assert channel_error(reference, values, axis=axis) == told[1]
