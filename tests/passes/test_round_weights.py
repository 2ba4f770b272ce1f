"""round-weights: what the outputs lose, weights that have levels already, and what is left alone."""

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
from onnxcomp.graph.rounding import output_aware as level_rounding
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

NAME = "round-weights"
GRAPHS = {
    "MatMul": ("float[N,12] x", "y = MatMul(x, w)", (12, 8)),
    "Gemm": ("float[N,12] x", "y = Gemm<transB = 1>(x, w)", (8, 12)),
    "Conv": ("float[N,4,6,6] x", "y = Conv<kernel_shape = [3, 3]>(x, w)", (6, 4, 3, 3)),
    "grouped": ("float[N,4,6,6] x", "y = Conv<group = 2>(x, w)", (6, 2, 3, 3)),
    "ConvTranspose": ("float[N,4,6,6] x", "y = ConvTranspose(x, w)", (4, 5, 3, 3)),
    "LSTM": ("float[S,N,7] x", "y, h, c = LSTM<hidden_size = 3>(x, w, r)", (1, 12, 7)),
    "Gather": ("int64[N] x", "y = Gather(w, x)", (20, 6)),
}


def model_of(op: str, *, seed: int = 0, dtype: Any = np.float32) -> Model:
    """One node with a drawn weight ``w``."""
    inputs, body, shape = GRAPHS[op]
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) {{ {body} }}')
    proto.graph.output[0].type.CopyFrom(onnx.TypeProto())
    rng = np.random.default_rng(seed)
    proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), "w"))
    if op == "LSTM":
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((1, 12, 3)).astype(dtype), "r"))
    kind = proto.graph.output[0].type.tensor_type
    kind.elem_type = onnx.TensorProto.FLOAT
    return load(proto)


def data_for(model: Model, folder: Path, *, seed: int = 1) -> CalibrationData:
    """Strongly correlated inputs: what rounding to the nearest knows nothing of."""
    spec = model.proto.graph.input[0]
    dims = [each.dim_value or 24 for each in spec.type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    if spec.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        values: np.ndarray = rng.integers(0, 20, dims)
    else:
        common = rng.standard_normal((dims[0], *[1] * (len(dims) - 1)))
        values = (rng.standard_normal(dims) + 2 * common + 1).astype(np.float32)
    np.savez(folder / "calib.npz", x=values)
    return CalibrationData.open(folder / "calib.npz", Session(model.to_bytes()).inputs)


def apply(model: Model, name: str, context: Context, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = get_pass(name)(**fields).apply(graph, context)
    return close_graph(graph), outcome


def weight_of(model: Model) -> Weight:
    return next(each for each in weights(open_graph(model)) if each.name == "w")


def output_error(model: Model, candidate: Model, data: CalibrationData) -> float:
    """The squared error of y relative to its power, by running both."""
    error = power = 0.0
    first, second = Session(model.to_bytes()), Session(candidate.to_bytes())
    for feeds in data.batches():
        wanted, found = (each.run(feeds)["y"].astype(np.float64) for each in (first, second))
        error += float(np.sum(np.square(found - wanted)))
        power += float(np.sum(np.square(wanted)))
    return error / power


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "grouped", "ConvTranspose"])
def test_outputs_lose_far_less_than_by_nearest_levels(op: str, granularity: str, tmp_path: Path) -> None:
    model = model_of(op)
    data = data_for(model, tmp_path)
    context = Context(calibration=data)
    nearest, _ = apply(model, "quantize-weights", context, bits=3, algorithm="nearest", granularity=granularity)
    rounded, outcome = apply(model, NAME, context, bits=3, granularity=granularity)
    error = output_error(model, rounded, data)
    assert error < 0.5 * output_error(model, nearest, data)
    assert outcome.changed[0].details["levels"] == 8
    if "Conv" not in op and op != "grouped":  # of those a sample of the positions is taken, and borders are cut
        assert outcome.changed[0].details["error"] == pytest.approx(error, rel=0.3)
    encoding = weight_of(rounded).encoding
    assert isinstance(encoding, GridEncoding)
    assert encoding.encode(np.asarray(weight_of(rounded).values)) is not None


def test_blocks_and_asymmetric_grids(tmp_path: Path) -> None:
    model = model_of("Gemm")
    data = data_for(model, tmp_path)
    fields: dict[str, Any] = {"bits": 3, "granularity": "block", "block_size": 4, "symmetric": False}
    rounded, _ = apply(model, NAME, Context(calibration=data), **fields)
    nearest, _ = apply(model, "quantize-weights", Context(calibration=data), algorithm="nearest", **fields)
    assert output_error(model, rounded, data) < 0.6 * output_error(model, nearest, data)
    encoding = weight_of(rounded).encoding
    assert isinstance(encoding, GridEncoding) and encoding.block_size == 4


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("quantize-weights", {"bits": 3, "algorithm": "nearest"}, GridEncoding),
        ("quantize-weights", {"bits": 3, "algorithm": "nearest", "granularity": "tensor"}, GridEncoding),
        ("cluster-weights", {"bits": 3.0, "granularity": "tensor", "algorithm": "nearest"}, CodebookEncoding),
        ("cluster-weights", {"bits": 3.0, "granularity": "channel", "algorithm": "nearest"}, CodebookEncoding),
    ],
)
def test_levels_that_a_weight_has_are_chosen_anew(
    name: str, fields: dict[str, Any], kind: type, tmp_path: Path
) -> None:
    model = model_of("Conv")
    data = data_for(model, tmp_path)
    before, _ = apply(model, name, Context(calibration=data), **fields)
    after, outcome = apply(before, NAME, Context(calibration=data, reference=Reference(model)), bits=4)
    assert output_error(model, after, data) < 0.6 * output_error(model, before, data)
    assert "8 levels" in outcome.changed[0].what
    old, new = weight_of(before).encoding, weight_of(after).encoding
    assert isinstance(new, kind) and old is not None
    assert new.level_count == old.level_count
    again, outcome = apply(after, NAME, Context(calibration=data, reference=Reference(model)), bits=4)
    assert output_error(model, again, data) <= 1.001 * output_error(model, after, data)


