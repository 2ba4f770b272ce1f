"""correct-bias: means that come back, every place a bias can stand, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target

NAME = "correct-bias"
BODIES = {
    "Conv": ("float[N,4,6,6] x", "y = Conv(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}, 1),
    "Conv1d": ("float[N,4,6] x", "y = Conv(x, w, b)", {"w": (6, 4, 3), "b": (6,)}, 1),
    "Conv without": ("float[N,4,6,6] x", "y = Conv(x, w)", {"w": (6, 4, 3, 3)}, 1),
    "grouped": ("float[N,4,6,6] x", "y = Conv<group = 2>(x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}, 1),
    "ConvTranspose": ("float[N,4,6,6] x", "y = ConvTranspose<group = 2>(x, w, b)", {"w": (4, 3, 3, 3), "b": (6,)}, 1),
    "Gemm": ("float[N,12] x", "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)", {"w": (8, 12), "b": (8,)}, -1),
    "Gemm of one bias": ("float[N,12] x", "y = Gemm(x, w, b)", {"w": (12, 8), "b": ()}, -1),
    "Gemm without": ("float[N,12] x", "y = Gemm(x, w)", {"w": (12, 8)}, -1),
    "MatMul": ("float[N,M,12] x", "p = MatMul(x, w) y = Add(b, p)", {"w": (12, 8), "b": (8,)}, -1),
    "MatMul of one bias": ("float[N,M,12] x", "p = MatMul(x, w) y = Add(p, b)", {"w": (12, 8), "b": (1, 1)}, -1),
    "two": (
        "float[N,4,6,6] x",
        "p = Conv(x, w, b) q = Relu(p) y = Conv(q, v, c)",
        {"w": (6, 4, 3, 3), "b": (6,), "v": (5, 6, 3, 3), "c": (5,)},
        1,
    ),
}


def model_of(inputs: str, body: str, constants: dict[str, tuple[int, ...]], *, error: float = 0.0) -> Model:
    """Drawn constants; ``error``: the share by which each weight is off."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (y) {{ {body} }}')
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    for name, shape in constants.items():
        values = rng.standard_normal(shape)
        wrong = error * rng.standard_normal(shape) if len(shape) > 1 and name in "wv" else 0.0
        proto.graph.initializer.append(numpy_helper.from_array((values + wrong).astype(np.float32), name))
    return load(proto)


def data_for(model: Model, folder: Path) -> CalibrationData:
    spec = model.proto.graph.input[0].type.tensor_type
    dims = [each.dim_value or 16 for each in spec.shape.dim]
    np.savez(folder / "calib.npz", x=(np.random.default_rng(1).standard_normal(dims) + 1).astype(np.float32))
    return CalibrationData.open(folder / "calib.npz", Session(model.to_bytes()).inputs)


