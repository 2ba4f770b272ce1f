"""onnxcomp.verify.comparison: batches added up, outputs and lenses side by side, and what cannot be compared."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics.lenses import VALUES_FACTOR
from onnxcomp.verify.comparison import ComparedBatches, incomparable, widened
from onnxcomp.verify.reading.outputs import Outputs
from tests.verify.models import WEIGHT, X, classifier, noisy, opened, parsed, ran, read

TEXT = (
    "g (float[N, 8] x) => (float[N, 8] a, float[N, 5] b, int64[N] c)"
    " { n = Neg(x) a = Mul(n, s) z = MatMul(x, w) b = Softmax(z) c = ArgMax<axis = 1, keepdims = 0>(z) }"
)


def several(weight: np.ndarray = WEIGHT, scale: float = 1.0) -> Model:
    return parsed(TEXT, w=weight, s=np.full(8, scale, np.float32))


def compared(outputs: Outputs, model: Model, data: CalibrationData, metric: str = "divergence") -> ComparedBatches:
    comparison = ComparedBatches(outputs, metric, 0)
    for i, (reference, candidate) in enumerate(zip(outputs.store, ran(model, data), strict=True)):
        comparison.add(i, reference, candidate)
    return comparison


@pytest.fixture
def data(tmp_path: Path) -> CalibrationData:
    return opened(several(), tmp_path, x=X)


def test_the_same_outputs_diverge_by_nothing(data: CalibrationData) -> None:
    comparison = compared(read(several(), data), several(), data)
    found, affected = comparison.divergences()
    assert {each.name for each in found} == {"a", "b", "c"}
    assert all(each.value == each.low == 0 for each in found) and affected is None
    assert comparison.agreement == 1
    assert {each.measure: each.high for each in found if each.high > 0} == {"labels": metrics.share(0, 120).high}


def test_every_output_has_all_its_lenses_and_only_what_changed_diverges(data: CalibrationData) -> None:
    outputs = read(several(), data)
    found = compared(outputs, several(scale=1.1), data).divergences()[0]
    by_output = {name: {each.measure: each.value for each in found if each.name == name} for name in "abc"}
    assert {"values", "worst channel"} <= by_output["a"].keys() and max(by_output["a"].values()) > 0
    assert by_output["b"].keys() == {"classes", "balanced classes", "class by class", "class balance"}
    assert not any(by_output["b"].values())
    assert by_output["c"] == {"labels": 0}
    assert {each.name: each.kind for each in found} == {name: outputs.described[name].kind for name in "abc"}


def test_batches_add_up_to_the_mean_over_all_samples(data: CalibrationData) -> None:
    """Of four batches the last is smaller: no mean of means."""
    outputs = read(several(), data)
    assert len({layout.count for layout in outputs.layouts}) == 2
    other = noisy(WEIGHT, 0.3)
    found = {(each.name, each.measure): each for each in compared(outputs, several(other), data).divergences()[0]}
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in ((X @ w).astype(np.float64) for w in (WEIGHT, other)))
    kl = metrics.kl_and_entropy("probability", 0, p, q)[0][:, 0]
    factor = outputs.described["b"].lenses[0].factor  # type: ignore[attr-defined]
    assert found["b", "classes"].value == pytest.approx(factor * kl.mean(), rel=1e-4)
    changed = (X @ WEIGHT).argmax(axis=1) != (X @ other).argmax(axis=1)
    assert found["c", "labels"].value == pytest.approx(changed.mean())


def test_counts_have_exact_intervals_and_means_bootstrapped_ones(data: CalibrationData) -> None:
    other = several(noisy(WEIGHT, 0.3))
    outputs = read(several(), data)
    found = {each.measure: each for each in compared(outputs, other, data).divergences()[0] if each.name in "bc"}
    count = round(found["labels"].value * 120)
    exact = metrics.share(count, 120)
    assert count and (found["labels"].low, found["labels"].high) == (exact.low, exact.high)
    assert found["classes"].low < found["classes"].value < found["classes"].high
    top1 = [each for each in compared(outputs, other, data, "top1").divergences()[0] if each.name == "b"]
    assert [(each.measure, each.value, each.low, each.high) for each in top1] == [
        ("top1", count / 120, exact.low, exact.high)
    ]


def test_samples_that_come_again_tell_no_more(tmp_path: Path) -> None:
    """Ten samples, of which three are distinct."""
    data = opened(several(), tmp_path, x=X[[0, 1, 2, 0, 1, 2, 0, 1, 2, 0]])
    found = {each.measure: each for each in compared(read(several(), data), several(), data).divergences()[0]}
    assert found["labels"].high == metrics.share(0, 3).high


def test_agreement_is_of_winning_classes(data: CalibrationData) -> None:
    other = noisy(WEIGHT, 0.3)
    got = compared(read(several(), data), several(other), data).agreement
    agree = (X @ WEIGHT).argmax(axis=1) == (X @ other).argmax(axis=1)
    assert got is not None and agree.mean() < 1
    outputs = read(several(), data, left_out={"a": "not asked"}.get)
    assert compared(outputs, several(other), data).agreement == pytest.approx(agree.mean())


def test_of_outputs_taken_for_classes_none_that_may_be_some_counts(data: CalibrationData) -> None:
    """The winner of "a", which may be scores, changes; that of "b", whose sums are 1, does not."""
    other = parsed(TEXT, w=WEIGHT, s=np.linspace(1, 3, 8).astype(np.float32))
    outputs = read(several(), data)
    assert {name: outputs.described[name].has_classes for name in "ab"} == {"a": True, "b": True}
    assert compared(outputs, other, data).agreement == 1
    same = (X.argmin(axis=1) == (X * np.linspace(1, 3, 8)).argmin(axis=1)).mean()
    outputs = read(several(), data, left_out={"b": "not asked"}.get)
    assert same < 1 and compared(outputs, other, data).agreement == pytest.approx(same)


def test_outputs_without_classes_have_no_agreement(data: CalibrationData) -> None:
    outputs = read(several(), data, asked={"a": "values"}, left_out={"b": "not asked"}.get)
    found = compared(outputs, several(), data)
    assert found.agreement is None and "b" not in {each.name for each in found.divergences()[0]}


def test_roots_are_taken_of_the_mean_where_a_lens_is_squared(tmp_path: Path) -> None:
    def encoder(scale: float) -> Model:
        text = "g (float[N, 8] x) => (float[N, 40] y) { z = MatMul(x, w) t = Tanh(z) y = Mul(t, s) }"
        weight = np.random.default_rng(2).normal(size=(8, 40)).astype(np.float32)
        return parsed(text, w=weight, s=np.array([scale], np.float32))

    data = opened(encoder(1), tmp_path, x=X)
    outputs = read(encoder(1), data, linear=lambda name: False)
    near, far = (
        {each.measure: each for each in compared(outputs, encoder(scale), data).divergences()[0]}["embedding"]
        for scale in (1.01, 1.02)
    )
    assert near.is_squared and far.value == pytest.approx(2 * near.value, rel=1e-2)
    assert near.low < near.value < near.high


@pytest.mark.parametrize(("changed", "share"), [(slice(3, 4), 1 / 120), (slice(None), 1.0)])
def test_the_share_of_the_samples_that_a_divergence_rests_on(
    data: CalibrationData, changed: slice, share: float
) -> None:
    """One in the first batch bears all of it, or all bear it alike."""
    outputs = read(several(), data, asked={"a": "values"})
    comparison = ComparedBatches(outputs, "divergence", 0)
    for i, reference in enumerate(outputs.store):
        moved = reference["a"].copy()
        if i == 0 or share == 1:
            moved[changed] += 1.0
        comparison.add(i, reference, {**reference, "a": moved})
    assert comparison.divergences()[1] == pytest.approx(share, rel=1e-4)


def test_a_prefix_tells_comparisons_apart(data: CalibrationData) -> None:
    outputs = read(several(), data)
    comparison = ComparedBatches(outputs, "divergence", 0, prefix="entry: ")
    for i, reference in enumerate(outputs.store):
        comparison.add(i, reference, reference)
    assert all(each.measure.startswith("entry: ") for each in comparison.divergences()[0])


def test_outputs_that_one_side_lacks_are_passed_over(data: CalibrationData) -> None:
    outputs = read(several(), data)
    comparison = ComparedBatches(outputs, "divergence", 0)
    for i, reference in enumerate(outputs.store):
        comparison.add(i, reference, {"b": reference["b"]})
    assert {each.name for each in comparison.divergences()[0]} == {"b"}


def cache(kept: float = 1.0, new: float = 1.0) -> Model:
    """A cache of 40 rows that grows by one, each of them times a number."""
    text = (
        "g (float[N, 40, 4] past, float[N, 1, 4] x) => (float[N, 41, 4] present)"
        " { old = Mul(past, kept) n = Neg(x) row = Mul(n, new) present = Concat<axis = 1>(old, row) }"
    )
    return parsed(text, kept=np.array([kept], np.float32), new=np.array([new], np.float32))


@pytest.fixture
def steps(tmp_path: Path) -> CalibrationData:
    rng = np.random.default_rng(4)
    past, x = rng.normal(size=(50, 40, 4)), rng.normal(size=(50, 1, 4))
    return opened(cache(), tmp_path, past=past.astype(np.float32), x=x.astype(np.float32))


def test_only_the_new_rows_of_a_cache_are_compared(steps: CalibrationData) -> None:
    """Whole, 40 rows that carry no error would make it a forty-first."""
    outputs = read(cache(), steps)
    found = {each.measure: each for each in compared(outputs, cache(new=1.1), steps).divergences()[0]}
    assert "copied rows" not in found
    new = np.concatenate([each["present"][:, 40:] for each in outputs.store])
    expected = VALUES_FACTOR * np.mean(np.square(0.1 * new).mean(axis=(0, 1)) / new.var(axis=(0, 1)))
    assert found["values"].value == pytest.approx(expected, rel=1e-3)


def test_rows_that_are_no_copies_any_more_count(steps: CalibrationData) -> None:
    outputs = read(cache(), steps)
    found = {each.measure: each for each in compared(outputs, cache(kept=1.1), steps).divergences()[0]}
    whole = [each["present"] for each in outputs.store]
    shares = [np.square(0.1 * each[:, :40]).mean() / np.square(each[:, 40:]).mean() for each in whole]
    expected = VALUES_FACTOR * np.average(shares, weights=[len(each) for each in whole])
    assert found["values"].value == 0
    assert found["copied rows"].value == pytest.approx(expected, rel=1e-3)


# --- what cannot be compared ---

A = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"y": A}, None),
        ({"y": A, "z": A}, "outputs differ: z"),
        ({}, "outputs differ: y"),
        ({"y": A.astype(np.float64)}, "output y is float64, it was float32"),
        ({"y": A.T}, r"output y has shape [3, 2], it was [2, 3]"),
        ({"y": np.where(np.eye(2, 3), np.nan, A).astype(np.float32)}, "output y has 2 NaN or infinite values"),
    ],
)
def test_says_why_outputs_cannot_be_compared(candidate: dict[str, np.ndarray], said: str | None) -> None:
    found = incomparable({"y": A}, candidate)
    assert found is None if said is None else said in str(found)


def test_another_length_is_no_fault_where_it_depends_on_the_data() -> None:
    ragged = frozenset({"y"})
    assert incomparable({"y": A}, {"y": A[:1]}, ragged) is None
    assert incomparable({"y": A}, {"y": A[0]}, ragged) is not None
    assert incomparable({"y": A}, {"y": A[:1]}, frozenset({"z"})) is not None


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int64, np.int64),
    ],
)
def test_short_floats_are_widened_and_nothing_else(dtype: type, wide: type) -> None:
    got = widened({"y": A.astype(dtype)})["y"]
    assert got.dtype == wide and got.tolist() == A.tolist()


def test_a_classifier_alone_is_compared_as_one_output(tmp_path: Path) -> None:
    data = opened(classifier(), tmp_path, x=X)
    outputs = read(classifier(), data)
    found, affected = compared(outputs, classifier(noisy(WEIGHT, 0.3)), data).divergences()
    assert {each.name for each in found} == {"y"} and affected is not None and 1 / 120 <= affected <= 1


def test_what_each_sample_counts_gives_the_divergence(data: CalibrationData) -> None:
    """The mean of the numbers, or its root where they are squares."""
    outputs, candidate = read(several(), data), several(noisy(WEIGHT, 0.1), 1.05)
    comparison = compared(outputs, candidate, data)
    stated = {f"{each.name}: {each.measure}": each for each in comparison.divergences()[0]}
    found = comparison.by_sample()
    assert found
    for name, (value, numbers) in found.items():
        assert numbers.shape == (len(X),) and value == stated[name].value
        mean = abs(float(np.mean(numbers)))
        assert value == pytest.approx(np.sqrt(mean) if stated[name].is_squared else mean)
