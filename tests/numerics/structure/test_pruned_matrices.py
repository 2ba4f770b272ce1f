"""Pruning by a criterion: which importance is meant, what is fitted, and what shares of zeros are said to cost."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.structure import pruned_matrices
from onnxcomp.numerics.structure.patterns import AtLeast, ShareOfAll
from onnxcomp.numerics.structure.pruned_matrices import Criterion, PrunedMatrices
from onnxcomp.numerics.structure.saliency import SALIENCIES

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((300, 12)) @ RNG.standard_normal((12, 12)) + 1
MOMENT = (INPUTS.T @ INPUTS / 300)[None]
MATRICES = RNG.standard_normal((1, 10, 12))
HALF = ShareOfAll(0.5)


def output_error(found: np.ndarray) -> float:
    """Of the outputs, from the inputs themselves."""
    wanted = INPUTS @ MATRICES[0].T
    return float(np.square(INPUTS @ found[0].T - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("importance", list(SALIENCIES))
def test_without_compensation_values_stay_what_they_were(importance: str) -> None:
    problem = PrunedMatrices(MATRICES, MOMENT)
    found = problem.pruned(Criterion(importance, compensate=False), HALF)
    kept = HALF.kept(SALIENCIES[importance](MATRICES, MOMENT))
    assert np.array_equal(found, np.where(kept, MATRICES, 0))
    assert problem.error(found) == pytest.approx(output_error(found))
    fitted = problem.pruned(Criterion(importance), HALF)
    assert output_error(fitted) < 0.7 * output_error(found)


def test_auto_is_second_order_where_inputs_are_known_else_magnitude() -> None:
    by_data, by_size = PrunedMatrices(MATRICES, MOMENT), PrunedMatrices(MATRICES)
    second = by_data.pruned(Criterion("second-order"), HALF)
    assert np.array_equal(by_data.pruned(Criterion(), HALF), second)
    largest = np.where(HALF.kept(np.abs(MATRICES)), MATRICES, 0)
    assert np.array_equal(by_size.pruned(Criterion(), HALF), largest)


def test_a_threshold_is_of_what_outputs_miss() -> None:
    problem = PrunedMatrices(MATRICES, MOMENT)
    worth = SALIENCIES["second-order"](MATRICES, MOMENT)
    found = problem.pruned(Criterion(), AtLeast(float(np.median(worth))))
    assert np.array_equal(found != 0, worth >= np.median(worth))


def test_inputs_that_have_nothing_in_common_count_by_their_power() -> None:
    power = np.geomspace(1, 100, 12)
    problem = PrunedMatrices(MATRICES, power=power)
    found = problem.pruned(Criterion(), HALF)
    assert np.array_equal(found != 0, HALF.kept(np.abs(MATRICES) * np.sqrt(power)))
    missed = np.where(found == 0, MATRICES, 0)
    assert problem.error(found) == pytest.approx(np.sum(power * missed**2) / np.sum(power * MATRICES**2))


def test_shares_cost_more_the_more_they_are_and_count_what_varies() -> None:
    shares = (0.3, 0.6, 0.9)
    errors = PrunedMatrices(MATRICES, MOMENT).errors(Criterion(), shares)
    assert errors == sorted(errors) and errors[0] > 0 and errors[-1] < 1
    mean = INPUTS.mean(axis=0)[None]
    outputs = INPUTS @ MATRICES[0].T
    varying = np.var(outputs, axis=0).sum() / np.square(outputs).mean(axis=0).sum()
    again = PrunedMatrices(MATRICES, MOMENT, mean=mean).errors(Criterion(), shares)
    assert again == pytest.approx([each / varying for each in errors])


@pytest.mark.parametrize("groups", [1, 6])
def test_some_rows_tell_about_what_all_do(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = np.random.default_rng(3).standard_normal((groups, 60, 12))
    moment = MOMENT if groups == 1 else np.repeat(MOMENT, groups, axis=0)
    (whole,) = PrunedMatrices(matrices, moment).errors(Criterion(), (0.6,))
    monkeypatch.setattr(pruned_matrices, "SAMPLED", 20 * 12)
    (some,) = PrunedMatrices(matrices, moment).errors(Criterion(), (0.6,))
    assert some != whole
    assert some == pytest.approx(whole, rel=0.4)


def test_values_out_of_all_measure_are_not_taken() -> None:
    """Two inputs that are the same but for rounding: weights of huge size and opposite sign would fit best."""
    wild = PrunedMatrices(np.array([[[1.0, 2.0]]]), np.eye(2)[None])
    assert np.array_equal(wild._sane(np.array([[[1e6, 0.0]]])), [[[1.0, 0.0]]])
    assert np.array_equal(wild._sane(np.array([[[1e2, 0.0]]])), [[[1e2, 0.0]]])
