"""The ledger: what is taken back is taken back in the model, the applications and the account alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context, Outcome
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.pipeline.history.ledger import Ledger
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.receipt import Application, Entry, Receipt, StepReport
from onnxcomp.registry import get_pass
from onnxcomp.verify import Verdict

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }'
EXACT, LOSSY = get_pass("remove-noops")(), get_pass("prune-weights")()


def model(fill: float = 1.0) -> Model:
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.append(numpy_helper.from_array(np.full((4, 4), fill, np.float32), "w"))
    return load(proto)


def report(name: str) -> StepReport:
    return StepReport(name, "kept", {}, 10, 10, 0.0, changed=[Entry("w", "changed")])


def verdict(divergence: float) -> Verdict:
    return Verdict(divergence=divergence, interval=(0, 1), limit=0.03, samples=9)


@pytest.fixture
def ledger() -> Ledger:
    nothing: dict[str, Any] = {}
    receipt = Receipt("r", 0, "cpu", {}, nothing, nothing, nothing)
    return Ledger(receipt, Lineage.of(model()))


def kept(ledger: Ledger, name: str, divergence: float, made: Model) -> StepReport:
    """One lossy step on the books."""
    found = report(name)
    ledger.receipt.steps.append(found)
    ledger.keep(found, ledger.line.lost(made), [Application(name, {})], verdict=verdict(divergence))
    return found


def test_what_is_taken_back_leaves_no_trace(ledger: Ledger) -> None:
    first, second, third = model(2.0), model(3.0), model(4.0)
    one = kept(ledger, "one", 0.01, first)
    two, three = kept(ledger, "two", 0.02, second), kept(ledger, "three", 0.03, third)
    ledger.take_back(1, "too slow")
    assert ledger.current is first and ledger.divergence == 0.01
    assert [each.rewrite for each in ledger.receipt.applied] == ["one"]
    assert (one.decision, one.divergence) == ("kept", 0.01)
    for each in (two, three):
        assert (each.decision, each.reason, each.changed) == ("taken back", "too slow", [])
        assert each.bytes_after == first.size_bytes and each.divergence is None and each.interval is None


def test_all_steps_taken_back_leave_the_original(ledger: Ledger) -> None:
    original = ledger.current
    kept(ledger, "one", 0.01, model(2.0))
    ledger.take_back(0, "slower")
    assert ledger.current is original and ledger.divergence == 0.0 and not ledger.receipt.applied
    assert ledger.line.is_exact
    ledger.take_back(0, "again")  # nothing is left to take back


def coded(fill: float) -> Model:
    """The model with its weight in codes that nothing has stored yet."""
    made = model(fill)
    return made.with_proto(made.proto, {"w": MaskEncoding(dtype="float32")})


def test_values_wait_for_storage_until_a_step_saved_bytes(ledger: Ledger) -> None:
    assert ledger.waiting() == 0
    kept(ledger, "plain", 0.01, model(2.0))
    assert ledger.waiting() == 1  # no codes, nothing to store
    kept(ledger, "coded", 0.02, coded(3.0))
    kept(ledger, "later", 0.02, model(3.0))
    assert ledger.waiting() == 1


def original(line: Lineage) -> Model | None:
    reference = line.context(Context()).reference
    return None if reference is None else reference.model


def test_passes_that_repair_see_the_model_after_the_last_exact_pass() -> None:
    start, equalized, rounded, tidied = model(1.0), model(2.0), model(3.0), model(4.0)
    line = Lineage.of(start).after(EXACT, equalized, Outcome())
    assert original(line) is equalized
    line = line.after(LOSSY, rounded, Outcome()).after(EXACT, tidied, Outcome())
    assert line.current is tidied and original(line) is equalized
    assert original(Lineage.of(start).lost(rounded)) is start
    assert original(Lineage.of(start).lost(rounded).after(EXACT, tidied, Outcome())) is start
