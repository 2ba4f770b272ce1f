"""Random directions against second derivatives of plain losses, found by differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcomp.training.loss.directions import direction
from onnxcomp.training.loss.terms import ChanceTerm, ClassTerm, LabelTerm, LossTerm, ValueTerm, VectorTerm

Array = np.ndarray[Any, Any]
DRAWS = 4_000
STEP = 1e-4


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def classes(t: Array, z: Array) -> float:
    p = softmax(t)
    return float((p * np.log(p / softmax(z))).sum() / len(t))


def classes_first(t: Array, z: Array) -> float:
    return classes(np.moveaxis(t, 1, -1).reshape(-1, t.shape[1]), np.moveaxis(z, 1, -1).reshape(-1, t.shape[1]))


def probabilities(t: Array, z: Array) -> float:
    return classes(np.log(t), np.log(z))


def values(t: Array, z: Array) -> float:
    return float((np.square(z - t) / np.square([0.5, 2.0, 1.0])).mean())


def chances(t: Array, z: Array) -> float:
    return float((t * np.log(t / z) + (1 - t) * np.log((1 - t) / (1 - z))).mean())


def vectors(t: Array, z: Array) -> float:
    norms = np.linalg.norm(t, axis=-1) * np.linalg.norm(z, axis=-1)
    return float((1 - (t * z).sum(axis=-1) / norms).mean())


def second_derivative(loss: Callable[[Array, Array], float], at: Array) -> Array:
    size = at.size
    moves = np.eye(size) * STEP
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
            moved = [loss(at, at + (a * moves[i] + b * moves[j]).reshape(at.shape)) for a, b in signs]
            found[i, j] = (moved[0] - moved[1] - moved[2] + moved[3]) / (4 * STEP**2)
    return found


FLAT = np.array([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]])
CASES = [
    (ClassTerm("z", "z", 1.0, 2, axis=1, classes=3), FLAT, classes),
    (ClassTerm("z", "z", 3.0, 2, axis=1, classes=3), FLAT, lambda t, z: 3 * classes(t, z)),
    (ClassTerm("z", "z", 1.0, 3, axis=1, classes=3), np.stack([FLAT.T, 2 * FLAT.T]), classes_first),
    (
        ClassTerm("z", "z", 1.0, 2, axis=1, classes=3, form="probability", teacher_form="probability"),
        softmax(FLAT),
        probabilities,
    ),
    (ValueTerm("z", "z", 1.0, 2, spread=np.array([[0.5, 2.0, 1.0]])), FLAT, values),
    (ChanceTerm("z", "z", 1.0, 2), 1 / (1 + np.exp(-FLAT)), chances),
    (VectorTerm("z", "z", 1.0, 2), FLAT, vectors),
]


@pytest.mark.parametrize(("term", "target", "loss"), CASES)
def test_covariance_is_the_second_derivative_of_the_loss(
    term: LossTerm, target: Array, loss: Callable[[Array, Array], float]
) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([direction(term, target, rng).ravel() for _ in range(DRAWS)])
    wanted = second_derivative(loss, target)
    largest = np.abs(wanted).max()
    # Products of signs are off by 1 / sqrt(4000) = 1.6%, sums of some of them by a few times that.
    np.testing.assert_allclose(drawn.T @ drawn / DRAWS, wanted, atol=0.07 * largest)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.07 * np.sqrt(largest))


def test_a_confident_model_has_directions_in_every_draw() -> None:
    # Of classes drawn from p = (0.999, 0.001) nearly all draws would be the first class, and nearly no gradient.
    term = ClassTerm("z", "z", 1.0, 2, axis=1, classes=2)
    target = np.array([[6.9, 0.0]])
    rng = np.random.default_rng(0)
    sizes = [np.abs(direction(term, target, rng)).max() for _ in range(100)]
    assert min(sizes) > 0.5 * max(sizes)


def test_labels_have_none() -> None:
    with pytest.raises(TypeError, match="LabelTerm has no direction"):
        direction(LabelTerm("z", "z", 1.0, 2), FLAT, np.random.default_rng(0))
