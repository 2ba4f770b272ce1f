"""onnxcomp.verify: what passes, what fails whatever the budget, and what is measured on real shapes of data."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcomp.verify.reference as reference
from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import ParameterError, VerificationError
from onnxcomp.model import Model, load
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Verifier
from onnxcomp.verify.candidate import ISOLATE_FROM_BYTES, WholeModel
from onnxcomp.verify.reading.watched import Watched
from onnxcomp.verify.signature import changed_signature
from tests.verify.models import CPU, WEIGHT, X, classifier, noisy, opened, parsed

RNG = np.random.default_rng(4)


@pytest.fixture
def data(tmp_path: Path) -> CalibrationData:
    return opened(classifier(), tmp_path, x=X)


def test_the_original_itself_passes_with_nothing_lost(data: CalibrationData) -> None:
    verdict = Verifier(classifier(), data, target=CPU).check(classifier())
    assert verdict.passed and verdict.divergence == 0 and verdict.agreement == 1
    assert verdict.samples == 120 and verdict.limit == DEFAULT_MAX_DIVERGENCE


def test_divergence_grows_with_the_change_until_it_fails(data: CalibrationData) -> None:
    verifier = Verifier(classifier(), data, target=CPU)
    verdicts = [verifier.check(classifier(noisy(WEIGHT, share))) for share in (0.001, 0.01, 0.5)]
    values = [verdict.divergence for verdict in verdicts]
    assert values == sorted(values)
    assert [verdict.passed for verdict in verdicts] == [True, True, False]
    for verdict in verdicts:
        assert verdict.interval[0] <= verdict.divergence <= verdict.interval[1]
        assert verdict.resolution > 0
    assert "output y (classes, by class balance): divergence" in verdicts[2].reasons[0] and not verdicts[2].failed


def test_no_model_is_run_twice(data: CalibrationData, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(classifier(), data, target=CPU)
    one, other = classifier(noisy(WEIGHT, 0.01)), classifier(noisy(WEIGHT, 0.5))
    verdicts = [verifier.check(one), verifier.check(other)]
    monkeypatch.setattr(Verifier, "judge", None)
    assert [verifier.check(one), verifier.check(other)] == verdicts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (float[N, 8] v) => (float[N, 5] y) { z = MatMul(v, w) y = Softmax(z) }", "inputs changed from x to v"),
        ("g (float[N, 8] x) => (float[N, 5] u) { z = MatMul(x, w) u = Softmax(z) }", "outputs changed from y to u"),
        ("g (float[M, 8] x) => (float[M, 5] y) { z = MatMul(x, w) y = Softmax(z) }", "input x changed its type"),
        ("g (float[N, 8] x) => (float[N, 5] y) { z = MatMul(x, w) y = Sqrt(z) }", "NaN or infinite"),
        ("g (float[N, 8] x) => (float[N, 5] y) { z = MatMul(x, w) y = NoSuchOp(z) }", "cannot load"),
        ("g (float[N, 8] x) => (float[N, 5] y) { z = MatMul(x, w) y = Concat<axis = 0>(z, z) }", "has shape"),
    ],
)  # fmt: skip
def test_fails_whatever_the_budget(data: CalibrationData, text: str, said: str) -> None:
    verdict = Verifier(classifier(), data, target=CPU, max_drop=Drop(1e9)).check(classifier(text=text))
    assert verdict.failed and not verdict.passed and verdict.divergence == math.inf
    assert said in verdict.reasons[0]
    assert verdict.describe()["divergence"] is None


@pytest.mark.parametrize(
    ("before", "after", "same"), [(-1, 7, True), (-1, "N", True), ("N", "N", True), ("N", 7, False)]
)
def test_an_open_dimension_may_become_known(before: int | str, after: int | str, same: bool) -> None:
    def model(dim: int | str) -> Model:
        sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [dim, 2]) for name in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", sides[:1], sides[1:])
        return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))

    assert (changed_signature(model(before), model(after)) is None) is same


def test_original_that_does_not_run_is_an_error(data: CalibrationData) -> None:
    text = "g (float[N, 8] x) => (float[7, 5] y) { z = MatMul(x, w) y = Reshape(z, s) }"
    broken = parsed(text, w=WEIGHT, s=np.array([7, 5]))
    with pytest.raises(VerificationError, match="does not run"):
        Verifier(broken, data, target=CPU)


def test_labels_make_accuracy_the_metric(tmp_path: Path) -> None:
    model = classifier()
    labels = (X @ WEIGHT).argmax(axis=1)
    labels[:12] = (labels[:12] + 1) % 5
    data = opened(model, tmp_path, x=X, labels=labels)
    verifier = Verifier(model, data, target=CPU, max_drop=Drop(0.02))
    assert verifier.metric == "accuracy"
    assert verifier.original_score == pytest.approx(0.9)
    other = noisy(WEIGHT, 0.3)
    verdict = verifier.check(classifier(other))
    expected = 0.9 - np.mean((X @ other).argmax(axis=1) == labels)
    assert verdict.divergence == pytest.approx(expected)
    assert verdict.score == pytest.approx(0.9 - expected)
    assert verdict.passed is bool(expected <= 0.02)
    assert Verifier(model, data, target=CPU, metric="divergence").limit == DEFAULT_MAX_DIVERGENCE
    relative = Verifier(model, data, target=CPU, max_drop=Drop(0.01, is_relative=True))
    assert relative.limit == pytest.approx(0.009)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("kl", lambda p, q: np.mean((p * np.log(p / q)).sum(1))),
        ("cosine", lambda p, q: np.mean(1 - (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1))),
        ("sqnr", lambda p, q: np.mean(((p - q) ** 2).sum(1) / (p**2).sum(1))),
        ("mse", lambda p, q: np.mean((p - q) ** 2)),
        ("top1", lambda p, q: np.mean(p.argmax(1) != q.argmax(1))),
    ],
)
def test_named_metrics_equal_their_definitions(
    data: CalibrationData, metric: str, expected: Callable[..., float]
) -> None:
    def probabilities(weight: np.ndarray) -> np.ndarray:
        z = (X @ weight).astype(np.float64)
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    other = noisy(WEIGHT, 0.02)
    verifier = Verifier(classifier(), data, target=CPU, metric=metric, max_drop=Drop(0.5))
    got = verifier.check(classifier(other)).divergence
    assert got == pytest.approx(expected(probabilities(WEIGHT), probabilities(other)), rel=0.05, abs=1e-9)


def test_a_score_of_the_users_own(data: CalibrationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_score.py").write_text(
        "import numpy as np\ndef score(run):\n    return float(run({'x': np.ones((1, 8), np.float32)})['y'].max())\n"
    )
    monkeypatch.chdir(tmp_path)
    verifier = Verifier(classifier(), data, target=CPU, metric="own_score:score")
    assert verifier.original_score is not None
    assert verifier.limit == pytest.approx(0.01 * verifier.original_score)
    verdict = verifier.check(classifier(0 * WEIGHT))
    assert verdict.score == pytest.approx(0.2)
    assert verdict.divergence == pytest.approx(verifier.original_score - 0.2)
    assert not verdict.passed and "own_score:score fell" in verdict.reasons[0]


@pytest.mark.parametrize(("metric", "said"), [("nonsense", "metric: must be auto"), ("mse", "max-drop: must be given")])
def test_refuses_metrics_that_do_not_fit(data: CalibrationData, metric: str, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        Verifier(classifier(), data, target=CPU, metric=metric)


def test_kl_needs_class_scores(tmp_path: Path) -> None:
    model = parsed("g (float[N, 8] x) => (float[N] y) { y = ReduceSum<keepdims = 0>(x, last) }", last=np.array([1]))
    with pytest.raises(ParameterError, match="kl needs an output of class scores"):
        Verifier(model, opened(model, tmp_path, x=X), target=CPU, metric="kl")


def test_a_named_metric_of_classes_is_the_users_word(tmp_path: Path) -> None:
    model = parsed("g (float[N, 8] x) => (float[N, 8] y) { y = Mul(x, s) }", s=np.full(8, 100, np.float32))
    data = opened(model, tmp_path, x=X)
    assert Verifier(model, data, target=CPU).describe()["outputs"] == {"y": "values"}
    verifier = Verifier(model, data, target=CPU, metric="kl")
    assert verifier.describe()["outputs"] == {"y": "classes"}


def test_of_several_outputs_the_worst_counts(tmp_path: Path) -> None:
    text = (
        "g (float[N, 8] x) => (float[N, 8] a, float[N, 5] b, int64[N, 1] c)"
        " { n = Neg(x) a = Mul(n, s) z = MatMul(x, w) b = Softmax(z) c = ArgMax(z) }"
    )
    model = parsed(text, w=WEIGHT, s=np.ones(8, np.float32))
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    verdict = verifier.check(parsed(text, w=WEIGHT, s=np.full(8, 1.5, np.float32)))
    values = {name: each["divergence"] for name, each in verdict.describe()["outputs"].items()}
    assert values["b"] == values["z (into ArgMax)"] == 0
    assert verdict.divergence == values["a"] > DEFAULT_MAX_DIVERGENCE
    assert "output a" in verdict.reasons[0]


def test_samples_are_found_on_any_axis_and_sequences_are_compared(tmp_path: Path) -> None:
    text = (
        "g (float[T, batch, 8] x) => (float[T, batch, 5] y, seq(float[T, batch, 8]) s)"
        " { y = MatMul(x, w) s = SequenceConstruct(x, x) }"
    )
    model = parsed(text, w=WEIGHT)
    verifier = Verifier(model, opened(model, tmp_path, x=X.reshape(4, 30, 8)), target=CPU)
    assert verifier._outputs.axes == {"y": 1, "s[0]": 1, "s[1]": 1}
    assert verifier.samples == 30
    assert not verifier.check(parsed(text, w=noisy(WEIGHT, 1.0))).passed


def test_maps_of_class_scores_are_one_output(tmp_path: Path) -> None:
    """ZipMap, with which scikit-learn's classifiers are exported, makes a sequence of maps of the rows."""
    proto = classifier().proto
    proto.graph.node.add(op_type="ZipMap", domain="ai.onnx.ml", input=["y"], output=["scores"]).attribute.append(
        onnx.helper.make_attribute("classlabels_int64s", [3, 1, 4, 5, 9])
    )
    proto.opset_import.add(domain="ai.onnx.ml", version=1)
    maps = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, []))
    proto.graph.output[0].CopyFrom(onnx.helper.make_value_info("scores", onnx.helper.make_sequence_type_proto(maps)))
    changed = onnx.ModelProto.FromString(proto.SerializeToString())
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(noisy(WEIGHT, 0.3), "w"))
    plain = Verifier(classifier(), opened(classifier(), tmp_path, x=X), target=CPU)
    mapped = Verifier(load(proto), opened(load(proto), tmp_path, x=X), target=CPU)
    expected, got = plain.check(classifier(noisy(WEIGHT, 0.3))), mapped.check(load(changed))
    assert [each.name for each in got.outputs] == ["scores"] * len(expected.outputs)
    assert got.divergence == expected.divergence > 0 and got.agreement == expected.agreement


