"""prune-weights and prune-nm with calibration data: what the outputs lose, and that later passes keep the zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Needs, Outcome
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.test_match_outputs import data_of, distance, inputs
from tests.passes.test_match_outputs import model_of as two_nodes
from tests.passes.test_round_weights import data_for, model_of


def applied(model: Model, name: str, data: CalibrationData | None, **fields: Any) -> tuple[Model, Outcome]:
    return apply_pass(model, get_pass(name)(**fields), Context(calibration=data))


def values_of(model: Model) -> dict[str, np.ndarray]:
    return {each.name: np.asarray(each.values) for each in weights(open_graph(model))}


def lost(model: Model, other: Model, folder: Path) -> float:
    """The squared error of the outputs on samples that calibration did not see, relative to their power."""
    error = power = 0.0
    for feeds in data_for(model, folder, seed=7).batches():
        wanted, got = (np.asarray(Session(each.to_bytes()).run(feeds)["y"]) for each in (model, other))
        error += float(np.square(got - wanted).sum())
        power += float(np.square(wanted).sum())
    return error / power


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "grouped", "ConvTranspose", "LSTM"])
def test_outputs_lose_less_than_by_magnitude(op: str, tmp_path: Path) -> None:
    model = model_of(op)
    plain, _ = applied(model, "prune-weights", None, sparsity=0.5)
    fitted, outcome = applied(model, "prune-weights", data_for(model, tmp_path), sparsity=0.5)
    assert lost(model, fitted, tmp_path) < 0.8 * lost(model, plain, tmp_path)
    for each in outcome.changed:
        assert each.details["sparsity"] == pytest.approx(0.5, abs=0.05)
        assert 0 < each.details["error"] < 0.5


@pytest.mark.parametrize("importance", ["magnitude", "input-norm", "second-order"])
def test_what_stays_makes_up_for_what_goes(importance: str, tmp_path: Path) -> None:
    model = model_of("MatMul")
    found = []
    for compensate in (False, True):
        fields: dict[str, Any] = {"importance": importance, "compensate": compensate}
        pruned, outcome = applied(model, "prune-weights", data_for(model, tmp_path), sparsity=0.6, **fields)
        found.append(lost(model, pruned, tmp_path))
        kept = values_of(pruned)["w"] != 0
        same = np.array_equal(values_of(pruned)["w"][kept], values_of(model)["w"][kept])
        assert same is not compensate
        assert found[-1] / 2 < outcome.changed[0].details["error"] < 2 * found[-1]
    assert found[1] < 0.8 * found[0]


def test_fields_say_what_they_need(tmp_path: Path) -> None:
    model = model_of("MatMul")
    for name in ("prune-weights", "prune-nm"):
        rewrite = get_pass(name)
        assert rewrite(importance="input-norm").needed() is Needs.CALIBRATION
        assert rewrite(importance="auto").needed() is Needs.NOTHING
        assert not rewrite(importance="magnitude", compensate=False).draws_on_data(calibration=True)
        assert rewrite(importance="magnitude").draws_on_data(calibration=True)
        with pytest.raises(CalibrationError):
            applied(model, name, None, importance="second-order")


def test_rows_of_a_table_that_are_looked_up_more_stay_more(tmp_path: Path) -> None:
    model = model_of("Gather")
    np.savez(tmp_path / "calib.npz", x=np.array([0, 0, 0, 0, 1, -20] * 8, np.int64))
    data = CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)
    pruned, _ = applied(model, "prune-weights", data, sparsity=0.7)
    read = np.array([40.0, 8.0] + [0.0] * 18) + 1  # one more, so that what was not seen counts a little
    worth = np.abs(values_of(model)["w"]) * np.sqrt(read)[:, None]
    assert np.array_equal(values_of(pruned)["w"] != 0, worth > np.sort(worth.ravel())[83])


def test_zeros_of_a_model_go_where_they_cost_least(tmp_path: Path) -> None:
    """As many in all as asked, not as many of each; the outputs lose no more."""
    model = two_nodes()
    pruned, _ = applied(model, "prune-weights", data_of(model, tmp_path), sparsity=0.5, scope="model")
    by_weight, _ = applied(model, "prune-weights", data_of(model, tmp_path), sparsity=0.5)
    zeros = {name: np.mean(each == 0) for name, each in values_of(pruned).items()}
    total = sum(np.count_nonzero(each) for each in values_of(pruned).values())
    assert total <= 0.5 * (24 * 16 + 16 * 8)
    assert zeros["w0"] != zeros["w1"]
    assert distance(model, pruned, inputs(2)) < 1.1 * distance(model, by_weight, inputs(2))


def test_two_of_four_hold_and_lose_less_than_by_magnitude(tmp_path: Path) -> None:
    model = model_of("Conv")
    plain, _ = applied(model, "prune-nm", None)
    fitted, _ = applied(model, "prune-nm", data_for(model, tmp_path))
    assert (np.count_nonzero(values_of(fitted)["w"], axis=1) <= 2).all()
    assert lost(model, fitted, tmp_path) < 0.8 * lost(model, plain, tmp_path)


@pytest.mark.parametrize("steps", [("match-outputs",), ("cluster-weights", "match-outputs")])
def test_matching_outputs_keeps_the_zeros_and_comes_nearer(steps: tuple[str, ...], tmp_path: Path) -> None:
    model = two_nodes()
    data = data_of(model, tmp_path)
    pruned, _ = applied(model, "prune-weights", data, sparsity=0.6, importance="magnitude", compensate=False)
    context = Context(calibration=data, reference=Reference(model))
    found = [pruned]
    for name in steps:
        fields = {"bits": 2.0, "algorithm": "nearest"} if name == "cluster-weights" else {}
        found.append(apply_pass(found[-1], get_pass(name)(**fields), context)[0])
    for name, before in values_of(pruned).items():
        assert not values_of(found[-1])[name][before == 0].any()
    assert distance(model, found[-1], inputs(2)) < distance(model, found[-2], inputs(2))


def test_inputs_that_were_always_zero_take_nothing_from_the_others(tmp_path: Path) -> None:
    """No value is fitted to what was never seen: all stay within what they were, and the pattern holds."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }'
    )
    values = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    model = load(proto)
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    x[:, :4] = 0
    np.savez(tmp_path / "calib.npz", x=x)
    data = CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)
    pruned, _ = applied(model, "prune-weights", data, sparsity=0.5)
    found = values_of(pruned)["w"]
    assert np.count_nonzero(found) == 24
    assert np.abs(found).max() < 3 * np.abs(values).max()
