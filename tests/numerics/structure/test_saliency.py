"""Saliencies are what outputs miss, by inputs that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.structure.saliency import SALIENCIES, input_norm, magnitude, second_order

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((500, 6)) @ RNG.standard_normal((6, 6))
MATRICES = RNG.standard_normal((2, 3, 6))
MOMENT = (INPUTS.T @ INPUTS / 500)[None]


def test_magnitude_asks_for_no_inputs() -> None:
    assert np.array_equal(magnitude(MATRICES, MOMENT), np.abs(MATRICES))


def test_input_norm_is_what_dropping_the_value_alone_costs() -> None:
    found = input_norm(MATRICES, MOMENT)
    for group, row, column in np.ndindex(MATRICES.shape):
        missed = MATRICES[group, row, column] * INPUTS[:, column]
        assert found[group, row, column] == pytest.approx(np.sqrt(np.mean(missed**2)))


def test_second_order_is_what_is_missed_after_the_others_made_up_for_it() -> None:
    found = second_order(MATRICES, MOMENT)
    for group, row, column in np.ndindex(MATRICES.shape):
        others = np.delete(INPUTS, column, axis=1)
        wanted = INPUTS @ MATRICES[group, row]
        missed = wanted - others @ np.linalg.lstsq(others, wanted, rcond=None)[0]
        assert found[group, row, column] == pytest.approx(np.sqrt(np.mean(missed**2)))


def test_the_names_are_those_of_the_options() -> None:
    assert list(SALIENCIES) == ["magnitude", "input-norm", "second-order"]
