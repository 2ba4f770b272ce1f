"""The quadratic form of output errors, against explicit least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from onnxcomp.numerics.rounding.gram import (
    best_weights,
    feedback,
    output_error,
    relative_output_error,
    removal_cost,
    shrunk,
    shrunk_by_count,
)


def columns(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs (count, size)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) @ np.triu(rng.uniform(0.2, 1, (size, size)))


def moment_of(x: np.ndarray) -> np.ndarray:
    return (x.T @ x / len(x))[None]


def test_shrunk_keeps_the_trace_and_bears_silent_inputs() -> None:
    gram = np.stack([np.diag([2.0, 0.0]), np.zeros((2, 2)), np.array([[1.0, 3.0], [3.0, 9.0]])])
    expected = [[[1.9 * 1 + 0.1 * 0.5, 0], [0, 0.05]], [[1, 0], [0, 1]], [[0.95 + 0.25, 2.85], [2.85, 8.55 + 0.25]]]
    assert shrunk(gram, 0.05) == pytest.approx(np.array(expected))
    assert np.linalg.eigvalsh(shrunk(gram)).min() > 0
    assert gram[0, 1, 1] == 0  # the argument stays


def test_feedback_takes_the_moment_apart() -> None:
    moment = shrunk(np.concatenate([moment_of(columns(40, 7, seed)) for seed in range(3)]))
    upper, power = feedback(moment)
    assert np.array_equal(np.tril(upper, -1), np.zeros_like(upper))
    assert np.diagonal(upper, axis1=1, axis2=2) == pytest.approx(np.ones((3, 7)))
    again = upper @ (power[:, :, None] * upper.swapaxes(1, 2))
    assert again == pytest.approx(moment, rel=1e-4, abs=1e-5)


def test_feedback_is_what_each_column_should_make_up() -> None:
    """With errors on the first columns, the best value of column k with all later ones free is w_k + e U."""
    moment = shrunk(moment_of(columns(60, 6)), 0.05)
    upper, power = feedback(moment)
    errors = np.array([0.3, -0.2])
    # Minimize d H d^T over d_2 .. d_5, where d = q - w and d_0, d_1 are given.
    fixed, free = slice(0, 2), slice(2, 6)
    rest = np.linalg.solve(moment[0, free, free], moment[0, free, fixed] @ errors)
    assert rest[0] == pytest.approx(errors @ upper[0, fixed, 2], rel=1e-4)
    full = np.concatenate([-errors, rest])
    errors_cost = power[0, 0] * errors[0] ** 2 + power[0, 1] * (errors[1] + errors[0] * upper[0, 0, 1]) ** 2
    assert full @ moment[0] @ full == pytest.approx(errors_cost, rel=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_best_weights_are_ridge_regression(shared: bool) -> None:
    rng = np.random.default_rng(1)
    before = [columns(50, 5, seed) for seed in (1, 2)]
    after = [x + 0.3 * rng.standard_normal(x.shape) for x in before]
    if shared:
        before[1], after[1] = before[0], after[0]
    matrices = rng.standard_normal((2, 3, 5))
    number = 1 if shared else 2
    gram = np.concatenate([moment_of(x) for x in after[:number]])
    cross = np.concatenate([(x.T @ z / len(x))[None] for x, z in zip(before, after, strict=True)][:number])
    found = best_weights(matrices, gram, cross, 0.1)
    for group, row in np.ndindex(2, 3):
        ridge = 0.1 * np.trace(gram[0 if shared else group]) / 5
        # sqrt(0.9 / n) (x w - z v) and sqrt(ridge) (w - v), in one least-squares problem for v.
        share = np.sqrt(0.9 / 50)
        system = np.concatenate([share * after[group], np.sqrt(ridge) * np.eye(5)])
        wanted = np.concatenate([share * before[group] @ matrices[group, row], np.sqrt(ridge) * matrices[group, row]])
        assert found[group, row] == pytest.approx(lsq_linear(system, wanted).x, rel=1e-6, abs=1e-8)


def test_best_weights_stay_where_nothing_changed_or_nothing_comes_in() -> None:
    matrices = np.random.default_rng(0).standard_normal((2, 3, 4))
    gram = np.concatenate([moment_of(columns(30, 4)), np.zeros((1, 4, 4))])
    assert best_weights(matrices, gram, gram) == pytest.approx(matrices)


@pytest.mark.parametrize("groups", [1, 2])
def test_removal_costs_what_constrained_least_squares_leaves(groups: int) -> None:
    moment = shrunk(np.concatenate([moment_of(columns(40, 5, seed)) for seed in range(groups)]))
    matrices = np.random.default_rng(2).standard_normal((2, 3, 5))
    cost = removal_cost(matrices, moment)
    for group, row, column in np.ndindex(2, 3, 5):
        form, w = moment[group % groups], matrices[group, row]
        others = [k for k in range(5) if k != column]
        moved = -np.linalg.solve(form[np.ix_(others, others)], form[others, column]) * -w[column]
        difference = np.zeros(5)
        difference[column], difference[others] = -w[column], moved
        assert cost[group, row, column] == pytest.approx(difference @ form @ difference)


def test_errors_are_those_of_the_outputs() -> None:
    x = columns(200, 6)
    rng = np.random.default_rng(3)
    w, q = rng.standard_normal((2, 2, 3, 6))
    error, power = (np.square(x @ each.reshape(6, 6).T).sum() for each in (q - w, w))
    assert output_error(q - w, moment_of(x)) == pytest.approx(error / 200)
    assert relative_output_error(w, q, moment_of(x)) == pytest.approx(error / power)
    assert relative_output_error(np.zeros_like(w), q, moment_of(x)) == 0


def seen(count: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of mean 2 and uneven spread: the true moment, and Gram matrix and mean of ``count`` of them."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((length, length)) * np.geomspace(1, 0.1, length)
    x = 2 + rng.standard_normal((count, length)) @ mixing.T
    return 4 + mixing @ mixing.T, (x.T @ x / count)[None], x.mean(axis=0)[None]


@pytest.mark.parametrize("count", [10, 20, 40, 400])
def test_fewer_inputs_are_shrunk_more_and_come_nearer_to_the_truth(count: int) -> None:
    """Errors told by 20 columns, over ten draws: nearer to the truth than without shrinkage."""
    better = 0.0
    for seed in range(10):
        true, gram, mean = seen(count, 20, seed)
        difference = np.random.default_rng(99).standard_normal((1, 200, 20))
        wanted = np.einsum("grk,kl,grl->gr", difference, true, difference)
        errors = [
            np.mean(np.log(np.einsum("grk,gkl,grl->gr", difference, each, difference) / wanted) ** 2)
            for each in (gram + 1e-9 * np.eye(20), shrunk_by_count(gram, mean, count))
        ]
        better += (errors[0] - errors[1]) / errors[0]
    assert better > (0 if count < 400 else -1)


def test_shrinking_keeps_power_and_mean_and_leaves_much_data_alone() -> None:
    _, gram, mean = seen(30, 20)
    found = shrunk_by_count(gram, mean, 30)
    assert np.trace(found[0]) == pytest.approx(np.trace(gram[0]))
    assert np.linalg.eigvalsh(found).min() > 0
    many = shrunk_by_count(gram, mean, 1e9)
    spread = gram[0] - np.outer(mean, mean)
    off = ~np.eye(20, dtype=bool)
    assert (many[0] - np.outer(mean, mean))[off] == pytest.approx(0.97 * spread[off])  # the least shrinkage


def test_inputs_that_say_nothing_give_a_form_all_the_same() -> None:
    zero, constant = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    assert np.array_equal(shrunk_by_count(zero, np.zeros((1, 4)), 5.0)[0], np.eye(4))
    assert np.linalg.eigvalsh(shrunk_by_count(constant, np.ones((1, 4)), 5.0)).min() > 0
    assert np.linalg.eigvalsh(shrunk_by_count(3 * np.ones((1, 1, 1)), np.ones((1, 1)), 2.0)).min() > 0
