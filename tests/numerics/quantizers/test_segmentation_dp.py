"""onnxcomp.numerics.quantizers.segmentation_dp: the least error of cells in runs, against all ways to cut them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.quantizers import segmentation_dp
from onnxcomp.numerics.quantizers.prefix_sums import Sums
from onnxcomp.numerics.quantizers.segmentation_dp import CutProgram

WAYS = pytest.mark.parametrize("few", [0, 10**6])


def sums_of(values: np.ndarray) -> Sums:
    return tuple(np.concatenate([[0.0], np.cumsum(values**power)]) for power in (0, 1, 2))  # type: ignore[return-value]


def error_of(values: np.ndarray, cuts: np.ndarray) -> float:
    """The squared error of each run around its mean, by a loop."""
    return sum(
        float(np.sum((values[start:end] - values[start:end].mean()) ** 2)) for start, end in itertools.pairwise(cuts)
    )


@WAYS
@pytest.mark.parametrize("seed", range(6))
def test_no_other_cuts_have_less_error(few: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_dp, "FEW_CELLS", few)
    values = np.sort(np.random.default_rng(seed).standard_normal(9))
    program = CutProgram(sums_of(values), 5)
    for runs in range(1, 6):
        for end in range(runs, 10):
            inner = itertools.combinations(range(1, end), runs - 1)
            best = min(error_of(values, np.array([0, *each, end])) for each in inner)
            assert program.errors[runs][end] == pytest.approx(best, abs=1e-12)
            assert error_of(values, program.cuts(runs, end)) == pytest.approx(best, abs=1e-12)
        assert np.isinf(program.errors[runs][:runs]).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 50, 128])
def test_both_ways_find_the_same_error(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.sort(np.random.default_rng(cells).laplace(size=cells))
    found = []
    for few in (0, 10**6):
        monkeypatch.setattr(segmentation_dp, "FEW_CELLS", few)
        found.append(CutProgram(sums_of(values), 32))
    one, other = found
    assert one.most_runs == other.most_runs == min(32, cells)
    for left, right in zip(one.errors, other.errors, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
    for runs in range(1, one.most_runs + 1):
        cuts = other.cuts(runs, cells)
        assert cuts[0] == 0 and cuts[-1] == cells and (np.diff(cuts) > 0).all()
        assert error_of(values, cuts) == pytest.approx(other.errors[runs][cells], abs=1e-8)
