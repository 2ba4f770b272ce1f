"""onnxcomp.verify.accuracy: labels that can be right, and what few of them can tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import CalibrationError, ParameterError
from onnxcomp.model import Model
from onnxcomp.numerics import metrics
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Verifier
from onnxcomp.verify.accuracy import CHANCE_SAMPLES
from tests.verify.models import CPU, WEIGHT, X, classifier, noisy, opened, parsed

RNG = np.random.default_rng(9)
LABELS = (X @ WEIGHT).argmax(axis=1)


def judged(folder: Path, labels: np.ndarray, *, model: Model | None = None, **options: Any) -> Verifier:
    chosen = model or classifier()
    return Verifier(chosen, opened(chosen, folder, x=X[: len(labels)], labels=labels), target=CPU, **options)


@pytest.mark.parametrize("labels", [RNG.permutation(LABELS), (LABELS + 1) % 5, LABELS + 1, np.full(120, 77)])
def test_labels_that_are_shuffled_or_of_other_classes_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match=r"model's y is right on .* by chance on"):
        judged(tmp_path, labels)


def test_a_refusal_states_what_chance_reaches(tmp_path: Path) -> None:
    shifted = (LABELS + 1) % 5
    chance = sum(np.mean(each == LABELS) * np.mean(each == shifted) for each in range(5))
    with pytest.raises(CalibrationError, match=f"is right on 0.0% of the labels, and by chance on {chance:.1%}"):
        judged(tmp_path, shifted)


def test_a_model_that_is_often_wrong_and_better_than_chance_is_accepted(tmp_path: Path) -> None:
    labels = np.where(np.arange(120) % 2 == 0, LABELS, RNG.integers(0, 5, 120))
    verifier = judged(tmp_path, labels)
    assert verifier.metric == "accuracy"
    assert verifier.original_score == pytest.approx(np.mean(labels == LABELS))


@pytest.mark.parametrize(("count", "is_refused"), [(CHANCE_SAMPLES - 1, False), (CHANCE_SAMPLES, True)])
def test_few_labels_cannot_be_told_from_shuffled_ones(tmp_path: Path, count: int, is_refused: bool) -> None:
    labels = (LABELS[:count] + 1) % 5
    if is_refused:
        with pytest.raises(CalibrationError):
            judged(tmp_path, labels)
        return
    assert judged(tmp_path, labels).original_score == 0


def test_one_class_throughout_is_no_chance_to_be_told_from(tmp_path: Path) -> None:
    """All samples of one class, all found: nothing is shuffled."""
    model = parsed("g (float[N, 8] x) => (float[N, 2] y) { y = MatMul(x, w) }", w=np.zeros((8, 2), np.float32))
    assert judged(tmp_path, np.zeros(120, int), model=model).original_score == 1.0


def test_labels_may_be_about_an_output_of_class_numbers(tmp_path: Path) -> None:
    text = "g (float[N, 8] x) => (int64[N] y) { z = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(z) }"
    verifier = judged(tmp_path, LABELS, model=parsed(text, w=WEIGHT))
    assert verifier.original_score == 1.0
    other = noisy(WEIGHT, 0.5)
    verdict = verifier.check(parsed(text, w=other))
    assert verdict.divergence == pytest.approx(np.mean((X @ other).argmax(axis=1) != LABELS))


def test_the_first_output_with_one_class_a_sample_is_meant(tmp_path: Path) -> None:
    text = (
        "g (float[N, 8] x) => (float[N, 8, 1] features, float[N, 5] y)"
        " { n = Neg(x) features = Unsqueeze(n, last) z = MatMul(x, w) y = Softmax(z) }"
    )
    verifier = judged(tmp_path, LABELS, model=parsed(text, w=WEIGHT, last=np.array([2])))
    assert verifier.original_score == 1.0


def test_labels_without_an_output_to_be_about_are_left_out_and_said(tmp_path: Path) -> None:
    model = parsed("g (float[N, 8] x) => (float[N, 8, 1] y) { n = Neg(x) y = Unsqueeze(n, last) }", last=np.array([2]))
    verifier = judged(tmp_path, LABELS, model=model)
    assert verifier.metric == "divergence"
    assert any("no output has one class a sample" in note for note in verifier.notes)


def test_a_drop_has_its_exact_interval(tmp_path: Path) -> None:
    labels = np.where(np.arange(120) < 12, (LABELS + 1) % 5, LABELS)
    other = noisy(WEIGHT, 0.3)
    verdict = judged(tmp_path, labels, max_drop=Drop(0.3)).check(classifier(other))
    right, still = labels == LABELS, (X @ other).argmax(axis=1) == labels
    lost, won = int((right & ~still).sum()), int((~right & still).sum())
    assert lost > 0
    down, up = (binomtest(count, 120).proportion_ci(0.95, method="exact") for count in (lost, won))
    assert verdict.divergence == pytest.approx((lost - won) / 120)
    assert verdict.interval == pytest.approx((down.low - up.high, down.high - up.low))


def test_few_samples_are_held_to_the_divergence_as_well(tmp_path: Path) -> None:
    """Scores three times as steep leave every winner, and are far off."""
    verifier = judged(tmp_path, LABELS)
    wanted = metrics.samples_to_resolve(verifier.limit, 2 * verifier.limit)
    assert verifier.wanted_samples == wanted > 120
    assert any(f"about {wanted:,} can" in note for note in verifier.notes)
    verdict = verifier.check(classifier(3 * WEIGHT))
    assert verdict.divergence == 0 and verdict.beside is not None and not verdict.passed
    unlabelled = Verifier(classifier(), verifier.data, target=CPU, metric="divergence")
    assert verdict.beside == (unlabelled.check(classifier(3 * WEIGHT)).divergence, DEFAULT_MAX_DIVERGENCE)
    assert verdict.beside[0] > verdict.beside[1]
    assert any("too few samples to count by" in reason for reason in verdict.reasons)
    kept = verifier.check(classifier())
    assert kept.passed and kept.beside == (0.0, DEFAULT_MAX_DIVERGENCE)


def test_few_samples_repeated_are_few(tmp_path: Path) -> None:
    options: dict[str, Any] = {"target": CPU, "max_drop": Drop(0.1)}
    enough = opened(classifier(), tmp_path, x=X, labels=LABELS)
    assert Verifier(classifier(), enough, **options).wanted_samples is None
    repeated = opened(classifier(), tmp_path, x=np.repeat(X[:12], 10, 0), labels=np.repeat(LABELS[:12], 10))
    verifier = Verifier(classifier(), repeated, **options)
    assert verifier.wanted_samples and any("12 distinct samples cannot tell" in note for note in verifier.notes)
    assert verifier.check(classifier()).interval[1] == pytest.approx(metrics.share(0, 12).high)


def test_no_number_of_samples_tells_a_drop_of_nothing(tmp_path: Path) -> None:
    verifier = judged(tmp_path, LABELS, max_drop=Drop(0.0))
    assert any("a drop of 0 in accuracy, nor can any number" in note for note in verifier.notes)


def test_what_is_held_beside_a_count_is_part_of_the_quadratic_divergence(tmp_path: Path) -> None:
    """A search sees how far off a result is that keeps all winners and fails."""
    verifier = judged(tmp_path, LABELS)
    verdict = verifier.check(classifier(3 * WEIGHT))
    assert verdict.divergence == 0 and verdict.beside is not None and not verdict.passed
    assert verdict.quadratic_divergence == pytest.approx(verifier.limit * verdict.beside[0] / verdict.beside[1])
    assert verifier.check(classifier()).quadratic_divergence == 0


def test_random_inputs_are_not_counted() -> None:
    with classifier().opened_on(CPU.session) as session:
        noise = CalibrationData.random(session.inputs, seed=0, run=session.run)
    with pytest.raises(ParameterError, match="top1 counts samples"):
        Verifier(classifier(), noise, target=CPU, metric="top1")


def test_enough_samples_are_counted_alone(tmp_path: Path) -> None:
    verifier = judged(tmp_path, LABELS, max_drop=Drop(0.3))
    assert verifier.wanted_samples is None
    verdict = verifier.check(classifier(3 * WEIGHT))
    assert verdict.passed and verdict.beside is None and verdict.divergence == 0


def test_disagreement_of_few_samples_is_held_to_the_divergence_as_well(tmp_path: Path) -> None:
    data = opened(classifier(), tmp_path, x=X)
    verifier = Verifier(classifier(), data, target=CPU, metric="top1")
    assert verifier.wanted_samples
    verdict = verifier.check(classifier(3 * WEIGHT))
    assert verdict.divergence == 0 and verdict.beside is not None and not verdict.passed
    assert verdict.describe()["beside"] == list(verdict.beside)