def mixing(noise: float, padded: int) -> Model:
    """Each position is the mean of those that the mask marks, plus its own; padding (mask == ``padded``) gets noise."""
    text = (
        "g (int64[N, T] ids, int64[N, T] mask) => (float[N, T, 40] y) {"
        " e = Gather(table, ids) same = Equal(mask, padded) m = Cast<to = 1>(same) p = Unsqueeze(m, last)"
        " k = Sub(one, p) kept = Mul(e, k) s = ReduceSum<keepdims = 1>(kept, first)"
        " own = Add(e, s) f = Mul(p, noise) y = Add(own, f) }"
    )
    table = np.random.default_rng(5).normal(size=(50, 40)).astype(np.float32)
    numbers = {"padded": np.array(padded), "last": np.array([2]), "first": np.array([1]), "one": np.ones(1, np.float32)}
    return parsed(text, table=table, noise=np.full(1, noise, np.float32), **numbers)


@pytest.mark.parametrize("padded", [0, 1])
def test_padding_is_what_changes_nothing_elsewhere(tmp_path: Path, padded: int) -> None:
    """In both senses of a mask, whatever it is called."""
    ids = RNG.integers(0, 50, (20, 6))
    real = np.arange(6)[None] < RNG.integers(1, 7, (20, 1))
    mask = np.where(real, 1 - padded, padded).astype(np.int64)
    data = opened(mixing(0, padded), tmp_path, ids=ids, mask=mask)
    verifier = Verifier(mixing(0, padded), data, target=CPU)
    assert verifier.check(mixing(100, padded)).divergence == 0
    assert not verifier.check(mixing(100, 1 - padded)).passed


