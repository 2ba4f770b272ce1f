"""What the engine ``torch`` promises: gradients by name, nothing kept, nothing changed, and what it cannot do named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'onnxcomp[train]', or make test-torch")

from onnxcomp.model import Model, load
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.engine import NoGradientError
from onnxcomp.training.torch_engine import TorchEngine
from onnxcomp.training.torch_graph.rule import NodeError

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def model_of(graph: str, values: dict[str, Array], opset: int = 17) -> Model:
    """The graph with these initializers."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 2, "own" : 1]> g '
    proto: onnx.ModelProto = parser.parse_model(header + graph)
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())
    return load(proto)


def slopes(graph: str, values: dict[str, Array], feeds: dict[str, Array] | None = None, **more: Any) -> Any:
    model = model_of(graph, values, **more)
    return TorchEngine(model, "loss", list(values), threads=1).loss_and_gradients(feeds or {}, values)


LINEAR = (
    "(float[3,2] x) => (float loss) {y = MatMul (x, w) z = Add (y, b) q = Mul (z, z) "
    "loss = ReduceSum <keepdims=0> (q)}"
)
VALUES = {"w": RNG.normal(size=(2, 4)).astype(np.float32), "b": RNG.normal(size=4).astype(np.float32)}
X = RNG.normal(size=(3, 2)).astype(np.float32)


def test_gives_loss_and_gradients_by_name_in_the_values_own_type() -> None:
    loss, found = slopes(LINEAR, VALUES, {"x": X})
    z = X @ VALUES["w"] + VALUES["b"]
    assert loss == pytest.approx(float((z * z).sum()), rel=1e-6)
    np.testing.assert_allclose(found["w"], 2 * X.T @ z, rtol=1e-5)
    np.testing.assert_allclose(found["b"], 2 * z.sum(0), rtol=1e-5)
    assert {name: each.dtype for name, each in found.items()} == dict.fromkeys(VALUES, np.dtype(np.float32))


def test_values_come_with_each_call_and_are_left_as_they_are() -> None:
    model = model_of(LINEAR, VALUES)
    engine = TorchEngine(model, "loss", ["w"])
    locked = VALUES["w"].copy()
    locked.flags.writeable = False
    first = engine.loss_and_gradients({"x": X}, {"w": locked})
    doubled = engine.loss_and_gradients({"x": X}, {"w": 2 * locked})
    again = engine.loss_and_gradients({"x": X}, {"w": locked})
    assert doubled[0] != first[0] == again[0]
    np.testing.assert_array_equal(first[1]["w"], again[1]["w"])
    np.testing.assert_array_equal(locked, VALUES["w"])


def test_gradients_and_outputs_may_be_written_to() -> None:
    graph = "() => (float[4] y, float loss) {y = Identity (k) s = Add (a, b) loss = ReduceSum <keepdims=0> (s)}"
    values = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    engine = TorchEngine(model_of(graph, {**values, "k": np.ones(4, np.float32)}), "loss", ["a", "b"])
    found = engine.loss_and_gradients({}, values)[1]
    found["a"] *= 5
    assert found["b"].tolist() == [1] * 4
    engine.forward({}, values)["y"][:] = 7
    assert engine.forward({}, values)["y"].tolist() == [1] * 4


def test_a_parameter_that_the_loss_does_not_depend_on_has_zeros() -> None:
    graph = "(float[3,2] x) => (float[3,2] y, float loss) {y = Mul (x, u) c = ArgMax (v) d = Cast <to=1> (c) " \
            "loss = ReduceSum <keepdims=0> (d)}"  # fmt: skip
    values = {"u": np.ones(2, np.float32), "v": np.array([1, 3, 2], np.float32)}
    loss, found = slopes(graph, values, {"x": X})
    assert (loss, found["u"].tolist(), found["v"].tolist()) == (1, [0, 0], [0, 0, 0])


