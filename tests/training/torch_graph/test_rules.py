"""What the node models of onnx do not show: old forms, states of recurrent operators, sequences, random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'onnxcomp[train]', or make test-torch")

from onnxcomp.model import load
from onnxcomp.runtime.session import Session
from onnxcomp.training.torch_graph.executor import Executor
from onnxcomp.training.torch_graph.program import NodeError

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def parsed(opset: int, graph: str) -> onnx.ModelProto:
    version = 7 if opset < 13 else 8 if opset < 19 else 10
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: {version}, opset_import: ["" : {opset}, "com.microsoft" : 1]> g {graph}'
    )
    return model


def given(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Any]:
    return Executor(load(model), threads=1).outputs_of(feeds, {})


X = normal(2, 4, 6)
OLD_FORMS = {
    "Clip by attributes": (9, "(float[2,4,6] x) => (float[2,4,6] y) {y = Clip <min=-0.5, max=0.5> (x)}"),
    "Pad by attributes": (9, "(float[2,4,6] x) => (float[2,5,8] y) {y = Pad <pads=[0,0,1,0,1,1], value=2.0> (x)}"),
    "Slice by attributes": (9, "(float[2,4,6] x) => (float[2,2,6] y) "
                               "{y = Slice <axes=[1], starts=[1], ends=[-1]> (x)}"),
    "Softmax over all axes from one": (11, "(float[2,4,6] x) => (float[2,4,6] y) {y = Softmax <axis=1> (x)}"),
    "Squeeze by attribute": (11, "(float[2,4,6] x) => (float[2,4,6] y) "
                                 "{u = Unsqueeze <axes=[0,3]> (x) y = Squeeze <axes=[0,3]> (u)}"),
    "Split by attribute": (11, "(float[2,4,6] x) => (float[2,1,6] y, float[2,3,6] z) "
                               "{y, z = Split <axis=1, split=[1,3]> (x)}"),
    "Sum over axes by attribute": (11, "(float[2,4,6] x) => (float[2,6] y) {y = ReduceSum <axes=[1], keepdims=0> (x)}"),
    "Upsample": (9, "(float[1,2,4,6] x) => (float[1,2,8,18] y) <float[4] s = {1,1,2,3}> {y = Upsample (x, s)}"),
    "TopK by attribute": (9, "(float[2,4,6] x) => (float[2,4,3] y, int64[2,4,3] i) {y, i = TopK <k=3> (x)}"),
    "the norm of all": (17, "(float[2,4,6] x) => (float[2,4,1] y) {y = GlobalLpPool <p=3> (x)}"),
    "a normalization of ONNX Runtime's": (17, "(float[2,4,6] x) => (y) <float[6] s = {1,2,3,4,5,6}> "
                                              "{y = SimplifiedLayerNormalization <axis=-1, epsilon=0.01> (x, s)}"),
    "sequences": (17, "(float[2,4,6] x) => (y, z) <int64 one = {1}, int64[2] parts = {1,3}> {"
                      "n = Neg (x) s = SequenceConstruct (x, n, x) t = SequenceErase (s, one) "
                      "y = SequenceAt (t, one) z = ConcatFromSequence <axis=1> (s)}"),
}  # fmt: skip


@pytest.mark.parametrize("form", OLD_FORMS)
def test_agrees_with_onnx_runtime(form: str) -> None:
    opset, graph = OLD_FORMS[form]
    model = parsed(opset, graph)
    feeds = {"x": normal(1, 2, 4, 6) if form == "Upsample" else X}
    expected = Session(model.SerializeToString(), optimization="none").run(feeds)
    for name, value in given(model, feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_forms_older_than_onnx_runtime_follow_their_specification() -> None:
    held = "(float[2,4,6] x) => (float[2,4,6] y) <float[4] s = {1,2,3,4}>"
    scale = np.array([1, 2, 3, 4], np.float32)[:, None]
    added = given(parsed(6, held + "{y = Add <axis=1, broadcast=1> (x, s)}"), {"x": X})["y"]
    sloped = given(parsed(6, held + "{y = PRelu (x, s)}"), {"x": X})["y"]
    np.testing.assert_array_equal(added, X + scale)
    np.testing.assert_array_equal(sloped, np.where(X >= 0, X, X * scale))
    assert np.array_equal(given(parsed(6, held + "{y = Dropout <is_test=1> (x)}"), {"x": X})["y"], X)


RECURRENT = {
    "LSTM": ("LSTM", 4, 2, {}),
    "LSTM, peepholes, coupled gates, other activations, clipped": (
        "LSTM", 4, 2,
        {"input_forget": 1, "clip": 0.5, "activations": ["HardSigmoid", "ScaledTanh", "Softsign"] * 2,
         "activation_alpha": [0.3, 0.7, 0.2, 0.6], "activation_beta": [0.4, 1.2, 0.5, 1.1]}),
    "GRU": ("GRU", 3, 1, {}),
    "GRU, reset after": ("GRU", 3, 1, {"linear_before_reset": 1}),
    "RNN": ("RNN", 1, 1, {}),
    "RNN, relu": ("RNN", 1, 1, {"activations": ["Relu", "Relu"]}),
}  # fmt: skip


@pytest.mark.parametrize("lengths", [None, [5, 2, 3], [5, 5, 5]], ids=["", "lengths", "whole"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_operators_agree_with_onnx_runtime(kind: str, direction: str, lengths: list[int] | None) -> None:
    op, gates, states, attributes = RECURRENT[kind]
    ways, size = 2 if direction == "bidirectional" else 1, 4
    attributes = {key: value[: len(value) * ways // 2] if isinstance(value, list) else value
                  for key, value in attributes.items()}  # fmt: skip
    held: dict[str, Array] = {
        "w": normal(ways, gates * size, 3), "r": normal(ways, gates * size, size), "b": normal(ways, 2 * gates * size),
        "h": normal(ways, 3, size), "c": normal(ways, 3, size), "p": normal(ways, 3 * size),
    }  # fmt: skip
    names = ["x", "w", "r", "b", "n" if lengths else "", "h"]
    if op == "LSTM":
        names += ["c", "p"] if "peepholes" in kind else ["c"]
    if lengths:
        held["n"] = np.array(lengths, np.int32)
    outputs = ["y", "yh", "yc"][: states + 1]
    node = onnx.helper.make_node(op, names, outputs, hidden_size=size, direction=direction, **attributes)
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, [5, 3, 3])],
        [onnx.ValueInfoProto(name=each) for each in outputs],
        [onnx.numpy_helper.from_array(held[each], each) for each in names[1:] if each],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 14)])
    feeds = {"x": normal(5, 3, 3)}
    expected = Session(model.SerializeToString(), optimization="none").run(feeds)
    for name, value in given(model, feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaled", ["Div (x, r)", "Mul (x, i)", "Mul (i, x)"])
@pytest.mark.parametrize("output", ["y", "e, y"])
def test_a_written_out_gelu_is_one_step_unless_its_parts_are_read(scaled: str, output: str) -> None:
    outputs = ", ".join(f"float[2,4,6] {each}" for each in output.split(", "))
    model = parsed(17, f"(float[2,4,6] x) => ({outputs}) <float r = {{1.4142135}}, float i = {{0.70710678}}, "
                       f"float one = {{1}}, float half = {{0.5}}> {{s = {scaled} e = Erf (s) a = Add (one, e) "
                       "m = Mul (x, a) y = Mul (m, half)}")  # fmt: skip
    executor = Executor(load(model), threads=1)
    assert len(executor.program.steps) == (1 if output == "y" else 5)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": X})
    np.testing.assert_allclose(executor.outputs_of({"x": X}, {})["y"], expected["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [6, 1])
@pytest.mark.parametrize("shape", [(), (6,), (1,), (4, 6), (2, 1, 6)])
@pytest.mark.parametrize("order", ["(p, c)", "(c, p)"])
def test_a_product_and_what_is_added_are_one_step(order: str, shape: tuple[int, ...], columns: int) -> None:
    model = parsed(17, f"(float[2,4,6] x, c) => (y) {{p = MatMul (x, w) y = Add {order}}}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(6, columns), "w"))
    model.graph.input[1].CopyFrom(onnx.helper.make_tensor_value_info("c", 1, shape))
    feeds = {"x": X, "c": normal(*shape)}
    executor = Executor(load(model), threads=1)
    assert len(executor.program.steps) == 1
    expected = Session(model.SerializeToString(), optimization="none").run(feeds)
    np.testing.assert_allclose(executor.outputs_of(feeds, {})["y"], expected["y"], rtol=1e-5, atol=1e-5)


def test_a_sum_of_two_products_keeps_one_of_them() -> None:
    model = parsed(17, "(float[2,4,6] x) => (y) {n = Neg (x) p = MatMul (x, w) q = MatMul (n, v) y = Add (p, q)}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(normal(6, 3), each) for each in "wv")
    expected = Session(model.SerializeToString(), optimization="none").run({"x": X})
    np.testing.assert_allclose(given(model, {"x": X})["y"], expected["y"], rtol=1e-5, atol=1e-5)


def test_a_chain_like_gelu_of_other_numbers_stays() -> None:
    model = parsed(17, "(float[2,4,6] x) => (float[2,4,6] y) <float r = {1.4}, float one = {1}, float half = {0.5}> "
                       "{s = Div (x, r) e = Erf (s) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)}")  # fmt: skip
    expected = Session(model.SerializeToString(), optimization="none").run({"x": X})
    np.testing.assert_allclose(given(model, {"x": X})["y"], expected["y"], rtol=1e-5, atol=1e-6)


def test_random_operators_repeat_from_run_to_run_and_differ_from_each_other() -> None:
    model = parsed(17, "() => (float[1000] a, float[1000] b, float[1000] c, float[1000] d) {"
                       "a = RandomNormal <shape=[1000], mean=3.0, scale=2.0> () b = RandomNormal <shape=[1000]> () "
                       "c = RandomUniform <shape=[1000], low=1.0, high=2.0, seed=7.0> () d = Dropout (c)}")  # fmt: skip
    executor = Executor(load(model))
    first, second = executor.outputs_of({}, {}), executor.outputs_of({}, {})
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal((first["a"] - 3) / 2, first["b"])
    assert (abs(first["a"].mean() - 3), abs(first["a"].std() - 2)) < (0.3, 0.3)
    assert first["c"].min() >= 1 and first["c"].max() <= 2
    assert np.array_equal(first["c"], first["d"])


def test_draws_in_a_loop_differ_from_turn_to_turn() -> None:
    model = parsed(17, "(float[3] x) => (float[n, 3] y) <int64 m = {4}> {y = Loop (m, ) <body = b (int64 i, bool c) => "
                       "(bool d, float[3] r) {d = Identity (c) r = RandomNormalLike (x)}>}")  # fmt: skip
    (rows,) = given(model, {"x": np.zeros(3, np.float32)}).values()
    assert len(np.unique(rows)) == 12


def test_dropout_in_training_scales_what_it_keeps() -> None:
    model = parsed(13, "(float[100,100] x) => (float[100,100] y, bool[100,100] m) <float r = {0.25}, bool t = {1}> "
                       "{y, m = Dropout (x, r, t)}")  # fmt: skip
    made = given(model, {"x": np.ones((100, 100), np.float32)})
    assert made["m"].mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(made["y"], made["m"] / 0.75, rtol=1e-6)


def test_operators_without_a_rule_are_computed_by_onnx_runtime() -> None:
    model = parsed(17, "(float[6] x) => (float[n] y, int64[n] i, int64[n] j, int64[n] c) {y, i, j, c = Unique (x)}")
    made = given(model, {"x": np.array([2, 1, 1, 3, 4, 3], np.float32)})
    assert (made["y"].tolist(), made["c"].tolist()) == ([1, 2, 3, 4], [2, 1, 2, 1])


def test_strings_go_by_onnx_runtime() -> None:
    model = parsed(17, "(string[2] x) => (string[4] y, bool[2] e) {y = Concat <axis=0> (x, x) e = Equal (x, x)}")
    model.opset_import[0].version = 19
    made = given(model, {"x": np.array(["a", "b"], object)})
    assert (made["y"].tolist(), made["e"].tolist()) == (["a", "b", "a", "b"], [True, True])


def test_a_node_that_cannot_be_computed_is_named() -> None:
    model = parsed(17, "(float[n] x, float[m] z) => (y) {[sum] y = Add (x, z)}")
    with pytest.raises(NodeError, match="Add 'sum' cannot be computed"):
        given(model, {"x": normal(3), "z": normal(4)})


def test_a_branch_that_would_fail_does_no_harm_where_it_is_not_taken() -> None:
    model = parsed(17, "(bool c, float[2,4,6] x) => (y) <int64[2] s = {5, 5}, float[2] w = {1, 2}> {y = If (c) <"
                       "then_branch = a () => (p) {p = Neg (x)}, "
                       "else_branch = b () => (q) {q = Reshape (w, s)}>}")  # fmt: skip
    (y,) = given(model, {"c": np.array(True), "x": X}).values()
    np.testing.assert_array_equal(y, -X)
