"""Passes under "then" are part of the choice: they verify, and replay with the data that they saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.errors import RecipeError
from onnxcomp.pipeline import optimize, replay
from onnxcomp.recipe import Recipe

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,24] x) => (float[N,6] y) {
    a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""
STEP = {"choose": ["quantize-weights", "cluster-weights"], "then": ["match-outputs"]}


def test_what_was_chosen_and_matched_verifies_and_replays(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (24, 64)), ("v", (64, 6))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    data = tmp_path / "calib.npz"
    np.savez(data, x=rng.standard_normal((200, 24)).astype(np.float32))
    recipe = Recipe.from_dict({"step": [STEP, {"pass": "store-compact"}]}, name="test")
    assert [each.pass_name() for each in recipe.steps[0].then] == ["match-outputs"]
    assert not recipe.without_calibration().steps[0].then
    result = optimize(proto, recipe=recipe, calibration=str(data), measure=False)
    assert result.receipt.verdict["passed"]
    assert any(each.rewrite == "match-outputs" for each in result.receipt.applied)
    ways = {each.parameters["towards"] for each in result.receipt.applied if each.rewrite == "match-outputs"}
    assert ways <= {"outputs", "weights"}, "a replay decides nothing"
    again = replay(proto, result.receipt, calibration=str(data))
    assert again.model.to_bytes() == result.model.to_bytes()
    with pytest.raises(RecipeError, match="replaying needs the calibration data"):
        replay(proto, result.receipt)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("match-outputs", "then must be a list of passes"),
        (["no-such"], "then: no-such: no such pass"),
        ([{"pass": "match-outputs", "rounds": 0}], "rounds must be"),
        ([{"pass": "match-outputs", "turns": 1}], "unknown key turns"),
    ],
)
def test_a_wrong_then_is_refused(then: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({"step": [STEP | {"then": then}]}, name="test")