def apply(model: Model, context: Context, name: str = NAME, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = get_pass(name)(**fields).apply(graph, context)
    return close_graph(graph), outcome


def outputs(model: Model, data: CalibrationData) -> np.ndarray:
    session = Session(model.to_bytes())
    return np.concatenate([session.run(feeds)["y"].astype(np.float64) for feeds in data.batches()])


def means(model: Model, data: CalibrationData, axis: int) -> np.ndarray:
    """The mean of each channel of y, by running the model."""
    moved = np.moveaxis(outputs(model, data), axis, 0)
    return moved.reshape(len(moved), -1).mean(axis=1)


@pytest.mark.parametrize("mode", ["empirical", "analytic"])
@pytest.mark.parametrize("case", [each for each in BODIES if each != "two"])
def test_the_means_are_the_originals_again(case: str, mode: str, tmp_path: Path) -> None:
    inputs, body, constants, axis = BODIES[case]
    original, model = (model_of(inputs, body, constants, error=error) for error in (0.0, 0.1))
    data = data_for(model, tmp_path)
    after, outcome = apply(model, Context(calibration=data, reference=Reference(original)), mode=mode)
    assert len(outcome.changed) == 1
    wanted, before, found = (means(each, data, axis) for each in (original, model, after))
    assert np.abs(before - wanted).max() > 1e-2
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_node_behind_another_is_corrected_for_what_is_then_left(tmp_path: Path) -> None:
    inputs, body, constants, axis = BODIES["two"]
    original, model = (model_of(inputs, body, constants, error=error) for error in (0.0, 0.2))
    data = data_for(model, tmp_path)
    after, outcome = apply(model, Context(calibration=data, reference=Reference(original)), mode="empirical")
    assert len(outcome.changed) == 2
    assert means(after, data, axis) == pytest.approx(means(original, data, axis), abs=1e-4)
    one, outcome = apply(model, Context(calibration=data, reference=Reference(original)), mode="empirical", rounds=1)
    assert [each.name for each in outcome.changed] == ["y"], "the last level of nodes is the one"
    assert means(one, data, axis) == pytest.approx(means(original, data, axis), abs=1e-4)


def test_an_add_is_put_in_where_asked(tmp_path: Path) -> None:
    original, model = (model_of("float[N,12] x", "y = MatMul(x, w)", {"w": (12, 8)}, error=error) for error in (0, 0.1))
    data = data_for(model, tmp_path)
    context = Context(calibration=data, reference=Reference(original))
    _, outcome = apply(model, context)
    assert "no bias" in outcome.skipped[0].reason
    after, _ = apply(model, context, insert=True)
    assert [each.op_type for each in after.proto.graph.node] == ["MatMul", "Add"]
    assert means(after, data, -1) == pytest.approx(means(original, data, -1), abs=1e-5)


def test_a_shared_bias_is_changed_for_its_own_node_only(tmp_path: Path) -> None:
    body = "p = Gemm(x, w, b) q = Gemm(x, v, b) y = Sub(p, q)"
    constants: dict[str, tuple[int, ...]] = {"w": (12, 8), "v": (12, 8), "b": (8,)}
    original, model = (model_of("float[N,12] x", body, constants, error=error) for error in (0, 0.1))
    data = data_for(model, tmp_path)
    after, outcome = apply(model, Context(calibration=data, reference=Reference(original)))
    assert len(outcome.changed) == 2
    assert means(after, data, -1) == pytest.approx(means(original, data, -1), abs=1e-5)


@pytest.mark.parametrize("mode", ["empirical", "analytic"])
@pytest.mark.parametrize("case", ["Conv", "Gemm", "MatMul", "two"])
def test_integer_biases_move_in_their_unit(case: str, mode: str, tmp_path: Path) -> None:
    inputs, body, constants, axis = BODIES[case]
    original = model_of(inputs, body, constants)
    data = data_for(original, tmp_path)
    context = Context(calibration=data, reference=Reference(original), target=Target.of("cpu"))
    model, _ = apply(original, context, "quantize-static")
    assert any(each.op_type == "QuantizeLinear" for each in model.proto.graph.node)
    after, outcome = apply(model, context, mode=mode)
    assert outcome.changed
    wanted, before, found = (means(each, data, axis) for each in (original, model, after))
    # Analytic knows nothing of what rounding the activations shifts.
    share = 0.35 if mode == "empirical" else 1.1
    assert np.abs(found - wanted).mean() < share * np.abs(before - wanted).mean()
    kinds = [each.data_type for each in after.proto.graph.initializer]
    assert kinds.count(onnx.TensorProto.INT32) == [e.data_type for e in model.proto.graph.initializer].count(
        onnx.TensorProto.INT32
    )


def test_the_trial_nearest_to_the_original_counts(tmp_path: Path) -> None:
    inputs, body, constants, _ = BODIES["two"]
    original, model = (model_of(inputs, body, constants, error=error) for error in (0.0, 0.2))
    data = data_for(model, tmp_path)
    wanted = outputs(original, data)

    def distance(candidate: Model) -> float:
        return float(np.square(outputs(candidate, data) - wanted).mean())

    context = Context(calibration=data, reference=Reference(original), divergence=distance)
    best, outcome = apply(model, context)
    assert outcome.changed
    each = [distance(apply(model, context, mode=mode)[0]) for mode in ("empirical", "analytic")]
    assert distance(best) == pytest.approx(min(each))
    assert distance(best) < distance(model)
    worse = Context(calibration=data, reference=Reference(original), divergence=lambda candidate: -distance(candidate))
    _, outcome = apply(model, worse)
    assert not outcome.changed
    assert all("does not reduce the divergence" in each.reason for each in outcome.skipped)


def test_reasons(tmp_path: Path) -> None:
    inputs, body, constants, _ = BODIES["Conv"]
    original, model = (model_of(inputs, body, constants, error=error) for error in (0.0, 0.1))
    data = data_for(model, tmp_path)
    _, outcome = apply(model, Context(calibration=data))
    assert "model from before is not known" in outcome.skipped[0].reason
    _, outcome = apply(original, Context(calibration=data, reference=Reference(model_of(inputs, body, constants))))
    assert outcome.skipped[0].reason == "its means are the original's"
    renamed = model_of(inputs, body.replace("y", "p") + " y = Relu(p)", constants)
    _, outcome = apply(renamed, Context(calibration=data, reference=Reference(original)))
    assert "no tensor of its output's name" in outcome.skipped[0].reason
    with pytest.raises(CalibrationError, match="needs calibration data"):
        apply(model, Context(reference=Reference(original)))


def test_half_precision_biases_stay_half(tmp_path: Path) -> None:
    inputs, body, constants, axis = BODIES["Gemm of one bias"]
    halves = []
    for error in (0.0, 0.2):
        proto = model_of(inputs, body, constants, error=error).proto
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        halves.append(load(proto))
    original, model = halves
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).standard_normal((16, 12)).astype(np.float16))
    data = CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)
    after, _ = apply(model, Context(calibration=data, reference=Reference(original)))
    assert means(after, data, axis) == pytest.approx(means(original, data, axis), abs=5e-3)
