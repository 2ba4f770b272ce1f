"""onnxcomp.numerics.metrics.plain: the measures that users name, against their definitions."""

from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.numerics import metrics

RNG = np.random.default_rng(7)


def test_plain_measures_equal_their_definitions() -> None:
    reference, candidate = np.array([[3.0, 4.0], [0, 0], [0, 0]]), np.array([[3.0, 5.0], [0, 0], [1, 0]])
    cosine = 1 - (9 + 20) / (5 * np.sqrt(34))
    np.testing.assert_allclose(metrics.cosine_distance(reference, candidate, None), [cosine, 0, 1])
    np.testing.assert_allclose(metrics.noise_to_signal(reference, candidate, None), [1 / 25, 0, np.inf])
    np.testing.assert_allclose(metrics.squared_error(reference, candidate, None), [0.5, 0, 0.5])


MASK = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 5])[:, None]
REFERENCE = RNG.normal(size=(6, 5, 32))


@pytest.mark.parametrize("measure", [metrics.cosine_distance, metrics.noise_to_signal, metrics.squared_error])
def test_only_positions_that_are_no_padding_count(measure: Callable[..., np.ndarray]) -> None:
    """As if each sample were cut to its own length, whatever stands in the padding."""
    candidate = REFERENCE + 0.3 * RNG.normal(size=REFERENCE.shape)
    disturbed = np.where(MASK[..., None], candidate, 50.0)
    expected = [measure(r[None, m], c[None, m], None)[0] for r, c, m in zip(REFERENCE, candidate, MASK, strict=True)]
    np.testing.assert_allclose(measure(REFERENCE, disturbed, MASK), expected)


@pytest.mark.parametrize("measure", [metrics.cosine_distance, metrics.noise_to_signal, metrics.squared_error])
def test_nothing_is_asked_where_the_reference_is_not_finite(measure: Callable[..., np.ndarray]) -> None:
    reference = np.array([[1.0, np.nan, -np.inf, 2.0]])
    np.testing.assert_allclose(measure(reference, np.array([[1.0, 7.0, 3.0, 2.0]]), None), 0, atol=1e-12)


@pytest.mark.parametrize("measure", [metrics.cosine_distance, metrics.noise_to_signal, metrics.squared_error])
def test_integers_do_not_wrap(measure: Callable[..., np.ndarray]) -> None:
    reference, candidate = np.array([[1, 200]], np.uint8), np.array([[3, 210]], np.uint8)
    expected = measure(reference.astype(float), candidate.astype(float), None)
    assert measure(reference, candidate, None) == pytest.approx(expected) and expected > 0
