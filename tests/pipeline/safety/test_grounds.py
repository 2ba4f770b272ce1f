"""Data that show nothing license no more than none, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.errors import CalibrationError
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize
from onnxcomp.recipe import Apply, Choose, Race, Recipe
from onnxcomp.registry import get_pass
from onnxcomp.verify.limits import BREAKAGE_DIVERGENCE

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x, float[N,32] scale) => (float[N,48] y) {
    s = Mul(x, scale) y = MatMul(s, w) }"""
NOISE = np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32)
SAME, SILENT = {"x": np.ones_like(NOISE), "scale": np.ones_like(NOISE)}, {"x": NOISE, "scale": np.zeros_like(NOISE)}


def net() -> Model:
    proto = parser.parse_model(TEXT)
    values = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return load(proto)


@pytest.fixture
def calib(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], str]:
    """Writes inputs and gives their path."""

    def write(arrays: dict[str, np.ndarray]) -> str:
        np.savez(tmp_path / "c.npz", **arrays)  # type: ignore[arg-type]
        return str(tmp_path / "c.npz")

    return write


Calib = Callable[[dict[str, np.ndarray]], str]


@pytest.mark.parametrize(("arrays", "said"), [(SAME, "output y: constant"), (SILENT, "output y: ")])
def test_data_that_show_nothing_license_eight_bits(calib: Calib, arrays: dict[str, np.ndarray], said: str) -> None:
    steps = Choose((get_pass("cluster-weights")(),)), Apply(get_pass("match-outputs")(), when="calibration")
    recipe = Recipe("r", steps)
    result = optimize(net(), recipe=recipe, calibration=calib(arrays), measure=False)
    [note] = [each for each in result.receipt.notes if each.startswith("not verified: ")]
    assert said in note and note.endswith("only what is safe without data was done")
    assert [each.rewrite for each in result.receipt.steps] == ["cluster-weights"]
    assert result.receipt.metric["limit"] == BREAKAGE_DIVERGENCE
    verdict = result.receipt.verdict
    assert (verdict["passed"], verdict["verified"], verdict["divergence"]) == (True, False, None)
    without = optimize(net(), recipe=recipe, measure=False)
    assert result.model.to_bytes() == without.model.to_bytes()


def test_one_bit_is_refused_on_data_that_show_nothing(calib: Calib) -> None:
    recipe = Recipe.of(get_pass("binarize-weights")())
    [report] = optimize(net(), recipe=recipe, calibration=calib(SAME), measure=False).receipt.steps
    assert report.decision == "taken back" and report.reason == "w: no sample reaches it"


def test_nothing_is_calibrated_on_data_that_show_nothing(calib: Calib) -> None:
    recipe = Recipe.of(get_pass("quantize-static")())
    with pytest.raises(CalibrationError, match=r"quantize-static.*output y: constant"):
        optimize(net(), recipe=recipe, calibration=calib(SAME), measure=False)


def test_what_was_not_tried_for_want_of_data_is_said(calib: Calib) -> None:
    recipe = Recipe("r", (Race.of([get_pass("quantize-static")()], [get_pass("quantize-dynamic")()]),))
    said = "not tried without calibration data (32 samples or more): quantize-static"
    assert said in optimize(net(), recipe=recipe, measure=False).receipt.notes
    arrays = {"x": NOISE, "scale": np.ones_like(NOISE)}
    assert said not in optimize(net(), recipe=recipe, calibration=calib(arrays), measure=False).receipt.notes
