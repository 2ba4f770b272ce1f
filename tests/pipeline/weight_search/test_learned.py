"""A step that is done once more, for nodes that came out wrong, goes on from what its first search had made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context
from onnxcomp.model import Model
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.weight_search import fits
from onnxcomp.pipeline.weight_search.candidates import Table, WeightOption
from onnxcomp.pipeline.weight_search.learned import Learned
from onnxcomp.recipe import Recipe

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,40] x) => (float[N,6] y) {
    a = MatMul(x, busy) b = MatMul(x, idle) c = MatMul(b, small) y = Add(a, c) }"""
PLAIN, FINE, ROUGH = WeightOption(None, 400, 0.0), WeightOption(0, 100, 0.005), WeightOption(1, 50, 0.2)


def test_held_weights_keep_what_leaves_little_error_foreseen_and_made() -> None:
    learned, made = Learned(), WeightOption(2, 40, 0.001)
    learned.foresee(Table({"w": [PLAIN, FINE, ROUGH, WeightOption(2, 40, 0.3)], "v": [PLAIN, ROUGH]}))
    table = Table({"w": [PLAIN, FINE, ROUGH, made], "v": [PLAIN, ROUGH]})
    learned.keep(Model.__new__(Model), table, {"w": FINE, "v": PLAIN})
    table.options.clear()
    found, mild = learned.again(Context(exclude=("v",)), frozenset({"w"}), 0.01)
    assert found.options == {"w": [PLAIN, FINE]} and mild == {"w": FINE}
    assert [each.name for each in found.skipped] == ["v"]
    again, _ = learned.again(Context(), frozenset(), 0.01)
    assert again.options == {"w": [PLAIN, FINE, ROUGH, made], "v": [PLAIN, ROUGH]}


def test_what_was_measured_stays_so() -> None:
    learned, table = Learned(), Table({"w": [PLAIN, FINE]})
    table.influence["w", 0], table.measured["w", 0] = 3.0, 0.02
    learned.keep(Model.__new__(Model), table, {"w": FINE})
    assert not learned.again(Context(), (), 0.01)[0].influence and not learned.is_measured
    learned.keep(Model.__new__(Model), table, {"w": FINE}, is_measured=True)
    again, _ = learned.again(Context(), (), 0.01)
    assert (again.influence, again.measured, learned.is_measured) == (table.influence, table.measured, True)


def test_nothing_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs hardly show ``idle``, whose node is then off by more than it may be."""
    rng = np.random.default_rng(0)
    values = {"busy": rng.standard_normal((40, 6)), "idle": rng.standard_normal((40, 64)),
              "small": 1e-4 * rng.standard_normal((64, 6))}  # fmt: skip
    proto = parser.parse_model(TEXT)
    for name, each in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(each.astype(np.float32), name))
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((200, 40)).astype(np.float32))
    counts: Counter[tuple[str, Any]] = Counter()
    fitted = fits.fitted

    def counting(weight: Any, rewrite: Any, known: Any, *rest: Any) -> Any:
        if known is not fits._PREPARE:
            counts[weight.name, rewrite] += 1
        return fitted(weight, rewrite, known, *rest)

    monkeypatch.setattr(fits, "fitted", counting)
    step = {"choose": ["quantize-weights", "cluster-weights"]}
    recipe = Recipe.from_dict({"step": [step, {"pass": "store-compact"}]}, name="test")
    data = str(tmp_path / "calib.npz")
    result = optimize(proto, recipe=recipe, calibration=data, measure=False)
    assert any("idle" in note and "done once more" in note for note in result.receipt.notes)
    assert counts and max(counts.values()) <= 2, "at most once without data and once with"
    assert replay(proto, result.receipt, calibration=data).model.to_bytes() == result.model.to_bytes()
