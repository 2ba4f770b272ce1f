"""quantize-rate-distortion: the grid by hand, codes by their bits, and a search that counts these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Quantity
from onnxcomp.errors import RecipeError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.pipeline.api import optimize
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.objective import Objective
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.revalued import random_weight, revalue
from tests.passes.test_match_outputs import data_of, distance, inputs, model_of

NAME = "quantize-rate-distortion"


def entropy(values: np.ndarray) -> float:
    """Bits of a value, by how often each is taken."""
    _, counts = np.unique(values, return_counts=True)
    chances = counts / values.size
    return float(-(chances * np.log2(chances)).sum())


def test_without_data_values_go_to_the_nearest_of_even_steps() -> None:
    values = random_weight(64, 32)
    done = revalue(values, (NAME, {"step": 0.5}))
    assert isinstance(done.encoding, GridEncoding)
    step = float(np.float16(0.5 * values.astype(np.float64).std()))
    rounded = np.rint(values / step)
    assert np.abs(done.values / np.abs(done.values[done.values != 0]).min() - rounded).max() < 1e-3
    assert done.encoding.levels == 2 * np.ceil(np.abs(values).max() / step) + 1
    # The scale is then fitted to the codes: least squares.
    fitted = (rounded * values).sum() / (rounded * rounded).sum()
    assert np.abs(done.values).max() / np.abs(rounded).max() == pytest.approx(fitted, rel=1e-3)


def test_nothing_is_clipped_and_the_finest_step_is_a_127th_of_the_largest_value() -> None:
    values = np.array([[1000.0, 0.01], [-0.02, 7.9]], np.float32)
    done = revalue(values, (NAME, {"step": 0.001}))
    assert done.codes is not None
    assert done.codes.max() - 127 == 127
    assert done.values[0, 0] == pytest.approx(1000, rel=1e-3)
    assert done.values[1, 1] == pytest.approx(1000 / 127, rel=0.01)


def test_a_step_for_each_output_channel() -> None:
    values = random_weight(200, 2) * np.array([1.0, 50.0], np.float32)
    done = revalue(values, (NAME, {"step": 0.5, "granularity": "channel"}))
    alone = [revalue(values[:, [each]].copy(), (NAME, {"step": 0.5})).values for each in (0, 1)]
    assert done.values == pytest.approx(np.concatenate(alone, axis=1), rel=2e-3, abs=1e-6)


def test_zeros_stay_zero() -> None:
    values = random_weight(40, 40)
    values[::2] = 0
    assert not revalue(values, (NAME, {"step": 0.1})).values[::2].any()


def rounded(model: Model, folder: Path, **fields: object) -> Model:
    context = Context(calibration=data_of(model, folder))
    return apply_pass(model, get_pass(NAME)(**fields), context)[0]


def weight_of(model: Model, name: str = "w0") -> Weight:
    return next(each for each in weights(open_graph(model)) if each.name == name)


def test_weights_of_inputs_that_show_little_give_most_of_the_bits(tmp_path: Path) -> None:
    original, data = model_of(), inputs(1)
    data[:, ::2] *= 1e-3
    np.savez(tmp_path / "c.npz", x=data)
    context = Context(calibration=CalibrationData.open(tmp_path / "c.npz", Session(original.to_bytes()).inputs))
    found = {trade: apply_pass(original, get_pass(NAME)(step=0.4, trade=trade), context)[0] for trade in (0.0, 4.0)}
    blind = {trade: entropy(weight_of(each).values[::2]) for trade, each in found.items()}
    seen = {trade: entropy(weight_of(each).values[1::2]) for trade, each in found.items()}
    assert blind[0.0] - blind[4.0] > 3 * (seen[0.0] - seen[4.0])
    errors = {trade: distance(original, each, data) for trade, each in found.items()}
    assert errors[4.0] < 2 * errors[0.0]


def test_outputs_are_matched_without_giving_the_bits_back(tmp_path: Path) -> None:
    original = model_of()
    rough = rounded(original, tmp_path, step=0.8)
    context = Context(calibration=data_of(original, tmp_path), reference=Reference(original))
    found = {
        trade: apply_pass(rough, get_pass("match-outputs")(trade=trade, towards="outputs"), context)[0]
        for trade in (0.0, 4.0)
    }
    taken = {trade: entropy(weight_of(each, "w1").values) for trade, each in found.items()}
    assert taken[4.0] < taken[0.0]
    assert distance(original, found[4.0], inputs(2)) < 2 * distance(original, found[0.0], inputs(2))


# --- a search that counts coded bytes ------------------------------------------------------------------


def spread_out() -> Model:
    """Matrices most of whose values are small, as trained ones are."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,48] x) => (float[N,8] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (48, 96)), ("w1", (96, 8))):
        values = rng.laplace(size=shape).astype(np.float32) / np.float32(shape[0] ** 0.5)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def recipe(goal: str) -> Recipe:
    step = {"choose": [NAME, "cluster-weights"]}
    return Recipe.from_dict({"goal": goal, "step": [step]}, name="the test's")


def test_the_goal_decides_which_bytes_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(1).standard_normal((200, 48)).astype(np.float32))
    found = {
        goal: optimize(
            spread_out(), recipe=recipe(goal), calibration=str(tmp_path / "c.npz"), measure=False, jobs=1
        ).model
        for goal in ("bytes", "packed")
    }
    coded = {goal: sum(map(coded_bits, weights(open_graph(model)))) for goal, model in found.items()}
    assert coded["packed"] < coded["bytes"]
    store = get_pass("store-compact")()
    stored = {goal: apply_pass(model, store, Context())[0].size_bytes for goal, model in found.items()}
    assert stored["bytes"] < stored["packed"]


def coded_bits(weight: Weight) -> float:
    """Of a weight's codes, by how often each is taken."""
    assert weight.encoding is not None
    codes = weight.encoding.encode(np.asarray(weight.values))
    assert codes is not None
    return entropy(codes) * codes.size


def test_packed_counts_bytes_and_nothing_else() -> None:
    found = Recipe.load("packed")
    assert found.goal == "packed"
    objective = Objective(coded=True)
    assert objective.is_of_bytes
    assert objective.in_bytes().coded
    assert objective.cost({Quantity.BYTES: 3.0, Quantity.MACS: 5.0}) == 3
    with pytest.raises(RecipeError, match="goal must be one of bytes, packed, latency, got 'small'"):
        Recipe.from_dict({"goal": "small", "step": [{"pass": NAME}]}, name="r")
