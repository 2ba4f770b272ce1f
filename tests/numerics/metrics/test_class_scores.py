"""onnxcomp.numerics.metrics.class_scores: KL and entropy against loops over the definition."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics.class_scores import SKEW, Form
from tests.numerics.metrics.describing import softmax

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(40, 10)) * 3
OTHER = LOGITS + RNG.normal(size=LOGITS.shape) * 1e-3


def plain_kl(p: np.ndarray, q: np.ndarray) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def entropy_of(p: np.ndarray) -> float:
    return -math.fsum(a * math.log(a) for a in p)


@pytest.mark.parametrize(
    ("form", "change"), [("probability", softmax), ("log", lambda z: np.log(softmax(z))), ("logits", lambda z: z)]
)
def test_small_differences_cost_their_kl_in_every_form(form: Form, change: Callable[..., np.ndarray]) -> None:
    """The skew's effect is gone to second order: of differences of 1e-3 about a thousandth is left."""
    p, q = softmax(LOGITS), softmax(OTHER)
    divergence, entropy = metrics.kl_and_entropy(form, 0, change(LOGITS), change(OTHER))
    np.testing.assert_allclose(divergence[:, 0], [plain_kl(*each) for each in zip(p, q, strict=True)], rtol=2e-3)
    np.testing.assert_allclose(entropy[:, 0], [entropy_of(row) for row in p])


def test_large_differences_cost_the_kl_to_a_mixture() -> None:
    p, q = softmax(LOGITS), softmax(LOGITS[::-1])
    got = metrics.kl_and_entropy("probability", 0, p, q)[0][:, 0]
    mixed = (1 - SKEW) * q + SKEW * p
    expected = [plain_kl(*each) / (1 - SKEW) ** 2 for each in zip(p, mixed, strict=True)]
    np.testing.assert_allclose(got, expected)


def test_chances_that_stand_alone_are_compared_one_by_one() -> None:
    p = RNG.uniform(0.1, 0.9, (3, 2, 2))
    q = p + 1e-3 * RNG.normal(size=p.shape)
    divergence, entropy = metrics.kl_and_entropy("each", None, p, q)
    pairs = zip(p.ravel(), q.ravel(), strict=True)
    expected = [plain_kl(np.array([a, 1 - a]), np.array([b, 1 - b])) for a, b in pairs]
    np.testing.assert_allclose(divergence.ravel(), expected, rtol=1e-2)
    np.testing.assert_allclose(entropy.ravel(), [entropy_of(np.array([a, 1 - a])) for a in p.ravel()])


def test_classes_lie_along_their_axis() -> None:
    maps = np.moveaxis(LOGITS.reshape(2, 4, 5, 10), -1, 1)
    other = np.moveaxis(OTHER.reshape(2, 4, 5, 10), -1, 1)
    got = metrics.kl_and_entropy("logits", 0, maps, other)[0]
    np.testing.assert_allclose(got.ravel(), metrics.kl_and_entropy("logits", 0, LOGITS, OTHER)[0].ravel())


def test_a_probability_rounded_to_zero_costs_little() -> None:
    p, q = np.array([[0.998, 0.002], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.5, 0.5]])
    divergence = metrics.kl_and_entropy("probability", 0, p, q)[0]
    assert 0 < divergence[0, 0] < 0.002 * np.log(1 / SKEW)
    assert divergence[1, 0] == 0


def test_rounding_never_makes_a_divergence_negative() -> None:
    p = softmax(LOGITS).astype(np.float16).astype(np.float64)
    q = softmax(OTHER).astype(np.float16).astype(np.float64)
    assert (metrics.kl_and_entropy("probability", 0, p, q)[0] >= 0).all()
    assert (metrics.kl_and_entropy("probability", 0, p, p)[0] == 0).all()


def test_scores_of_hundreds_do_not_overflow() -> None:
    z = np.array([[1000.0, 0.0, -1000.0]])
    divergence, entropy = metrics.kl_and_entropy("logits", 0, z, z - 500)
    assert divergence == pytest.approx(0) and entropy == pytest.approx(0)
