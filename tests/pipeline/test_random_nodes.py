"""Models that draw random numbers: compared with the same noise, or not made to lose anything."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget
from onnxcomp.errors import ModelError, VerificationError
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.reports.compare import compare
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass

SAMPLES, WIDTH = 160, 16
HEAD = '<ir_version: 8, opset_import: ["" : 15, "own" : 1]> g (float[N,16] x) => (float[N,16] y)'
DRAWING = """{ i = Identity(x)  a = MatMul(i, w0)  n = RandomNormalLike(a)  z = Add(a, n)
    b = MatMul(z, w1)  d = Relu(b)  y = MatMul(d, w2) }"""
# The seed is a parameter of the function, and the call does not give one.
UNSEEDED = """{ i = Identity(x)  a = MatMul(i, w0)  z = own.noisy(a)  y = MatMul(z, w1) }
    <domain: "own", opset_import: ["" : 15]> noisy<seed>(a) => (b) {
      n = RandomNormalLike<seed: float = @seed>(a)  b = Add(a, n) }"""


def model_of(body: str) -> Model:
    proto = parser.parse_model(f"{HEAD} {body}")
    rng = np.random.default_rng(0)
    for name in ("w0", "w1", "w2"):
        values = (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(1).standard_normal((SAMPLES, WIDTH)).astype(np.float32))
    return tmp_path / "c.npz"


def seeds_in(proto: onnx.ModelProto) -> list[str]:
    return [each.name for node in proto.graph.node for each in node.attribute if each.name == "seed"]


def test_the_default_recipe_is_verified_with_the_same_noise_and_leaves_no_seed(data: Path, tmp_path: Path) -> None:
    model = model_of(DRAWING)
    onnx.save(model.proto, tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", calibration=data, measure=False)
    receipt = result.receipt
    assert receipt.result["ratio"] < 0.75 and receipt.verdict["passed"]
    assert not seeds_in(result.model.proto)
    assert receipt.source["bytes"] == (tmp_path / "m.onnx").stat().st_size
    result.save(tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").stat().st_size == receipt.result["bytes"]
    again = replay(tmp_path / "m.onnx", receipt, calibration=data)
    assert again.model.to_bytes() == result.model.to_bytes()
    found = compare(tmp_path / "m.onnx", tmp_path / "r.onnx", calibration=data)
    assert found.verdict.passed and not found.notes


def test_weights_are_matched_to_outputs_under_the_same_noise(data: Path) -> None:
    """Without it the moments of two models say little of each other, and matching makes the error larger."""
    rounding = get_pass("quantize-weights")(bits=8)
    model = model_of(DRAWING)
    plain = optimize(model, recipe=Recipe.of(rounding), calibration=data, budget=Budget(), measure=False)
    matched = optimize(model, recipe=Recipe.of(rounding, get_pass("match-outputs")()), calibration=data, measure=False)
    assert matched.receipt.steps[-1].changed
    assert matched.receipt.verdict["divergence"] < plain.receipt.verdict["divergence"]


def test_nothing_done_gives_back_the_original_byte_for_byte(data: Path) -> None:
    model = model_of(DRAWING)
    result = optimize(model, recipe=Recipe.of(get_pass("store-compact")()), calibration=data, measure=False)
    assert result.model.to_bytes() == model.to_bytes()


def test_noise_that_no_seed_holds_leaves_exact_steps_only_and_says_so(data: Path) -> None:
    result = optimize(model_of(UNSEEDED), recipe="default", calibration=data, measure=False)
    assert all(get_pass(step.rewrite).effect.is_exact for step in result.receipt.steps)
    assert "Identity" not in [node.op_type for node in result.model.proto.graph.node]
    assert any("lossy steps are left out: the model draws random numbers" in each for each in result.receipt.notes)


def test_a_lossy_pass_alone_is_refused_where_no_seed_holds_the_noise(data: Path) -> None:
    with pytest.raises(VerificationError, match="nothing can be verified: the model draws random numbers"):
        optimize(model_of(UNSEEDED), recipe=Recipe.of(get_pass("quantize-weights")()), calibration=data)


def test_a_result_keeps_the_inputs_of_the_run_as_they_are(data: Path, tmp_path: Path) -> None:
    onnx.save(model_of(DRAWING).proto, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    stripped = Recipe.of(get_pass("strip-metadata")())
    result = optimize(tmp_path / "m.onnx", recipe=stripped, calibration=data, measure=False)
    assert result.model.has_data_files
    for read in (data, tmp_path / "w", tmp_path / "m.onnx"):
        with pytest.raises(ModelError, match="never written to"):
            result.save(read, force=True)