def test_an_operator_without_derivative_is_named_only_where_it_is_on_the_way() -> None:
    values = {"w": np.array([3, 1, 1, 2], np.float32)}
    on_the_way = "() => (float loss) {u, i = Unique (w) loss = ReduceSum <keepdims=0> (u)}"
    beside = "(float[4] x) => (float loss) {u = Unique (x) m = Mul (w, w) a = ReduceSum <keepdims=0> (m) " \
             "b = ReduceSum <keepdims=0> (u) loss = Add (a, b)}"  # fmt: skip
    assert list(TorchEngine.unsupported(model_of(on_the_way, values), "loss", ["w"])) == ["Unique"]
    with pytest.raises(NoGradientError, match="Unique"):
        slopes(on_the_way, values)
    assert TorchEngine.unsupported(model_of(beside, values), "loss", ["w"]) == {}
    assert slopes(beside, values, {"x": np.array([5, 5, 6, 6], np.float32)})[1]["w"].tolist() == [6, 2, 2, 4]


def test_an_operator_without_derivative_is_named_inside_a_branch() -> None:
    graph = "(bool c) => (float loss) {v = If (c) <then_branch = a () => (p) {p = Unique (w)}, " \
            "else_branch = b () => (q) {q = Neg (w)}> loss = ReduceSum <keepdims=0> (v)}"  # fmt: skip
    model = model_of(graph, {"w": np.ones(3, np.float32)})
    assert list(TorchEngine.unsupported(model, "loss", ["w"])) == ["Unique"]
    assert TorchEngine.unsupported(model, "loss", []) == {}


def test_an_unknown_operator_is_named_wherever_it_is() -> None:
    graph = "(float[3] x) => (float loss, float[3] y) {y = own.Strange (x) loss = ReduceSum <keepdims=0> (w)}"
    reasons = TorchEngine.unsupported(model_of(graph, {"w": np.ones(3, np.float32)}), "loss", ["w"])
    assert list(reasons) == ["own::Strange"]


def test_an_input_that_is_not_fed_is_named() -> None:
    with pytest.raises(NodeError, match="'x'"):
        slopes(LINEAR, VALUES, {})


def test_leaves_torch_as_it_was() -> None:
    torch.set_num_threads(2)
    slopes(LINEAR, VALUES, {"x": X})
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_root_of_zero_spoils_nothing() -> None:
    graph = "(float[3] x) => (float loss) {m = Mul (x, w) q = Mul (m, m) r = Sqrt (q) " \
            "loss = ReduceSum <keepdims=0> (r)}"  # fmt: skip
    feeds, values = {"x": np.array([0, -2, 3], np.float32)}, {"w": np.ones(3, np.float32)}
    loss, found = slopes(graph, values, feeds)
    assert (loss, found["w"].tolist()) == (5, [0, 2, 3])


def test_rows_that_are_masked_out_whole_spoil_nothing() -> None:
    graph = "(float[2,3] x) => (float loss) {m = Mul (x, w) a = Add (m, mask) s = Softmax (a) n = IsNaN (s) " \
            "z = Where (n, zero, s) q = Mul (z, x) loss = ReduceSum <keepdims=0> (q)}"  # fmt: skip
    mask = np.array([[0, 0, -np.inf], [-np.inf] * 3], np.float32)
    values = {"w": np.ones(3, np.float32)}
    model = model_of(graph, {**values, "mask": mask, "zero": np.zeros((), np.float32)})
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    found = TorchEngine(model, "loss", ["w"]).loss_and_gradients({"x": x}, values)[1]["w"]
    share = 1 / (1 + np.e)  # of the first of two
    slope = share * (1 - share)  # of sum q by the difference of the two scores, whose values differ by one
    np.testing.assert_allclose(found, [-slope, 2 * slope, 0], rtol=1e-5)


