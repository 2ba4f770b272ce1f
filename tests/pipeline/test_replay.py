"""Replaying gives the receipt's bytes or an error: nothing is called verified that was not made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import CalibrationError, ModelError
from onnxcomp.model import load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.history.digests import data_digest
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.target import Target

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,24] x) => (float[N,6] y) {
    a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""


def net() -> onnx.ModelProto:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (24, 64)), ("v", (64, 6))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return proto


def samples(path: Path, factor: float = 1.0) -> str:
    np.savez(path, x=factor * np.random.default_rng(1).standard_normal((80, 24)).astype(np.float32))
    return str(path)


@pytest.fixture
def receipt(tmp_path: Path) -> Receipt:
    """Of rounding that draws on data."""
    recipe = Recipe.of(get_pass("quantize-weights")(bits=6))
    return optimize(net(), recipe=recipe, calibration=samples(tmp_path / "c.npz"), measure=False).receipt


def test_other_data_are_refused(receipt: Receipt, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="made with other calibration data"):
        replay(net(), receipt, calibration=samples(tmp_path / "other.npz", 3.0))
    again = replay(net(), receipt, calibration=samples(tmp_path / "renamed.npz"))
    assert again.receipt.result["sha256"] == receipt.result["sha256"]


def test_a_receipt_without_its_applications_is_refused(receipt: Receipt) -> None:
    receipt.applied.clear()
    with pytest.raises(ModelError, match="another model"):
        replay(net(), receipt)


def test_a_receipt_that_does_not_say_what_it_made_is_refused(receipt: Receipt, tmp_path: Path) -> None:
    receipt.result["sha256"] = None
    with pytest.raises(ModelError, match="sha256"):
        replay(net(), receipt, calibration=str(tmp_path / "c.npz"))


def test_the_receipt_names_the_bytes_that_are_saved(tmp_path: Path) -> None:
    """With the codes that wait for storage, which are part of the file."""
    recipe = Recipe.of(get_pass("quantize-weights")(bits=6))
    result = optimize(net(), recipe=recipe, measure=False)
    before = result.receipt.result["sha256"]
    result.save(tmp_path / "out.onnx")
    assert result.model.encodings and result.receipt.result["sha256"] == before


def test_the_oldest_runtime_that_was_asked_for_is_asked_for_again() -> None:
    target = Target.of("cpu", min_ort=(1, 12))
    recipe = Recipe.of(get_pass("quantize-weights")(bits=6), get_pass("store-compact")())
    result = optimize(net(), recipe=recipe, target=target, measure=False)
    assert result.receipt.min_ort == "1.12"
    assert replay(net(), result.receipt).model.opset == result.model.opset


def test_data_are_known_by_their_content_alone(tmp_path: Path) -> None:
    def digest(name: str, factor: float = 1.0, batch_size: int = 32) -> str:
        path = samples(tmp_path / name, factor)
        with load(net()).opened_on(Target.of("cpu").session) as session:
            return data_digest(CalibrationData.open(path, session.inputs, batch_size=batch_size))

    assert digest("a.npz") == digest("b.npz", batch_size=5) != digest("c.npz", 2.0)


def test_a_run_keeps_its_files_to_itself(tmp_path: Path) -> None:
    """The caller's model may go on with other data, or be written over this run's."""
    model, data = load(net()), tmp_path / "calib.npz"
    result = optimize(model, recipe="lossless", calibration=samples(data), measure=False)
    again = replay(model, result.receipt, calibration=str(data))
    assert result.model.inputs.holds(data) and again.model.inputs.holds(data)
    assert not model.inputs.paths
    samples(data, 2.0)
    optimize(model, recipe="lossless", calibration=str(data), measure=False)
