"""Rounding column after column, against a loop over columns and the inverse of the moment."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.rounding.error_feedback import compensated
from onnxcomp.numerics.rounding.gram import relative_output_error, shrunk

STEP = 0.5


def moments(size: int, groups: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 3 * size, size)) + 2 * rng.standard_normal((groups, 3 * size, 1))
    x *= rng.uniform(0.3, 2, size)
    return shrunk(x.swapaxes(1, 2) @ x / (3 * size))


def on_grid(target: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.rint(target / STEP) * STEP


def by_loop(row: np.ndarray, moment: np.ndarray, width: int, in_order: bool) -> np.ndarray:
    """GPTQ as it is written down: after each column the rest move by the error times a row of the inverse."""
    length = len(row)
    starts = list(range(0, length, width))
    if not in_order:
        starts.sort(key=lambda start: -np.diag(moment)[start : start + width].sum())
    left = [column for start in starts for column in range(start, start + width)]
    w, q = row.astype(np.float64), np.zeros(length)
    while left:
        taken, left = left[:width], left[width:]
        q[taken] = on_grid(w[taken], np.array(taken))
        if left:
            # d over the columns that are free, where those just taken are off by q - w: least of d H d^T.
            inner = np.linalg.solve(moment[np.ix_(left, left)], moment[np.ix_(left, taken)])
            w[left] += inner @ (w[taken] - q[taken])
    return q


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(
    ("length", "width", "groups", "own"), [(12, 1, 1, 1), (70, 1, 2, 2), (12, 3, 2, 1), (72, 4, 1, 1)]
)
def test_is_what_a_loop_gives(length: int, width: int, groups: int, own: int, in_order: bool) -> None:
    moment = moments(length, own)
    matrices = np.random.default_rng(1).standard_normal((groups, 5, length))
    found = compensated(matrices, moment, on_grid, width=width, in_order=in_order)
    expected = [
        [by_loop(row, moment[group % own], width, in_order) for row in matrices[group]] for group in range(groups)
    ]
    # A target that lies within float32's rounding of the middle may go to either side; the seed has none.
    assert np.array_equal(found, np.array(expected))


def test_beats_the_nearest_values_on_average() -> None:
    ratios = []
    for seed in range(12):
        moment = moments(24, 2, seed)
        matrices = np.random.default_rng(seed).standard_normal((2, 8, 24))
        found, nearest = compensated(matrices, moment, on_grid), on_grid(matrices, np.zeros(0))
        of_found, of_nearest = (relative_output_error(matrices, each, moment) for each in (found, nearest))
        ratios.append(of_found / of_nearest)
    assert max(ratios) < 1 and np.mean(ratios) < 0.7


def test_uncorrelated_inputs_leave_the_nearest_values() -> None:
    matrices = np.random.default_rng(0).standard_normal((2, 3, 10)).astype(np.float32)
    moment = np.diag(np.arange(1.0, 11.0))[None]
    assert np.array_equal(compensated(matrices, moment, on_grid), on_grid(matrices, np.zeros(0)))


def test_rounding_is_told_where_its_columns_stand() -> None:
    """A rounding that gives the columns' own numbers puts them back in their places."""
    matrices = np.zeros((2, 3, 8), np.float32)

    def numbered(target: np.ndarray, columns: np.ndarray) -> np.ndarray:
        assert target.shape == (2, 3, 2) and columns.shape == (2, 2)
        assert (columns[:, 0] % 2 == 0).all() and (columns[:, 1] == columns[:, 0] + 1).all()
        return np.broadcast_to(columns[:, None, :], target.shape)

    found = compensated(matrices, moments(8, 2), numbered, width=2)
    assert np.array_equal(found, np.broadcast_to(np.arange(8), (2, 3, 8)))


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width must divide the columns: 3, 8"):
        compensated(np.zeros((1, 2, 8)), moments(8, 1), on_grid, width=3)