# Quantized weights and activations: the derivative of LSQ.


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantized_weights_have_the_slopes_of_lsq(axis: int | None) -> None:
    w = RNG.normal(size=(3, 4)) * 3
    scale = np.array(0.02) if axis is None else 0.01 + 0.02 * RNG.random(w.shape[axis])
    zero = np.full(scale.shape, 3, np.int8)
    held = {"w": w.astype(np.float32), "s": scale.astype(np.float32)}
    option = "" if axis is None else f"<axis={axis}>"
    graph = f"(float[3,4] k) => (float loss) {{q = QuantizeLinear {option} (w, s, z) y = DequantizeLinear {option} " \
            "(q, s, z) m = Mul (y, k) loss = ReduceSum <keepdims=0> (m)}"  # fmt: skip
    model = model_of(graph, {**held, "z": zero})
    k = RNG.normal(size=(3, 4)).astype(np.float32)
    loss, found = TorchEngine(model, "loss", ["w", "s"]).loss_and_gradients({"k": k}, held)
    shape = [] if axis is None else [-1 if place == axis else 1 for place in range(2)]
    wide, s = held["w"].astype(np.float64), held["s"].astype(np.float64).reshape(shape)
    inside = (wide / s + 3 >= -128) & (wide / s + 3 <= 127)
    q = np.clip(np.round(wide / s) + 3, -128, 127)
    assert inside.any() and not inside.all()
    assert loss == pytest.approx(float(((q - 3) * s * k).sum()), rel=1e-5)
    np.testing.assert_allclose(found["w"], k * inside, rtol=1e-6)
    by_element = k * np.where(inside, q - 3 - wide / s, q - 3)
    others = tuple(place for place in range(2) if axis is None or place != axis)
    np.testing.assert_allclose(found["s"], by_element.sum(others), rtol=1e-3)


def test_slopes_pass_through_products_of_whole_numbers() -> None:
    graph = "(float[3,2] x) => (float loss) {q = QuantizeLinear (w, s, z) a, t, o = DynamicQuantizeLinear (x) " \
            "p = MatMulInteger (a, q, o, z) f = Cast <to=1> (p) g = Mul (f, s) y = Mul (g, t) " \
            "m = Mul (y, y) loss = ReduceSum <keepdims=0> (m)}"  # fmt: skip
    w, s = np.array([[1.0, -2], [0.5, 3]], np.float32), np.array(0.05, np.float32)
    model = model_of(graph, {"w": w, "s": s, "z": np.array(0, np.int8)})
    loss, found = TorchEngine(model, "loss", ["w"]).loss_and_gradients({"x": X}, {"w": w})
    y = X @ w  # up to the rounding of x
    assert loss == pytest.approx(float((y * y).sum()), rel=0.05)
    np.testing.assert_allclose(found["w"], 2 * X.T @ y, rtol=0.05, atol=0.2)


def test_whole_numbers_come_out_as_whole_numbers() -> None:
    graph = "() => (int8[3] q, float loss) {q = QuantizeLinear (w, s, z) f = DequantizeLinear (q, s, z) " \
            "loss = ReduceSum <keepdims=0> (f)}"  # fmt: skip
    values = {"w": np.array([0.5, 1.5, 200], np.float32)}
    model = model_of(graph, {**values, "s": np.array(1, np.float32), "z": np.array(0, np.int8)})
    made = TorchEngine(model, "loss", ["w"]).forward({}, values)
    assert (made["q"].dtype, made["q"].tolist()) == (np.int8, [0, 2, 127])


# Subgraphs, functions, shared and moved weights: against central differences in float64.

SUM = "loss = ReduceSum <keepdims=0> (e)}"
FLOW = {
    "If, a weight of the outer graph": "{v = If (c) <then_branch = a () => (p) {p = Mul (w, w)}, "
        "else_branch = b () => (q) {q = Neg (w)}> e = Tanh (v) ",
    "Loop, a state": "{n = Constant <value_int=3> () v, r = Loop (n, c, w) <body = b (int64 i, bool g, double[2,3] h) "
        "=> (bool d, double[2,3] o, double[2,3] p) {d = Identity (g) u = Tanh (h) o = Mul (u, w) p = Sin (o)}> "
        "f = ReduceSum <keepdims=0> (r) e = Mul (v, f) ",
    "Scan": "{s = Gather (w, z) f, r = Scan <num_scan_inputs=1, body = b (double[3] h, double[3] x) "
        "=> (double[3] o, double[3] p) {u = Mul (h, x) o = Tanh (u) p = Exp (o)}> (s, w) e = Mul (f, r) ",
    "a weight that is cut, turned and joined": "{t = Transpose (w) s, u = Split <axis=0> (t, parts) "
        "j = Concat <axis=0> (u, s, t) e = Exp (j) ",
    "a weight read twice": "{i = Identity (w) t = Transpose (i) m = MatMul (w, t) e = Sin (m) ",
}  # fmt: skip


