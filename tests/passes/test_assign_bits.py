"""assign-bits: a net whose one weight the outputs hardly depend on, and budgets by bytes and by divergence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context, Needs, Outcome
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.pipeline import optimize, replay
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

NAME = "assign-bits"
INPUTS = np.random.default_rng(3).standard_normal((64, 32)).astype(np.float32)
# Both products have 32 x 32 weights; the second one's output is added with a hundredth of the first one's weight.
TEXT = """g (float[N, 32] x) => (float[N, 32] y) {
    loud = MatMul(x, W)
    soft = MatMul(x, V)
    less = Mul(soft, c)
    y = Add(loud, less)
}"""


def net() -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{TEXT}')
    rng = np.random.default_rng(1)
    for name in ("W", "V"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([0.01]), "c"))
    return load(proto)


def calibration(model: Model) -> CalibrationData:
    groups = (Group("0", functools.partial(dict, {"x": INPUTS}), WHOLE),)
    inputs = Session(model.to_bytes()).inputs
    return CalibrationData(source="test", inputs=inputs, groups=groups, order=np.array([[0, 0]], np.int64))


def output(model: Model) -> np.ndarray:
    return np.asarray(Session(model.to_bytes()).run({"x": INPUTS})["y"])


def divergence_from(original: Model) -> Any:
    """The relative squared error of the output, and a list that counts the calls."""
    wanted = output(original)
    calls: list[float] = []

    def measure(model: Model) -> float:
        calls.append(float(np.square(output(model) - wanted).sum() / np.square(wanted).sum()))
        return calls[-1]

    return measure, calls


def assigned(**fields: Any) -> tuple[Model, Model, dict[str, int], Outcome]:
    model = net()
    graph = open_graph(model)
    context = Context(calibration=calibration(model), divergence=divergence_from(model)[0])
    outcome = get_pass(NAME)(**fields).apply(graph, context)
    result = close_graph(graph)
    return model, result, {each.name: each.details["bits"] for each in outcome.changed}, outcome


def test_the_weight_that_the_outputs_depend_on_gets_more_bits() -> None:
    _, result, bits, outcome = assigned(average_bits=4.0)
    assert bits["W"] > 4 > bits["V"]
    influence = {each.name: each.details["influence"] for each in outcome.changed}
    # The output is W x + V x / 100, so a change of V counts a ten-thousandth.
    assert influence["V"] / influence["W"] == pytest.approx(1e-4, rel=0.5)
    for name, count in bits.items():
        encoding = result.encodings[name]
        assert isinstance(encoding, GridEncoding) and encoding.levels == 2**count


@pytest.mark.parametrize("average", [2.5, 4.0, 6.0])
def test_takes_no_more_than_the_average_would(average: float) -> None:
    _, result, bits, _ = assigned(average_bits=average, algorithm="nearest")
    assert sum(bits.values()) <= 2 * average
    assert all(encoding.level_count == 2 ** bits[name] for name, encoding in result.encodings.items())
    uneven = output_apart(*assigned(average_bits=average)[:2])
    if average == 4.0:
        graph = open_graph(net())
        context = Context(calibration=calibration(net()))
        get_pass("quantize-weights")(bits=4).apply(graph, context)
        assert uneven < 0.5 * output_apart(net(), close_graph(graph))


def output_apart(original: Model, result: Model) -> float:
    wanted = output(original)
    return float(np.square(output(result) - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("limit", [1e-3, 1e-2])
def test_stays_within_a_divergence_with_few_bits(limit: float) -> None:
    original, result, bits, _ = assigned(max_divergence=limit)
    assert output_apart(original, result) <= limit
    assert bits["V"] < bits["W"]
    tighter = assigned(max_divergence=limit / 10)[2]
    assert sum(bits.values()) < sum(tighter.values())


def test_leaves_all_alone_where_no_bits_bear_it() -> None:
    original, result, bits, outcome = assigned(max_divergence=0.0)
    assert not bits
    assert {each.reason for each in outcome.skipped} == {"not even 8 bits for every weight stay within the divergence"}
    assert np.array_equal(output(original), output(result))


def test_sensitivity_is_measured_once_a_model() -> None:
    model = net()
    measure, calls = divergence_from(model)
    context = Context(calibration=calibration(model), divergence=measure)
    for average in (3.0, 5.0):
        get_pass(NAME)(average_bits=average).apply(open_graph(model), context)
    assert len(calls) == 3  # the model as it is, and each weight alone


def test_without_a_divergence_the_errors_alone_decide() -> None:
    model = net()
    graph = open_graph(model)
    outcome = get_pass(NAME)(average_bits=3.0).apply(graph, Context(calibration=calibration(model)))
    assert {each.details["bits"] for each in outcome.changed} == {3}
    with pytest.raises(CalibrationError, match="needs calibration data"):
        get_pass(NAME)(max_divergence=0.1).apply(open_graph(model), Context(calibration=calibration(model)))


def test_excluded_weights_stay() -> None:
    model = net()
    graph = open_graph(model)
    context = Context(calibration=calibration(model), divergence=divergence_from(model)[0], exclude=("W",))
    outcome = get_pass(NAME)(average_bits=2.0).apply(graph, context)
    assert [each.name for each in outcome.changed] == ["V"]
    assert get_pass(NAME)().needed() is Needs.CALIBRATION


def test_replaying_measures_again_and_makes_the_same_bytes(tmp_path: Path) -> None:
    source, calib = tmp_path / "m.onnx", tmp_path / "calib.npz"
    onnx.save(net().proto, source)
    np.savez(calib, x=np.random.default_rng(4).standard_normal((200, 32)).astype(np.float32))
    rewrite = get_pass(NAME)(max_divergence=0.002)
    result = optimize(source, recipe=Recipe.of(rewrite), calibration=str(calib), measure=False)
    files = result.save(tmp_path / "out.onnx")
    assert result.receipt.steps[0].decision == "kept"
    again = replay(source, Receipt.read(files[-1]), calibration=str(calib))
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_small_weights_keep_eight_bits() -> None:
    proto = net().proto
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(32, 8, dtype=np.float32), "W"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((32, 8), np.float32) / 3, "V"))
    model = load(proto)
    outcome = get_pass(NAME)(average_bits=2.0).apply(open_graph(model), Context(calibration=calibration(model)))
    assert {each.details["bits"] for each in outcome.changed} == {8}
