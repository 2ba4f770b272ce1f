"""The best values under a mask, held against numpy's least squares row by row."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.structure import masked_least_squares
from onnxcomp.numerics.structure.masked_least_squares import best_under_mask


def problem(groups: int, moments: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (m, samples, k) that depend on each other, matrices (g, r, k), a mask of about half."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((moments, 60, 9)) @ rng.standard_normal((9, 9))
    return inputs, rng.standard_normal((groups, 5, 9)), rng.random((groups, 5, 9)) < 0.5


@pytest.mark.parametrize(("groups", "moments"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("chunk", [2**22, 18])
def test_is_the_least_squares_of_each_row(
    groups: int, moments: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.numerics.rounding.coordinate_descent.CHUNK_VALUES", chunk)
    inputs, matrices, kept = problem(groups, moments)
    found = best_under_mask(matrices, inputs.swapaxes(1, 2) @ inputs / inputs.shape[1], kept)
    for group, row in np.ndindex(groups, 5):
        own, x = kept[group, row], inputs[group % moments]
        wanted = np.linalg.lstsq(x[:, own], x @ matrices[group, row], rcond=None)[0]
        assert found[group, row, own] == pytest.approx(wanted, rel=1e-3, abs=1e-3)
        missed, least = (np.square(x[:, own] @ each - x @ matrices[group, row]).mean() for each in
                         (found[group, row, own], wanted))  # fmt: skip
        assert missed <= least + 1e-6 * np.square(x @ matrices[group, row]).mean()
        assert not found[group, row, ~own].any()


def test_nothing_masked_changes_nothing_and_all_masked_leaves_zero() -> None:
    inputs, matrices, kept = problem(1, 1)
    moment = inputs.swapaxes(1, 2) @ inputs
    assert best_under_mask(matrices, moment, np.ones_like(kept)) == pytest.approx(matrices)
    assert not best_under_mask(matrices, moment, np.zeros_like(kept)).any()


def test_scale_of_inputs_makes_no_difference() -> None:
    inputs, matrices, kept = problem(1, 1)
    moment = inputs.swapaxes(1, 2) @ inputs
    found = best_under_mask(matrices, moment, kept)
    assert best_under_mask(matrices, 1e-12 * moment, kept) == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_ends_by_itself_long_before_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, matrices, kept = problem(1, 1)
    moment = inputs.swapaxes(1, 2) @ inputs
    found = best_under_mask(matrices, moment, kept)
    monkeypatch.setattr(masked_least_squares, "MOST_STEPS", 40)
    assert np.array_equal(best_under_mask(matrices, moment, kept), found)
