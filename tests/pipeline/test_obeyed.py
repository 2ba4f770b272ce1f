"""The verdict is obeyed: what does not hold in the end, or cannot be stored, is taken back; reasons are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget, Drop
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.errors import VerificationError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline import Result, optimize
from onnxcomp.pipeline.reports.compare import compare
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.steps import exact, judged
from onnxcomp.recipe import Apply, Choose, Recipe, Step
from onnxcomp.registry import get_pass
from onnxcomp.verify import Verdict, Verifier

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,16] x) => (float[N,16] y) {
    a = MatMul(x, w) b = Tanh(a) y = MatMul(b, v) }"""
SCALED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,16] x) => (float[N,16] y) {
    a = MatMul(x, w) b = BatchNormalization(a, s, t, m, d) y = MatMul(b, v) }"""


@dataclass(frozen=True, kw_only=True)
class ScaleWeights(Pass):
    """Multiply every weight by a number near one."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    factor: float = parameter(1.01, help="the number")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            weight.set(weight.values * np.float32(self.factor))
            outcome.change(weight.name, "scaled")
        return outcome


def net(text: str = TEXT) -> Model:
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), name))
    for name in "stmd" if text == SCALED else "":
        values = (rng.standard_normal(16) ** 2 + 0.1).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


@pytest.fixture
def calib(tmp_path: Path) -> str:
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((60, 16)).astype(np.float32))
    return str(path)


def run(calib: str, *steps: Pass | Step, model: Model | None = None, **options: object) -> Result:
    return optimize(model or net(), recipe=Recipe.of(*steps), calibration=calib, measure=False, **options)  # type: ignore[arg-type]


def spoilt(monkeypatch: pytest.MonkeyPatch, spoils: Callable[[Verifier, Model], bool]) -> None:
    """Verdicts fail where ``spoils`` says so."""
    check = Verifier.check

    def checking(self: Verifier, model: Model) -> Verdict:
        found = check(self, model)
        if spoils(self, model):
            return replace(found, divergence=9.0, interval=(9.0, 9.0), outputs=(), reasons=("spoilt",))
        return found

    monkeypatch.setattr(Verifier, "check", checking)


def first(model: Model) -> float:
    values: np.ndarray = numpy_helper.to_array(model.proto.graph.initializer[0])
    return float(values.reshape(-1)[0])


def test_a_result_that_does_not_hold_in_the_end_gives_way_to_the_last_that_does(
    calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step passes when it is made, and no more at the end."""
    wanted = first(net()) * 1.01
    seen: list[Model] = []

    def spoils(verifier: Verifier, model: Model) -> bool:
        again = any(model is each for each in seen)
        seen.append(model)
        return again and first(model) != pytest.approx(wanted) and first(model) != first(net())

    spoilt(monkeypatch, spoils)
    result = run(calib, ScaleWeights(), ScaleWeights(factor=1.02))
    assert first(result.model) == pytest.approx(wanted)
    assert [each.decision for each in result.receipt.steps] == ["kept", "taken back"]
    assert "spoilt" in result.receipt.steps[1].reason and len(result.receipt.applied) == 1
    assert result.receipt.verdict["passed"]


def test_an_original_that_does_not_hold_itself_is_an_error(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, lambda verifier, model: True)
    with pytest.raises(VerificationError, match=r"compared with itself.*spoilt"):
        run(calib, ScaleWeights())


@pytest.mark.parametrize(("share", "decision"), [(0.1, "taken back"), (0.005, "kept")])
def test_an_exact_step_is_held_to_a_share_of_the_limit_in_use(calib: str, share: float, decision: str) -> None:
    """What float rounding changes is that share of the limit, and in any case far less than the default allows."""
    fuse, model = get_pass("fuse-batch-norm")(), net(SCALED)
    fused = run(calib, fuse, model=model).model
    changed = compare(model, fused, calibration=calib, metric="mse", max_drop=Drop(1.0)).verdict.divergence
    budget = Budget(max_drop=Drop(changed / share))
    receipt = run(calib, fuse, model=model, metric="mse", budget=budget).receipt
    assert receipt.steps[0].decision == decision
    assert receipt.verdict["passed"] and bool(receipt.applied) == (decision == "kept")


def test_values_that_cannot_be_stored_are_put_back(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model with a decoder in it fails: the rounding that was to be stored by it has gained nothing."""
    spoilt(monkeypatch, lambda verifier, model: len(model.proto.graph.node) > 3)
    model = wide()
    rounded = get_pass("quantize-weights")(bits=8)
    result = run(calib, ScaleWeights(factor=1.0001), rounded, get_pass("store-compact")(), model=model)
    decisions = {each.rewrite: each.decision for each in result.receipt.steps}
    assert decisions == {"scale-weights": "kept", "quantize-weights": "taken back", "store-compact": "taken back"}
    assert "cannot be stored" in result.receipt.steps[1].reason
    assert not result.model.encodings and [each.rewrite for each in result.receipt.applied] == ["scale-weights"]
    assert first(result.model) == pytest.approx(first(model) * 1.0001)


def wide() -> Model:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (16, 256)), ("v", (256, 16))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return load(proto)


