"""By what errors in inputs are weighed: shrinkage against the true covariance, shares of rows by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.structure.whitening import LEAST_SHRINKAGE, input_weights, oracle_shrinkage, row_shares


@pytest.mark.parametrize("samples", [10, 30, 100])
def test_shrinkage_is_near_the_best_there_is(samples: int) -> None:
    """Over draws of a known covariance, the error is within a tenth of that of the best amount."""
    random = np.random.default_rng(0)
    size = 20
    true = np.diag(0.9 ** np.arange(size))
    amounts = np.linspace(0, 1, 101)
    chosen, errors = [], np.zeros(len(amounts))
    for _ in range(40):
        rows = random.standard_normal((samples, size)) * np.sqrt(np.diag(true))
        seen = rows.T @ rows / samples
        middle = np.trace(seen) / size * np.eye(size)
        losses = [float(np.sum(((1 - a) * seen + a * middle - true) ** 2)) for a in amounts]
        errors += losses
        amount = oracle_shrinkage(seen, samples)
        chosen.append(float(np.sum(((1 - amount) * seen + amount * middle - true) ** 2)))
    assert np.mean(chosen) < 1.1 * errors.min() / 40


def test_fewer_samples_are_shrunk_more() -> None:
    covariance = np.diag(0.8 ** np.arange(10))
    amounts = [oracle_shrinkage(covariance, samples) for samples in (5, 50, 500)]
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[1] < 1


def test_alike_directions_are_the_identity() -> None:
    assert oracle_shrinkage(np.eye(4), 100) == 1.0
    assert oracle_shrinkage(np.zeros((4, 4)), 100) == 1.0


def test_weights_are_positive_and_of_the_same_power() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((3, 6)) @ random.standard_normal((6, 6)) + 2  # fewer rows than inputs
    gram, mean = (rows.T @ rows / 3)[None], rows.mean(axis=0)[None]
    for center in (None, mean):
        found = input_weights(gram, 3, center)
        spread = gram if center is None else gram - center[:, :, None] * center[:, None, :]
        assert np.linalg.eigvalsh(found[0]).min() > 0
        assert np.trace(found[0]) == pytest.approx(np.trace(spread[0]))


def test_inputs_that_never_fired_count_a_little() -> None:
    gram = np.diag([1.0, 0.0])[None]
    assert input_weights(gram, 10**6)[0, 1, 1] == pytest.approx(LEAST_SHRINKAGE / 2, rel=0.01)


def test_rows_not_seen_share_what_those_seen_once_tell() -> None:
    shares = row_shares(np.array([5.0, 1.0, 2.0, 0.0, 0.0]))  # one of eight looks met a row for the first time
    assert shares == pytest.approx([7 / 8 * 5 / 8, 7 / 8 / 8, 7 / 8 * 2 / 8, 1 / 16, 1 / 16])
    assert row_shares(np.zeros(4)).tolist() == [0.25] * 4
    assert row_shares(np.array([3.0, 1.0])) == pytest.approx([0.75, 0.25])
    assert row_shares(np.array([1.0, 0.0])) == pytest.approx([0.5, 0.5])
