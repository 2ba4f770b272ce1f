"""onnxcomp.verify.evidence: what data show of a model, and verdicts that verify nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Evidence, OutputDivergence, Verdict, Verifier
from onnxcomp.verify.verdict import PART_FACTOR
from tests.verify.models import CPU, WEIGHT, X, classifier, noisy, opened, parsed


@pytest.mark.parametrize(
    ("evidence", "enough", "lack"),
    [
        (Evidence(2, ("y",), {}), True, ""),
        (Evidence(2, ("y",), {"z": "constant"}), True, ""),
        (Evidence(1, ("y",), {}), False, "all samples are the same"),
        (Evidence(0, ("y",), {}), False, "there are no samples"),
        (Evidence(9, (), {"y": "no values", "z": "constant"}), False, "output y: no values; output z: constant"),
        (Evidence(9, (), {}), False, "no output can be compared"),
    ],
)
def test_is_enough_of_two_samples_and_an_output(evidence: Evidence, enough: bool, lack: str) -> None:
    assert evidence.is_enough is enough
    assert lack in evidence.lack and bool(evidence.lack) is not enough
    assert json.loads(json.dumps(evidence.describe())) == {
        "distinct": evidence.distinct, "compared": list(evidence.compared), "silent": dict(evidence.silent),
    }  # fmt: skip


ONE = np.ones(1, np.float32)


def no_rows(limit: float = 1e9) -> Model:
    text = "g (float[N, 8] x) => (int64[2, K] y) { z = MatMul(x, w) over = Greater(z, limit) y = NonZero(over) }"
    return parsed(text, w=WEIGHT, limit=limit * ONE)


def constant(number: float = 0.0) -> Model:
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = Mul(x, zero) y = Add(a, c) }"
    return parsed(text, zero=0 * ONE, c=number * ONE)


def undefined(scale: float = -1.0) -> Model:
    text = "g (float[N, 8] x) => (float[N, 8] y) { s = Mul(x, x) a = Add(s, one) n = Mul(a, by) y = Sqrt(n) }"
    return parsed(text, one=ONE, by=scale * ONE)


def passed_on(text: str = "y = Identity(x)") -> Model:
    return parsed(f"g (float[N, 8] x) => (float[N, 8] y) {{ {text} }}")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (constant(), "constant"),
        (undefined(), "not finite"),
        (passed_on(), "a copy of input x"),
    ],
)
def test_outputs_that_show_nothing_verify_nothing(tmp_path: Path, model: Model, why: str) -> None:
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    assert verifier.evidence.silent == {"y": why}
    assert verifier.evidence.compared == () and not verifier.evidence.is_enough
    verdict = verifier.check(model)
    assert verdict.passed and not verdict.verified
    described = verdict.describe()
    assert described["verified"] is False
    assert described["divergence"] is described["resolution"] is None and described["interval"] == [None, None]
    json.dumps(verifier.describe(), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "broken"),
    [(constant(), constant(5.0)), (passed_on(), passed_on("y = Neg(x)"))],
)
def test_what_shows_nothing_shows_breakage(tmp_path: Path, model: Model, broken: Model) -> None:
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    assert verifier.limit > DEFAULT_MAX_DIVERGENCE
    assert not verifier.check(broken).passed


def test_where_no_rows_come_out_what_enters_is_compared(tmp_path: Path) -> None:
    verifier = Verifier(no_rows(), opened(no_rows(), tmp_path, x=X), target=CPU)
    assert verifier.evidence.silent == {"y": "no values"}
    assert verifier.evidence.compared == ("z (into Greater)",)


def test_one_sample_verifies_nothing(tmp_path: Path) -> None:
    data = opened(classifier(), tmp_path, x=X[:1])
    verifier = Verifier(classifier(), data, target=CPU)
    assert verifier.evidence.distinct == 1
    verdict = verifier.check(classifier(noisy(WEIGHT, 0.01)))
    assert not verdict.verified and verdict.describe()["divergence"] is None


def test_one_output_that_tells_is_enough_beside_silent_ones(tmp_path: Path) -> None:
    text = (
        "g (float[N, 8] x) => (float[N, 8] copy, float[N, 5] y, float[N, 8] zero)"
        " { copy = Identity(x) z = MatMul(x, w) y = Softmax(z) zero = Mul(x, nothing) }"
    )
    model = parsed(text, w=WEIGHT, nothing=0 * ONE)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    assert verifier.evidence.compared == ("y",)
    assert verifier.evidence.silent == {"copy": "a copy of input x", "zero": "constant"}
    verdict = verifier.check(parsed(text, w=noisy(WEIGHT, 0.01), nothing=0 * ONE))
    assert verdict.verified and verdict.describe()["divergence"] == verdict.divergence > 0
    assert verifier.limit == DEFAULT_MAX_DIVERGENCE


def test_outputs_left_out_on_request_are_evidence_of_nothing(tmp_path: Path) -> None:
    data = opened(classifier(), tmp_path, x=X)
    verifier = Verifier(classifier(), data, target=CPU, outputs={"y": "ignore"})
    assert verifier.evidence.silent == {"y": "left out on request"}
    assert not verifier.check(classifier(noisy(WEIGHT, 0.01))).verified


def test_no_samples_are_no_evidence() -> None:
    verifier = Verifier(classifier(), CalibrationData.nothing("no inputs are known"), target=CPU)
    assert verifier.evidence.distinct == 0 and not verifier.evidence.is_enough
    assert verifier.evidence.lack
    assert not verifier.check(classifier()).verified


def test_a_search_passes_only_if_every_measure_would_pass_higher() -> None:
    """The second measure is better by its estimate and rests on fewer samples."""
    steady = OutputDivergence("y", "classes", "classes", 0.02, 0.018, 0.022)
    shaky = OutputDivergence("y", "classes", "balanced classes", 0.015, 0.0, 0.05)

    def verdict(*outputs: OutputDivergence) -> Verdict:
        worst = max(outputs, key=lambda each: each.value)
        return Verdict(divergence=worst.value, interval=(worst.low, worst.high), limit=0.03, samples=9, outputs=outputs)

    assert verdict(steady).passed_safely and verdict(steady).safe_divergence == pytest.approx(0.022)
    assert verdict(steady, shaky).passed and not verdict(steady, shaky).passed_safely
    assert verdict(steady, shaky).safe_divergence == pytest.approx(0.05)


def test_the_worst_of_several_parts_counts_more_in_a_search() -> None:
    pooled = OutputDivergence("y", "classes", "classes", 0.025, 0.024, 0.026)
    part = OutputDivergence("y", "classes", "on its own states: worst channel", 0.024, 0.0235, 0.0245)

    def verdict(*outputs: OutputDivergence) -> Verdict:
        return Verdict(divergence=0.025, interval=(0.024, 0.026), limit=0.03, samples=9, outputs=outputs)

    assert verdict(pooled).passed_safely
    assert verdict(pooled, part).passed and not verdict(pooled, part).passed_safely
    assert verdict(pooled, part).safe_divergence == pytest.approx(PART_FACTOR * 0.024)


def sure_of(folder: Path, margins: np.ndarray) -> list[str]:
    """The notes of a judge of softmax on logits with these margins of one of three classes."""
    logits = np.zeros((len(margins), 3), np.float32)
    logits[np.arange(len(margins)), np.arange(len(margins)) % 3] = margins
    model = parsed("g (float[N, 3] x) => (float[N, 3] y) { z = Softmax(x) y = Identity(z) }")
    return Verifier(model, opened(model, folder, x=logits), target=CPU).notes


def test_where_no_sample_is_in_doubt_it_is_said(tmp_path: Path) -> None:
    """Margins of 4 are a probability of 0.965, of 2 of 0.787."""
    margins = np.linspace(4, 8, 80)
    [note] = sure_of(tmp_path, margins)
    assert note.startswith("the original is sure of all 80 samples (its least winning probability is 0.96)")
    assert not sure_of(tmp_path, np.append(margins, 2.0))
    assert not sure_of(tmp_path, margins[:60])  # so few may well be easy ones
