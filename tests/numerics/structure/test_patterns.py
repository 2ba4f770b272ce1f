"""Which values stay: the share of all, of rows, above a threshold, and n of each m, by a naive count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from onnxcomp.numerics.structure.patterns import AtLeast, OfEach, Pattern, ShareOfAll, ShareOfRows

WORTHS = some.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(0, 3, width=16),  # few values, so that many are equal
)


@given(WORTHS, st.floats(0, 1))
def test_share_of_all_is_exact_and_keeps_what_is_worth_most(worth: np.ndarray, sparsity: float) -> None:
    kept = ShareOfAll(sparsity).kept(worth)
    assert kept.shape == worth.shape
    assert (~kept).sum() == round(sparsity * worth.size)
    if kept.any() and not kept.all():
        assert worth[kept].min() >= worth[~kept].max()


@given(WORTHS, st.floats(0, 1))
def test_share_of_rows_holds_for_each_row(worth: np.ndarray, sparsity: float) -> None:
    kept = ShareOfRows(sparsity).kept(worth)
    for group, row in np.ndindex(worth.shape[:2]):
        alone = ShareOfAll(sparsity).kept(worth[group : group + 1, row : row + 1])
        assert np.array_equal(kept[group, row], alone[0, 0])


@given(st.data(), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(1, 11))
def test_n_of_each_m_are_the_most_worth_of_their_neighbours(
    data: st.DataObject, n: int, m: int, inner: int, inputs: int
) -> None:
    worth = data.draw(some.arrays(np.float32, (2, 2, inputs * inner), elements=st.floats(0, 3, width=16)))
    kept = OfEach(n, m, inner).kept(worth)
    for group, row, start, place in np.ndindex(2, 2, -(-inputs // m), inner):
        run = np.arange(start * m, min((start + 1) * m, inputs)) * inner + place
        own, stay = worth[group, row, run], kept[group, row, run]
        assert stay.sum() == min(n, run.size)
        if stay.any() and not stay.all():
            assert own[stay].min() >= own[~stay].max()


def test_a_threshold_keeps_what_is_worth_it() -> None:
    assert AtLeast(2).kept(np.array([[[1.0, 2.0, 3.0]]])).tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("pattern", [ShareOfAll(0.5), ShareOfRows(0.5)])
def test_of_equals_the_later_stay(pattern: Pattern) -> None:
    assert pattern.kept(np.ones((1, 1, 4))).tolist() == [[[False, False, True, True]]]


def test_runs_that_cannot_be_parted_are_as_wide_as_m_inputs() -> None:
    assert (OfEach(2, 4, 9).width, ShareOfAll(0.5).width) == (36, 1)