def test_a_weight_of_more_levels_gets_a_grid(tmp_path: Path) -> None:
    model = model_of("MatMul")
    data = data_for(model, tmp_path)
    before, _ = apply(model, "quantize-weights", Context(), bits=8, algorithm="nearest")
    after, _ = apply(before, NAME, Context(calibration=data, reference=Reference(model)), bits=3)
    encoding = weight_of(after).encoding
    assert encoding is not None and encoding.level_count == 8


def test_large_matrices_are_rounded_with_less_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_rounding, "MOST_COLUMNS", 11)
    model = model_of("MatMul")
    data = data_for(model, tmp_path)
    context = Context(calibration=data, reference=Reference(model))
    nearest, _ = apply(model, "quantize-weights", context, bits=3, algorithm="nearest")
    for start in (model, nearest):
        rounded, _ = apply(start, NAME, context, bits=3)
        assert output_error(model, rounded, data) < 0.6 * output_error(model, nearest, data)


def test_zeros_of_a_pruned_weight_stay(tmp_path: Path) -> None:
    model = model_of("Gemm")
    data = data_for(model, tmp_path)
    context = Context(calibration=data, reference=Reference(model))
    pruned, _ = apply(model, "prune-weights", context, sparsity=0.5)
    zeros = np.asarray(weight_of(pruned).values) == 0
    fresh, _ = apply(pruned, NAME, context, bits=3)
    assert (np.asarray(weight_of(fresh).values)[zeros] == 0).all()
    rounded, _ = apply(pruned, "quantize-weights", context, bits=3, algorithm="nearest")
    again, outcome = apply(rounded, NAME, context, bits=3)
    assert outcome.changed
    assert (np.asarray(weight_of(again).values)[zeros] == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_stay_and_are_rounded_to_the_nearest(dtype: Any, tmp_path: Path) -> None:
    proto = model_of("MatMul", dtype=dtype).proto
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = load(proto)
    np.savez(tmp_path / "calib.npz", x=np.ones((4, 12), dtype))
    data = CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)
    rounded, outcome = apply(model, NAME, Context(calibration=data), bits=4)
    assert weight_of(rounded).dtype == dtype
    assert "nearest" in outcome.changed[0].what


def test_both_matrices_of_an_lstm_are_rounded_by_their_inputs(tmp_path: Path) -> None:
    model = model_of("LSTM")
    rounded, outcome = apply(model, NAME, Context(calibration=data_for(model, tmp_path)), bits=3)
    assert [each.name for each in outcome.changed] == ["w", "r"]
    assert not any("nearest" in each.what for each in outcome.changed)
    assert len(np.unique(np.asarray(weight_of(rounded).values)[0, 0])) <= 8


def test_what_has_no_visible_inputs_goes_to_the_nearest_levels(tmp_path: Path) -> None:
    model = model_of("Gather")
    context = Context(calibration=data_for(model, tmp_path))
    rounded, outcome = apply(model, NAME, context, bits=4)
    nearest, _ = apply(model, "quantize-weights", context, bits=4, algorithm="nearest")
    assert "nearest" in outcome.changed[0].what
    assert np.array_equal(weight_of(rounded).values, weight_of(nearest).values)


def test_reasons(tmp_path: Path) -> None:
    model = model_of("MatMul")
    data = data_for(model, tmp_path)
    before, _ = apply(model, "quantize-weights", Context(), bits=4, algorithm="nearest")
    _, outcome = apply(before, NAME, Context(calibration=data), bits=4)
    assert "values from before are not known" in outcome.skipped[0].reason
    _, outcome = apply(before, NAME, Context(calibration=data, reference=Reference(model_of("MatMul", seed=9))), bits=4)
    assert "no rounded form" in outcome.skipped[0].reason
    vectors, _ = apply(model, "cluster-weights", Context(), bits=3.0, vector_size=2)
    _, outcome = apply(vectors, NAME, Context(calibration=data, reference=Reference(model)), bits=4)
    assert "single values" in outcome.skipped[0].reason
    with pytest.raises(CalibrationError, match="needs calibration data"):
        apply(model, NAME, Context())


def test_stops_at_the_deadline_and_says_so(tmp_path: Path) -> None:
    model = model_of("MatMul")
    _, outcome = apply(model, NAME, Context(calibration=data_for(model, tmp_path), deadline=0.0))
    assert not outcome.changed
    assert outcome.is_cut_short