@pytest.mark.parametrize("flow", FLOW)
def test_slopes_follow_a_weight_wherever_it_goes(flow: str) -> None:
    values = {"w": RNG.normal(size=(2, 3))}
    others: dict[str, Array] = {"z": np.array(0, np.int64), "parts": np.array([1, 2], np.int64)}
    feeds = {"c": np.array(True)}
    model = model_of("(bool c) => (double loss) " + FLOW[flow] + SUM, {**values, **others})
    found = TorchEngine(model, "loss", ["w"]).loss_and_gradients(feeds, values)[1]["w"]
    engine, expected = TorchEngine(model, "loss", ["w"]), np.zeros_like(found)
    for place in np.ndindex(found.shape):
        step = np.zeros_like(found)
        step[place] = 1e-6
        ahead, behind = (engine.forward(feeds, {"w": values["w"] + sign * step})["loss"] for sign in (1, -1))
        expected[place] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_slopes_pass_through_local_functions() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[3] x) => (float loss) <float[3] w = {1,2,3}> '
        "{y = own.Scaled <by=3.0> (x, w) loss = ReduceSum <keepdims=0> (y)} "
        '<domain: "own", opset_import: ["" : 17]> Scaled <by> (a, b) => (c) '
        "{k = Constant <value_float: float = @by> () m = Mul (a, b) c = Mul (m, k)}"
    )
    values = {"w": np.array([1, 2, 3], np.float32)}
    x = np.array([1, -1, 2], np.float32)
    found = TorchEngine(load(proto), "loss", ["w"]).loss_and_gradients({"x": x}, values)[1]
    np.testing.assert_allclose(found["w"], 3 * x)


NETS = {
    "convolutions": "(float[4,1,8,8] x) => (float loss) {a = Conv <pads=[1,1,1,1]> (x, k1) r = Relu (a) "
        "p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) c = Conv <group=2> (p, k2) v = GlobalAveragePool (c) "
        "f = Flatten (v) y = Gemm <transB=1> (f, d, e) q = Mul (y, y) loss = ReduceMean <keepdims=0> (q)}",
    "attention": "(float[4,1,8,8] x) => (float loss) <int64[3] s = {4,8,8}> {t = Reshape (x, s) q = MatMul (t, wq) "
        "k = MatMul (t, wk) u = Transpose <perm=[0,2,1]> (k) m = MatMul (q, u) p = Softmax <axis=-1> (m) "
        "v = MatMul (p, q) n = LayerNormalization (v, g, b) h = Sigmoid (n) z = Mul (h, n) "
        "loss = ReduceMean <keepdims=0> (z)}",
}  # fmt: skip
WEIGHTS = {
    "k1": (4, 1, 3, 3), "k2": (6, 2, 3, 3), "d": (5, 6), "e": (5,), "wq": (8, 8), "wk": (8, 8), "g": (8,), "b": (8,),
}  # fmt: skip


@pytest.mark.parametrize("net", NETS)
def test_both_engines_have_the_same_gradients(net: str) -> None:
    read = {name for node in model_of(NETS[net], {}).proto.graph.node for name in node.input}
    values = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in WEIGHTS.items() if name in read}
    model = model_of(NETS[net], values)
    feeds = {"x": RNG.normal(size=(4, 1, 8, 8)).astype(np.float32)}
    one, other = (kind(model, "loss", list(values), threads=1).loss_and_gradients(feeds, values)
                  for kind in (TorchEngine, BackwardEngine))  # fmt: skip
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name in values:
        error = np.linalg.norm(one[1][name] - other[1][name]) / np.linalg.norm(one[1][name])
        assert error < 1e-5, name