def test_a_weight_that_decodes_to_other_values_stays_plain_and_the_others_are_stored(
    calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing = type(get_pass("store-compact")())
    shipped = storing.faults
    calls: list[int] = []

    def once(self: Pass, before: Model, after: Model) -> Sequence[str]:
        calls.append(1)
        return ["w"] if len(calls) == 1 else shipped(self, before, after)

    monkeypatch.setattr(storing, "faults", once)
    result = run(calib, get_pass("quantize-weights")(bits=8), get_pass("store-compact")(), model=wide())
    stored = result.receipt.steps[1]
    assert stored.decision == "kept" and [each.name for each in stored.changed] == ["v"]
    assert "other values" in {each.name: each.what for each in stored.skipped}["w"]
    assert "w" not in (result.receipt.applied[1].choice or [])


def test_a_step_that_does_not_load_says_so(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Verifier.check

    def checking(self: Verifier, model: Model) -> Verdict:
        if model.to_bytes() != net().to_bytes():
            return replace(check(self, model), divergence=np.inf, failed=True, reasons=("it cannot load",))
        return check(self, model)

    monkeypatch.setattr(Verifier, "check", checking)
    [report] = run(calib, ScaleWeights()).receipt.steps
    assert report.decision == "taken back" and report.reason == "it cannot load"


def test_a_choice_that_changes_nothing_is_not_kept(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, lambda verifier, model: bool(model.encodings))
    step = Choose((get_pass("quantize-weights")(),))
    [report] = run(calib, step, model=wide()).receipt.steps
    assert report.decision in ("nothing to do", "taken back") and "spoilt" in report.reason


def test_speed_that_does_not_come_leaves_divergence_as_it_was(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact step after it is allowed no more than before."""
    monkeypatch.setattr(judged, "latency_ratio", lambda *given: 1.5)
    fast = replace_effect(ScaleWeights(factor=1.1))
    made = Recipe("r", (Apply(fast), Apply(get_pass("remove-noops")())), goal="latency")
    ledgers: list[float] = []
    verify = exact.changed_by_exact

    def noting(before: Model, after: Model, run: Run) -> str | None:
        ledgers.append(run.ledger.divergence)
        return verify(before, after, run)

    monkeypatch.setattr(exact, "changed_by_exact", noting)
    result = optimize(net(), recipe=made, calibration=calib, measure=False)
    assert result.receipt.steps[0].decision == "taken back" and ledgers[-1] == 0.0


def replace_effect(rewrite: ScaleWeights) -> Pass:
    @dataclass(frozen=True, kw_only=True)
    class ScaleFast(ScaleWeights):
        """Multiply every weight, in the name of speed."""

        effect = Effect(shrinks=("latency",), exact=Exact.NOWHERE)

    return ScaleFast(factor=rewrite.factor)
