"""onnxcomp.calibration.states.states: which inputs and outputs carry a state, and which only look alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.states.states import State, find_states, named_states
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session

MODELS = Path(__file__).parents[3] / "models"
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def parsed(text: str, **values: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return load(proto)


def states(model: Model, folder: Path, **arrays: Any) -> tuple[State, ...]:
    np.savez(folder / "c.npz", **arrays)
    session = Session(model.to_bytes())
    return find_states(model, session, CalibrationData.open(folder / "c.npz", session.inputs, run=session.run))


def pairs(model: Model, folder: Path, **arrays: Any) -> set[tuple[str, str, str]]:
    return {(each.input, each.output, each.kind) for each in states(model, folder, **arrays)}


def cell(state: str = "h", new: str = "hn") -> Model:
    """new = 0.5 state + x W, y = new V."""
    return parsed(
        f"g (float[N, 3] x, float[N, 4] {state}) => (float[N, 2] y, float[N, 4] {new}) <float half = {{0.5}}>"
        f" {{ a = Mul({state}, half) b = MatMul(x, w) {new} = Add(a, b) y = MatMul({new}, v) }}",
        w=noise(3, 4), v=noise(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "new"),
    [("h", "hn"), ("state", "stateN"), ("state", "new_state"), ("h0", "hn"), ("cache_in", "cache_out"),
     ("in_cache0", "out_cache0"), ("r1i", "r1o"), ("prev_x", "next_x"), ("lstm_state_in", "lstm_state_out")],
)  # fmt: skip
@pytest.mark.parametrize("filled", [False, True])
def test_states_are_known_by_their_names(tmp_path: Path, state: str, new: str, filled: bool) -> None:
    own = noise(10, 4) if filled else zeros(10, 4)
    found = pairs(cell(state, new), tmp_path, **{"x": noise(10, 3), state: own})
    assert found == {(state, new, "recurrent")}


def test_a_state_without_a_name_is_known_by_its_zeros(tmp_path: Path) -> None:
    assert pairs(cell("a1", "b7"), tmp_path, x=noise(10, 3), a1=zeros(10, 4)) == {("a1", "b7", "recurrent")}
    assert pairs(cell("a1", "b7"), tmp_path, x=noise(10, 3), a1=noise(10, 4)) == set()


def test_a_half_name_is_enough_where_one_output_fits(tmp_path: Path) -> None:
    assert pairs(cell("hidden", "out2"), tmp_path, x=noise(10, 3), hidden=noise(10, 4)) == {
        ("hidden", "out2", "recurrent")
    }


def lstm() -> Model:
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "", "", "i.1", "i.2"], ["y4", "h2", "c2"], hidden_size=4),
        helper.make_node("Identity", ["h2"], ["20"]),
        helper.make_node("Identity", ["c2"], ["21"]),
        helper.make_node("Squeeze", ["y4", "one"], ["y"]),
    ]

    def info(name: str, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "g",
        [info("x", "T", "B", 3), info("i.1", 1, "B", 4), info("i.2", 1, "B", 4)],
        [info("y", "T", "B", 4), info("21", 1, "B", 4), info("20", 1, "B", 4)],
        [numpy_helper.from_array(noise(1, 16, 3), "W"), numpy_helper.from_array(noise(1, 16, 4), "R"),
         numpy_helper.from_array(np.int64([1]), "one")],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_states_of_an_lstm_are_known_by_the_node(tmp_path: Path) -> None:
    arrays = {"x": noise(5, 6, 3), "i.1": noise(1, 6, 4), "i.2": noise(1, 6, 4)}
    assert pairs(lstm(), tmp_path, **arrays) == {("i.1", "20", "recurrent"), ("i.2", "21", "recurrent")}


CACHE = (
    "g (float[N, S, 3] x, float[N, P, 4] {past}) => (float[N, S, 2] y, float[N, T, 4] {now})"
    " {{ k = MatMul(x, w) {now} = Concat<axis = 1>({past}, k)"
    " m = ReduceMean<axes = [1], keepdims = 1>({now}) s = Add(k, m) y = MatMul(s, v) }}"
)


@pytest.mark.parametrize("length", [5, 0])
@pytest.mark.parametrize(("past", "now"), [("past.0.key", "present.0.key"), ("past", "present"), ("a1", "b7")])
def test_a_cache_that_grows_is_known(tmp_path: Path, past: str, now: str, length: int) -> None:
    model = renamed(parsed(CACHE.format(past="p", now="q"), w=noise(3, 4), v=noise(4, 2)), p=past, q=now)
    [found] = states(model, tmp_path, **{"x": noise(10, 1, 3), past: noise(10, length, 4)})
    assert found == State(past, now, "growing", 1)


def renamed(model: Model, **names: str) -> Model:
    for each in (*model.proto.graph.input, *model.proto.graph.output):
        each.name = names.get(each.name, each.name)
    for node in model.proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


def test_a_window_that_slides_is_known(tmp_path: Path) -> None:
    model = parsed(
        "g (float[N, 1, 3] x, float[N, 4, 3] a1) => (float[N, 2] y, float[N, 4, 3] b7)"
        " <int64[1] one = {1}, int64[1] five = {5}> { all = Concat<axis = 1>(a1, x) b7 = Slice(all, one, five, one)"
        " m = ReduceMean<axes = [1], keepdims = 0>(all) y = MatMul(m, v) }",
        v=noise(3, 2),
    )
    [found] = states(model, tmp_path, x=noise(10, 1, 3), a1=noise(10, 4, 3))
    assert found == State("a1", "b7", "sliding", 1)


def test_a_merged_decoder_has_its_cache_whatever_branch_ran(tmp_path: Path) -> None:
    model = merged()
    for flag, length in ((True, 4), (False, 4), (False, 0), (False, 1)):
        arrays = {"x": noise(6, 1, 3), "past.0": noise(6, length, 3), "use_cache": np.array([flag])}
        [found] = states(model, tmp_path, **arrays)
        assert found == State("past.0", "present.0", "growing", 1)


def merged() -> Model:
    """With a cache: present = past and x; without: present = x, whatever the past."""

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        outputs = [helper.make_tensor_value_info(f"p_{name}", TensorProto.FLOAT, None)]
        return helper.make_graph([node], name, [], outputs)

    nodes = [
        helper.make_node(
            "If", ["use_cache"], ["present.0"],
            then_branch=branch("with", helper.make_node("Concat", ["past.0", "x"], ["p_with"], axis=1)),
            else_branch=branch("without", helper.make_node("Identity", ["x"], ["p_without"])),
        ),
        helper.make_node("ReduceMean", ["present.0"], ["y"], axes=[1], keepdims=0),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", 3]),
        helper.make_tensor_value_info("past.0", TensorProto.FLOAT, ["N", "P", 3]),
        helper.make_tensor_value_info("use_cache", TensorProto.BOOL, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("present.0", TensorProto.FLOAT, ["N", "T", 3]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_cache_of_the_encoder_is_handed_on(tmp_path: Path) -> None:
    model = parsed(
        "g (float[N, 1, 3] x, float[N, P, 3] a, float[N, E, 3] e)"
        " => (float[N, 1, 3] y, float[N, T, 3] a2, float[N, E, 3] e2)"
        " { a2 = Concat<axis = 1>(a, x) e2 = Identity(e) m = ReduceMean<axes = [1], keepdims = 1>(a2)"
        " f = ReduceMean<axes = [1], keepdims = 1>(e) y = Add(m, f) }"
    )
    names = {"a": "past.0.decoder.key", "e": "past.0.encoder.key"}
    model = renamed(model, **names, a2="present.0.decoder.key", e2="present.0.encoder.key")
    arrays = {"x": noise(5, 1, 3), "past.0.decoder.key": noise(5, 4, 3), "past.0.encoder.key": noise(5, 7, 3)}
    assert pairs(model, tmp_path, **arrays) == {
        ("past.0.decoder.key", "present.0.decoder.key", "growing"),
        ("past.0.encoder.key", "present.0.encoder.key", "fixed"),
    }


def test_silero_vad_has_one_state(tmp_path: Path) -> None:
    model = load(MODELS / "silero_vad.onnx")
    session = Session(model.to_bytes())
    data = CalibrationData.open(MODELS / "silero_vad_calib.npz", session.inputs, run=session.run)
    assert find_states(model, session, data) == (State("state", "stateN"),)
    assert named_states(model, session) == (State("state", "stateN"),)


IMAGES = {
    "a denoiser": "g (float[N, 3] x) => (float[N, 3] y) { z = MatMul(x, w) y = Sub(x, z) }",
    "a denoiser that is told the noise": (
        "g (float[N, 3] image_in, float[N, 1] sigma) => (float[N, 3] image_out)"
        " { z = MatMul(image_in, w) s = Mul(z, sigma) image_out = Sub(image_in, s) }"
    ),
    "an autoencoder": "g (float[N, 3] x) => (float[N, 3] y, float[N, 3] code) { code = MatMul(x, w) y = Tanh(code) }",
    "a conditional autoencoder": (
        "g (float[N, 3] x, float[N, 1] label) => (float[N, 3] y, float[N, 3] code)"
        " { a = MatMul(x, w) code = Mul(a, label) y = Tanh(code) }"
    ),
    "a network of two images": (
        "g (float[N, 3] left, float[N, 3] right) => (float[N, 3] a, float[N, 3] b)"
        " { s = Add(left, right) a = MatMul(s, w) b = Tanh(a) }"
    ),
    "a block of a transformer": (
        "g (float[N, 3] hidden_states, float[N, 1] attention_mask) => (float[N, 3] output_hidden_states)"
        " { a = MatMul(hidden_states, w) output_hidden_states = Mul(a, attention_mask) }"
    ),
    "a decoder that reads a memory": (
        "g (float[N, 3] target, float[N, 3] memory) => (float[N, 3] out) { a = MatMul(memory, w) out = Add(a, target) }"
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("blank", [False, True])
def test_what_only_looks_alike_is_no_state(tmp_path: Path, kind: str, blank: bool) -> None:
    model = parsed(IMAGES[kind], w=noise(3, 3))
    session = Session(model.to_bytes())
    arrays = {spec.name: noise(8, int(spec.shape[1] or 0)) for spec in session.inputs}
    if blank:  # the first of two inputs holds nothing
        arrays[session.inputs[0].name][:] = 0
    assert states(model, tmp_path, **arrays) == ()


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "ppocr_cls", "swift_f0", "basic_pitch"])
def test_networks_without_a_state_have_none(name: str) -> None:
    model = load(MODELS / f"{name}.onnx")
    session = Session(model.to_bytes())
    data = CalibrationData.random(session.inputs, run=session.run)
    assert named_states(model, session) == find_states(model, session, data) == ()