def test_a_mask_without_padding_leaves_no_sample_without_weight(tmp_path: Path) -> None:
    ids = RNG.integers(0, 50, (20, 6))
    data = opened(mixing(0, 1), tmp_path, ids=ids, mask=np.zeros((20, 6), np.int64))
    verifier = Verifier(mixing(0, 1), data, target=CPU)
    assert not verifier.check(mixing(100, 0)).passed


def test_random_inputs_only_look_for_breakage() -> None:
    model = classifier()
    with model.opened_on(CPU.session) as session:
        data = CalibrationData.random(session.inputs, run=session.run)
    verifier = Verifier(model, data, target=CPU)
    assert verifier.describe()["random"] is True
    assert verifier.limit > DEFAULT_MAX_DIVERGENCE
    assert not verifier.check(classifier(-20 * WEIGHT)).passed


def test_same_verdict_isolated_and_with_outputs_on_disk(data: CalibrationData, monkeypatch: pytest.MonkeyPatch) -> None:
    other = classifier(noisy(WEIGHT, 0.1))
    expected = Verifier(classifier(), data, target=CPU).check(other)
    monkeypatch.setattr(reference, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("onnxcomp.verify.candidate.ISOLATE_FROM_BYTES", 1)
    verifier = Verifier(classifier(), data, target=CPU)
    assert verifier.check(other) == expected
    assert "process of its own" in verifier.notes[-1]


def test_a_small_result_of_a_large_original_runs_apart_and_without_decoding_its_weights_at_once(
    data: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def run(*_: Any, frugal: bool, **__: Any) -> None:
        asked.append(frugal)
        raise VerificationError("enough")

    monkeypatch.setattr("onnxcomp.verify.candidate.run_isolated", run)
    result = classifier()
    watched = Watched.of(result)
    with pytest.raises(VerificationError, match="enough"):
        list(WholeModel(result, data, CPU, watched, ISOLATE_FROM_BYTES, print).outputs())
    assert asked == [True]
    assert list(WholeModel(result, data, CPU, watched, result.size_bytes, print).outputs())
    assert asked == [True]


def test_models_without_inputs_are_compared() -> None:
    def constant(value: float) -> Model:
        return parsed("g () => (float[3] y) { y = Identity(c) }", c=np.full(3, value, np.float32))

    data = CalibrationData.random([], run=lambda feeds: None)
    verifier: Any = Verifier(constant(1.0), data, target=CPU)
    assert verifier.check(constant(1.0)).passed
    assert not verifier.check(constant(2.0)).passed

def test_a_wider_limit_counts_for_models_that_were_judged_before(tmp_path: Path) -> None:
    model = classifier()
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    far = classifier(noisy(WEIGHT, 0.5))
    before = verifier.check(far)
    assert verifier.check(far) is before and not before.passed
    verifier.allow(2 * before.divergence)
    after = verifier.check(far)
    assert after.passed and after.divergence == before.divergence and after.limit == verifier.limit
    verifier.allow(0.0)
    assert verifier.limit == 2 * before.divergence, "it never narrows"
