"""onnxcomp.numerics.metrics: each measure against a loop in float64, and what outputs are taken for."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Output

RNG = np.random.default_rng(7)


def described(*blocks: np.ndarray, weights: Any = None, channel_axis: int | None = None) -> Output:
    return metrics.describe(lambda: [(block, weights) for block in blocks], channel_axis=channel_axis)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


LOGITS = RNG.normal(size=(40, 10)) * 6
UNIT = RNG.normal(size=(60, 64))


@pytest.mark.parametrize(
    ("block", "kind", "axis"),
    [
        (softmax(LOGITS), "distribution", 0),
        (softmax(LOGITS).astype(np.float16), "distribution", 0),
        (softmax(LOGITS).astype(ml_dtypes.bfloat16), "distribution", 0),
        (np.log(softmax(LOGITS)), "distribution", 0),
        (softmax(LOGITS).reshape(4, 10, 10), "distribution", 1),
        (np.moveaxis(softmax(RNG.normal(size=(3, 5, 6, 4))), -1, 1), "distribution", 0),
        (LOGITS, "logits", 0),
        (LOGITS.reshape(4, 10, 10), "logits", 1),
        (LOGITS + 100 * np.eye(10)[0], "values", None),  # one class always wins
        (LOGITS * 100, "values", None),  # pixels
        (RNG.uniform(size=(9, 1)), "probabilities", None),
        (RNG.uniform(size=(9, 3, 8, 8)), "probabilities", None),
        (UNIT, "embedding", 0),
        (RNG.normal(size=(5, 7, 32)) * 0.3, "embedding", 1),
        (RNG.normal(size=(20, 4)) * 0.1 + 1, "values", None),
        (RNG.normal(size=(2, 64)), "values", None),  # too few vectors for a basis
        (np.arange(9), "labels", None),
        (np.ones((9, 2), bool), "labels", None),
        (np.array(["a", "b"], object), "labels", None),
        (RNG.integers(0, 255, (2, 3, 8, 8)).astype(np.uint8), "values", None),
        (np.zeros((0, 4)), "values", None),
    ],
)
def test_tells_what_an_output_looks_like(block: np.ndarray, kind: str, axis: int | None) -> None:
    output = described(block)
    assert output.kind in (kind, "distribution" if block.size == 0 else kind)
    if block.size:
        assert output.axis == axis


def test_an_uncertain_sample_alone_in_its_batch_does_not_decide() -> None:
    """Large inputs come one by one: all samples together say what an output is."""
    uncertain = 0.1 * RNG.normal(size=(1, 10))
    rows = np.concatenate([LOGITS, uncertain])
    output = metrics.describe(lambda: iter([(rows[at : at + 1], None) for at in range(len(rows))]), channel_axis=None)
    assert output.kind == "logits"


def test_class_divergence_is_kl_times_one_plus_inverse_entropy() -> None:
    p, q = softmax(LOGITS), softmax(LOGITS + RNG.normal(size=LOGITS.shape) * 0.01)
    output = described(p)
    entropy = np.mean([-sum(v * np.log(v) for v in row) for row in p])
    assert output.entropy == pytest.approx(entropy)
    naive = [sum(a * np.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    # The skew's correction is exact to second order: differences of 1% leave about 1%.
    np.testing.assert_allclose(metrics.kl(output, p, q, None), naive, rtol=0.03, atol=1e-9)
    found = metrics.divergences(output, p, q, None)["classes"]
    np.testing.assert_allclose(found, np.array(naive) * (1 + 1 / entropy), rtol=0.03, atol=1e-9)


def test_logits_and_their_softmax_have_the_same_class_divergence() -> None:
    other = LOGITS + RNG.normal(size=LOGITS.shape) * 0.1
    by_logits = metrics.divergences(described(LOGITS), LOGITS, other, None)["classes"]
    p, q = softmax(LOGITS), softmax(other)
    by_softmax = metrics.divergences(described(p), p, q, None)["classes"]
    by_logarithm = metrics.divergences(described(np.log(p)), np.log(p), np.log(q), None)["classes"]
    np.testing.assert_allclose(by_logits, by_softmax, rtol=1e-9)
    np.testing.assert_allclose(by_logarithm, by_softmax, rtol=1e-9)


def test_a_probability_rounded_to_zero_costs_little() -> None:
    p = np.array([[0.998, 0.002], [0.5, 0.5]])
    q = np.array([[1.0, 0.0], [0.5, 0.5]])
    divergence = metrics.kl(Output("distribution", 0), p, q, None)
    assert 0 < divergence[0] < 0.002 * np.log(100)
    assert divergence[1] == pytest.approx(0, abs=1e-12)


def test_sigmoid_scores_are_compared_one_by_one() -> None:
    p, q = np.array([[0.2, 0.9]]), np.array([[0.25, 0.88]])
    naive = np.mean([a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)) for a, b in [(0.2, 0.25), (0.9, 0.88)]])
    output = Output("probabilities", None, entropy=0.4, variance=np.ones(1))
    assert metrics.kl(output, p, q, None)[0] == pytest.approx(naive, rel=0.05)


def test_values_are_measured_channel_by_channel() -> None:
    reference = np.stack([RNG.normal(size=50) * 1000, RNG.normal(size=50) * 0.01], axis=1)
    candidate = reference + np.array([1.0, 0.001])
    output = described(reference, channel_axis=0)
    assert output.kind == "values"
    naive = 2 * np.mean([1.0 / reference[:, 0].var(), 0.001**2 / reference[:, 1].var()])
    assert metrics.divergences(output, reference, candidate, None)["values"].mean() == pytest.approx(naive)


def test_a_constant_channel_is_held_to_a_thousandth_of_its_size() -> None:
    reference = np.stack([np.full(20, 8.0), RNG.normal(size=20)], axis=1)
    output = described(reference, channel_axis=0)
    off = metrics.divergences(output, reference, reference + np.array([8e-3, 0]), None)["values"].mean()
    assert off == pytest.approx(1.0)


def test_embedding_divergence_is_the_shift_of_cosines() -> None:
    candidate = UNIT + RNG.normal(size=UNIT.shape) * 0.05
    output = described(UNIT)
    centre = UNIT.mean(axis=0)
    shifts = []
    for j in range(len(UNIT)):
        for i in range(len(UNIT)):
            left, right = UNIT[i] - centre, UNIT[j] - centre
            moved = candidate[j] - centre
            shifts.append((left @ moved - left @ right) / np.linalg.norm(left) / np.linalg.norm(right))
    found = metrics.combine("embedding", metrics.divergences(output, UNIT, candidate, None)["embedding"].mean())
    assert found == pytest.approx(np.sqrt(np.mean(np.square(shifts))))


@pytest.mark.parametrize("change", [lambda x: x[:, ::-1], lambda x: 1.5 * x, lambda x: 0 * x])
def test_rotated_scaled_and_collapsed_embeddings_are_far_off(change: Any) -> None:
    found = metrics.divergences(described(UNIT), UNIT, change(UNIT), None)["embedding"].mean()
    assert np.sqrt(found) > 0.05


def test_padding_does_not_count() -> None:
    reference = RNG.normal(size=(6, 5, 32))
    mask = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 5])[:, None]
    candidate = np.where(mask[..., None], reference, RNG.normal(size=reference.shape) * 50)
    output = described(reference, weights=mask)
    assert output.kind == "embedding"
    for measure in (
        metrics.divergences(output, reference, candidate, mask)["embedding"],
        metrics.cosine_distance(reference, candidate, mask),
        metrics.noise_to_signal(reference, candidate, mask),
        metrics.squared_error(reference, candidate, mask),
    ):
        np.testing.assert_allclose(measure, 0, atol=1e-12)
    shifted = reference + 1.0
    np.testing.assert_allclose(metrics.squared_error(reference, shifted, mask), 1.0)


def test_plain_measures_equal_their_definitions() -> None:
    reference, candidate = np.array([[3.0, 4.0], [0, 0], [0, 0]]), np.array([[3.0, 5.0], [0, 0], [1, 0]])
    cosine = 1 - (9 + 20) / (5 * np.sqrt(34))
    np.testing.assert_allclose(metrics.cosine_distance(reference, candidate, None), [cosine, 0, 1])
    np.testing.assert_allclose(metrics.noise_to_signal(reference, candidate, None), [1 / 25, 0, np.inf])
    np.testing.assert_allclose(metrics.squared_error(reference, candidate, None), [0.5, 0, 0.5])


def test_labels_and_agreement_count_differences() -> None:
    reference, candidate = np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])
    assert metrics.divergences(Output("labels", None), reference, candidate, None)["labels"].tolist() == [0, 0.5]
    p = np.array([[0.6, 0.4], [0.6, 0.4]])
    assert metrics.agreement(Output("distribution", 0), p, p[:, ::-1], None).tolist() == [0, 0]


def test_only_new_nan_and_infinity_count() -> None:
    reference = np.array([1.0, np.nan, -np.inf, 2.0])
    assert metrics.new_nonfinite(reference, np.array([1.0, 5.0, np.nan, 2.0])) == 0
    assert metrics.new_nonfinite(reference, np.array([np.inf, 5.0, np.nan, np.nan])) == 2
    assert metrics.new_nonfinite(np.array([1]), np.array([1])) == 0


def test_masked_logits_do_not_disturb() -> None:
    z = np.where(RNG.uniform(size=LOGITS.shape) < 0.2, -np.inf, LOGITS)
    found = metrics.divergences(Output("logits", 0, entropy=1.0), z, z, None)["classes"]
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_interval_holds_the_mean_and_narrows_with_samples() -> None:
    few, many = RNG.exponential(size=50), RNG.exponential(size=5000)
    for values in (few, many):
        got = metrics.estimate(values)
        assert got.low < got.value < got.high
        assert got.value == pytest.approx(values.mean())
    wide, narrow = metrics.estimate(few), metrics.estimate(many)
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert metrics.estimate(few) == metrics.estimate(few)
    assert metrics.estimate(np.zeros(0)).value == 0
