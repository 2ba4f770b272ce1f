"""quantize-static: what ONNX Runtime makes of the result, and its numbers against integer arithmetic by hand."""

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import QuantizationStyle, Target
from tests.graphs.running import kernels

Array = NDArray[Any]
QuantizeStatic = get_pass("quantize-static")


def drawn(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(text: str, opset: int = 17, **constants: Array) -> Model:
    """``text`` is the graph, ``constants`` are its initializers."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def calibration(model: Model, *feeds: dict[str, Array]) -> CalibrationData:
    groups = tuple(Group(f"{i}", functools.partial(dict, each), WHOLE) for i, each in enumerate(feeds))
    order = np.array([[i, 0] for i in range(len(feeds))], np.int64)
    return CalibrationData(source="test", inputs=Session(model.to_bytes()).inputs, groups=groups, order=order)


def quantized(
    model: Model, *feeds: dict[str, Array], context: dict[str, Any] | None = None, **fields: Any
) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    data = calibration(model, *feeds)
    outcome = QuantizeStatic(**fields).apply(graph, Context(calibration=data, **(context or {})))
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def assert_close(model: Model, result: Model, feeds: dict[str, Array], share: float = 0.03) -> None:
    """8 bits keep a few layers within some hundredths of the outputs' range."""
    before, after = (Session(each.to_bytes()).run(feeds) for each in (model, result))
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        assert np.abs(after[name] - value).max() <= share * np.ptp(value)


def test_gemm_computes_what_integers_give_by_hand() -> None:
    weight = np.array([[1.27, -2.54], [0.5, 1.0]], np.float32)  # scales 0.01 and 0.02 a column
    bias = np.array([0.3, -0.7], np.float32)
    text = "g (float[N,2] x) => (float[N,2] y) { y = Gemm(x, W, b) }"
    x = np.array([[-1.0, 1.55], [0.333, 0.777]], np.float32)  # -1 to 1.55: scale 0.01, zero point 100
    result, _ = quantized(model_of(text, W=weight, b=bias), {"x": x})
    codes = np.rint(x / 0.01)
    weight_codes = np.rint(weight / [0.01, 0.02])
    bias_codes = np.rint(bias / [0.0001, 0.0002])
    expected = (codes @ weight_codes + bias_codes) * [0.0001, 0.0002]
    np.testing.assert_allclose(Session(result.to_bytes()).run({"x": x})["y"], expected, rtol=1e-4)


def test_a_convolutional_net_runs_on_integers_alone() -> None:
    model = model_of(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            c = Conv<kernel_shape=[3,3]>(x, W, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r)
            d = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(p, V) s = Add(d, p) t = Relu(s)
            a = GlobalAveragePool(t) f = Flatten(a) y = Gemm<transB=1>(f, U, u) }""",
        W=drawn(4, 3, 3, 3), b=drawn(4), V=drawn(4, 4, 3, 3), U=drawn(5, 4), u=drawn(5),
    )  # fmt: skip
    feeds = {"x": drawn(6, 3, 8, 8)}
    result, outcome = quantized(model, feeds)
    assert not outcome.skipped and len(outcome.changed) == 3
    assert [len(each.details.get("between", [])) for each in outcome.changed] == [1, 3, 0]
    found = kernels(result.to_bytes())
    assert found["QuantizeLinear"] == 1 and "DequantizeLinear" not in found
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (2, 1, 1)
    assert not {"Conv", "Relu", "Add", "Gemm", "GlobalAveragePool"} & found.keys()
    assert_close(model, result, feeds)


@pytest.mark.parametrize(
    ("body", "kernel"),
    [
        ("y = Gemm(x, W, b)", "QGemm"),
        ("y = Gemm<transB=1>(x, W, b)", "QGemm"),
        ("y = Gemm<alpha=0.5, beta=2.0>(x, W, b)", "QGemm"),
        ("y = Gemm<alpha=0.5>(x, W)", "QGemm"),
        ("y = MatMul(x, W)", "MatMulIntegerToFloat"),
        ("h = MatMul(x, W) y = Add(b, h)", "QGemm"),
        ("h = MatMul(x, W) k = Add(h, b) r = Relu(k) y = MatMul(r, V)", "QGemm"),
        ("t = Transpose<perm=[1,0]>(W) y = MatMul(x, t)", "MatMulIntegerToFloat"),
        ("c = Constant<value=float[1]{2.5}>() h = MatMul(x, W) y = Mul(h, c)", "MatMulIntegerToFloat"),
    ],
)
def test_every_form_of_a_matrix_product_gets_an_integer_kernel(body: str, kernel: str) -> None:
    constants = {"W": drawn(16, 16), "V": drawn(16, 16, seed=8), "b": drawn(16)}
    used = {name: each for name, each in constants.items() if f"{name})" in body or f"{name}," in body}
    model = model_of(f"g (float[N,16] x) => (float[N,16] y) {{ {body} }}", **used)
    feeds = {"x": drawn(20, 16)}
    result, outcome = quantized(model, feeds)
    assert not outcome.skipped
    assert kernel in kernels(result.to_bytes())
    assert_close(model, result, feeds)


@pytest.mark.parametrize("shape", ["2,4,16", "N,L,16"])
def test_a_product_of_three_dimensions_stays_an_integer_kernel_beside_its_bias(shape: str) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ h = MatMul(x, W) k = Add(h, b) y = Relu(k) }}"
    model = model_of(text, W=drawn(16, 16), b=drawn(16))
    feeds = {"x": drawn(2, 4, 16)}
    result, _ = quantized(model, feeds)
    found = kernels(result.to_bytes())
    assert found["MatMulIntegerToFloat"] == 1 and "Gemm" not in found
    assert_close(model, result, feeds)


def test_a_shared_activation_is_quantized_once_and_float_readers_keep_theirs() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, W) b = MatMul(x, V) c = Add(a, b) y = Add(c, x) }"
    model = model_of(text, W=drawn(8, 8), V=drawn(8, 8, seed=8))
    result, _ = quantized(model, {"x": drawn(20, 8)})
    nodes = result.proto.graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 1
    assert "x" in next(node for node in nodes if "y" in node.output).input


def test_a_shared_weight_is_stored_once() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, W) r = Relu(a) y = MatMul(r, W) }"
    result, _ = quantized(model_of(text, W=drawn(8, 8)), {"x": drawn(20, 8)})
    assert [each.name for each in result.proto.graph.initializer if each.dims == [8, 8]] == ["W_int8"]


def test_nodes_read_by_float_nodes_alone_are_left_in_float() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,4,4] y) { c = Conv(x, W) p = MaxPool<kernel_shape=[3,3]>(c) y = Exp(p) }"
    _, outcome = quantized(model_of(text, W=drawn(4, 3, 3, 3)), {"x": drawn(2, 3, 8, 8)})
    assert [each.details.get("weight") for each in outcome.changed] == ["W"]


def test_outputs_and_inner_names_stay_float() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c) { c = Conv(x, W) y = Relu(c) }"
    model = model_of(text, W=drawn(4, 3, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, _ = quantized(model, feeds)
    assert_close(model, result, feeds)


def test_weights_are_eight_bit_and_biases_exact_to_the_accumulator() -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { y = Gemm(x, W, b) }", W=drawn(64, 64), b=drawn(64))
    result, _ = quantized(model, {"x": drawn(20, 64)})
    kinds = {each.name: each.data_type for each in result.proto.graph.initializer if each.dims == [64, 64]}
    assert kinds == {"W_int8": onnx.TensorProto.INT8}
    assert result.size_bytes < model.size_bytes / 2.5


def test_older_opsets_are_raised() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, W) y = Clip<min=0.0, max=6.0>(c) }"
    model = model_of(text, opset=9, W=drawn(4, 3, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, _ = quantized(model, feeds)
    assert result.opset == 13
    assert_close(model, result, feeds)


def test_a_bounded_opset_gets_one_scale_a_tensor() -> None:
    model = model_of("g (float[N,8] x) => (float[N,8] y) { y = Gemm(x, W, b) }", 9, W=drawn(8, 8), b=drawn(8))
    feeds = {"x": drawn(20, 8)}
    result, outcome = quantized(model, feeds, context={"max_opset": 11})
    assert result.opset == 10 and outcome.changed[0].details["scales"] == 1
    assert_close(model, result, feeds, 0.05)


IF = """g (bool c, float[N,8] x) => (float[N,8] y) { h = MatMul(x, W) y = If(c) <
    then_branch = t () => (float[N,8] a) { [inner] a = MatMul(h, W) },
    else_branch = e () => (float[N,8] b) { r = Relu(h) [other] b = Gemm(r, W) }> }"""
LOOP = """g (int64 n, bool c, float[4,8] x) => (float[4,8] y) { y = Loop(n, c, x) <
    body = b (int64 i, bool k, float[4,8] v) => (bool k2, float[4,8] w) {
        k2 = Identity(k) [inner] m = MatMul(v, W) t = Tanh(m) w = Add(t, x) }> }"""


@pytest.mark.parametrize("taken", [True, False])
def test_branches_run_on_integers(taken: bool) -> None:
    model = model_of(IF, W=drawn(8, 8))
    feeds = {"x": drawn(20, 8), "c": np.array(taken)}
    result, outcome = quantized(model, {**feeds, "c": np.array(True)}, {**feeds, "c": np.array(False)})
    assert {each.name for each in outcome.changed} == {"h", "y/then_branch/inner", "y/else_branch/other"}
    found = kernels(result.to_bytes())
    assert (found["MatMulIntegerToFloat"], found["QGemm"]) == (2, 1) and "MatMul" not in found
    assert not any(each.dims == [8, 8] and each.data_type == 1 for each in result.proto.graph.initializer)
    assert_close(model, result, feeds, 0.05)


def test_a_branch_that_calibration_never_took_stays_in_float() -> None:
    model = model_of(IF, W=drawn(8, 8))
    _, outcome = quantized(model, {"x": drawn(20, 8), "c": np.array(True)})
    assert {each.name for each in outcome.changed} == {"h", "y/then_branch/inner"}
    assert [(each.name, "no values" in each.reason) for each in outcome.skipped] == [("y/else_branch/other", True)]


def test_a_loop_runs_on_integers() -> None:
    model = model_of(LOOP, W=drawn(8, 8) / 4)
    feeds = {"x": drawn(4, 8), "n": np.array(3), "c": np.array(True)}
    result, outcome = quantized(model, feeds)
    assert [each.name for each in outcome.changed] == ["y/body/inner"]
    assert kernels(result.to_bytes())["MatMulIntegerToFloat"] == 1
    assert_close(model, result, feeds, 0.05)


def test_functions_are_left_with_a_reason() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,8] x) => (float[N,8] y) <float[8,8] W = {%s}> { h = MatMul(x, W) y = local.twice(h, W) }
        <domain: "local", opset_import: ["" : 17]> twice (a, W) => (b) { [inner] m = MatMul(a, W) b = MatMul(m, W) }"""
    model = load(parser.parse_model(text % ", ".join(str(each) for each in drawn(64))))
    feeds = {"x": drawn(20, 8)}
    result, outcome = quantized(model, feeds)
    assert [each.name for each in outcome.changed] == ["h"]
    assert ["function" in each.reason for each in outcome.skipped] == [True, True]
    assert_close(model, result, feeds)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("l = Log(x) y = MatMul(l, W)", "not finite"),
        ("e = Constant<value=float[1]{0.}>() z = Div(x, e) y = MatMul(z, W)", "not finite"),
        ("t = MatMul(x, x) y = MatMul(t, W)", "two activations"),
        ("h = Cast<to=11>(x) w = Cast<to=11>(W) k = MatMul(h, w) y = Cast<to=1>(k)", "two activations"),
        ("s = Sigmoid(W) y = Gemm(x, s)", "not a constant"),
        ("y = Gemm(x, W, x)", "not a float32 constant"),
        ("y = Gemm(x, W, W)", "row to row"),
        ("y = Gemm(W, x)", "constant"),
    ],
)
def test_says_why_it_leaves_a_node(body: str, reason: str) -> None:
    model = model_of(f"g (float[8,8] x) => (float[8,8] y) {{ {body} }}", W=drawn(8, 8))
    _, outcome = quantized(model, {"x": drawn(8, 8)})
    assert any(reason in each.reason for each in outcome.skipped), outcome.skipped


def test_a_tensor_that_never_comes_leaves_its_node_in_float() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, W) }"
    model = model_of(text, W=drawn(8, 8))
    result, outcome = quantized(model, {"x": np.zeros((0, 8), np.float32)})
    assert "no values" in outcome.skipped[0].reason and not outcome.changed
    assert result.proto.SerializeToString() == model.proto.SerializeToString()


def test_products_of_activations_are_quantized_on_request() -> None:
    model = model_of("g (float[N,8] x, float[8,N] z) => (float[N,N] y) { y = MatMul(x, z) }")
    feeds = {"x": drawn(20, 8), "z": drawn(8, 20)}
    result, _ = quantized(model, feeds, products="yes")
    assert "MatMulIntegerToFloat" in kernels(result.to_bytes())
    assert_close(model, result, feeds)


def test_a_transposed_convolution_stays_in_float_on_cpu_unless_asked_for() -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,7,7] y) { y = ConvTranspose<group=2>(x, W, b) }"
    model = model_of(text, W=drawn(4, 3, 3, 3), b=drawn(6))
    feeds = {"x": drawn(2, 4, 5, 5)}
    _, outcome = quantized(model, feeds)
    assert not outcome.changed and "ConvTranspose" in outcome.skipped[0].reason
    result, _ = quantized(model, feeds, all_nodes=True)
    assert_close(model, result, feeds)


def test_percentile_leaves_out_rare_values() -> None:
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(-1, 8)
    values[3, 3] = 1000
    model = model_of("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, W) }", W=drawn(8, 8))
    for fields, top in ({"calibrator": "minmax"}, 1000.0), ({"calibrator": "percentile", "coverage": 0.99}, 1.0):
        result, _ = quantized(model, {"x": values}, **fields)
        node = next(each for each in result.proto.graph.node if each.op_type == "QuantizeLinear")
        scale = next(each for each in result.proto.graph.initializer if each.name == node.input[1])
        assert float(numpy_helper.to_array(scale)) * 255 == pytest.approx(top, rel=0.5)


def test_leaves_excluded_nodes_and_weights() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { [first] a = MatMul(x, W) [second] y = MatMul(a, V) }"
    model = model_of(text, W=drawn(8, 8), V=drawn(8, 8, seed=8))
    for context in {"exclude": ("first",)}, {"exclude": ("W",)}, {"include": frozenset({"second"})}:
        _, outcome = quantized(model, {"x": drawn(20, 8)}, context=context)
        assert [each.name for each in outcome.changed] == ["second"]


def test_nodes_between_stay_in_float_when_excluded_or_when_their_neighbours_are_taken_back() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,4,4] y) {
        [first] c = Conv(x, W) [pool] p = MaxPool<kernel_shape=[1,1]>(c) [second] y = Conv(p, V) }"""
    model = model_of(text, W=drawn(4, 3, 3, 3), V=drawn(4, 4, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    for context, between in (
        ({}, ["pool"]),
        ({"exclude": ("pool",)}, None),
        ({"include": frozenset({"first"})}, None),
        ({"include": frozenset({"first", "second"})}, ["pool"]),
    ):
        result, outcome = quantized(model, feeds, context=context)
        assert outcome.changed[0].details.get("between") == between
        assert_close(model, result, feeds, 0.05)


def test_needs_calibration_data() -> None:
    model = model_of("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, W) }", W=drawn(8, 8))
    with pytest.raises(CalibrationError, match="calib-data"):
        QuantizeStatic().apply(open_graph(model), Context())


def test_factors_and_levels_quantize_too() -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, W) }", W=drawn(64, 4) @ drawn(4, 64))
    graph = open_graph(model)
    get_pass("factorize-linear")(rank=4).apply(graph, Context())
    factored = close_graph(graph)
    feeds = {"x": drawn(20, 64)}
    result, outcome = quantized(factored, feeds)
    assert len(outcome.changed) == 2
    assert_close(model, result, feeds)


def test_a_hard_swish_in_pieces_runs_on_integers() -> None:
    model = model_of(
        """g (float[N,3,8,8] x) => (float[N,4,4,4] y) {
            three = Constant<value_float=3.0>() six = Constant<value_float=6.0>() zero = Constant<value_float=0.0>()
            c = Conv(x, W) a = Add(c, three) k = Clip(a, zero, six) m = Mul(c, k) d = Div(m, six) y = Conv(d, V) }""",
        W=drawn(4, 3, 3, 3), V=drawn(4, 4, 3, 3),
    )  # fmt: skip
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, outcome = quantized(model, feeds)
    assert len(outcome.changed) == 2
    found = kernels(result.to_bytes())
    assert not {"Add", "Clip", "Mul", "Div"} & found.keys()
    assert (found["QLinearAdd"], found["QLinearMul"], found["QuantizeLinear"]) == (1, 1, 1)
    assert_close(model, result, feeds)


def test_a_scaled_tensor_keeps_its_other_readers_and_outputs() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,6,6] h, float[N,4,4,4] y, float[N,4,6,6] z) {
        half = Constant<value_float=0.5>() c = Conv(x, W) h = Mul(half, c) y = Conv(h, V) z = Exp(c) }"""
    model = model_of(text, W=drawn(4, 3, 3, 3) / 9, V=drawn(4, 4, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, _ = quantized(model, feeds)
    assert not any(node.op_type == "Mul" for node in result.proto.graph.node)
    assert_close(model, result, feeds, 0.05)


def styled(**style: Any) -> Target:
    return Target(name="other", provider="CPUExecutionProvider", style=QuantizationStyle(**style))


def test_weights_keep_to_seven_bits_where_the_target_asks() -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, W) }", W=drawn(64, 64))
    feeds = {"x": drawn(20, 64)}
    result, _ = quantized(model, feeds, context={"target": styled(reduce_range=True)})
    codes = next(numpy_helper.to_array(each) for each in result.proto.graph.initializer if each.name == "W_int8")
    assert np.abs(codes.astype(int)).max() == 64
    assert_close(model, result, feeds)


@pytest.mark.parametrize("activation", ["int8", "uint8"])
def test_symmetric_grids_have_their_zero_in_the_middle(activation: str) -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { y = Gemm(x, W, b) }", W=drawn(64, 64), b=drawn(64))
    feeds = {"x": drawn(20, 64)}
    target = styled(activation=activation, activation_symmetric=True, per_channel=False)
    result, outcome = quantized(model, feeds, context={"target": target})
    assert outcome.changed[0].details["scales"] == 1
    node = next(each for each in result.proto.graph.node if each.op_type == "QuantizeLinear")
    zero_point = next(numpy_helper.to_array(t) for t in result.proto.graph.initializer if t.name == node.input[2])
    assert (zero_point.dtype, int(zero_point)) == (np.dtype(activation), 0 if activation == "int8" else 128)
    assert_close(model, result, feeds, 0.05)


@pytest.mark.parametrize(
    ("nodes", "read"),
    [
        ("m = Transpose <perm = [0, 2, 1]> (t)", "m"),
        ("m = Transpose <perm = [0, 2, 1]> (t)  n = Identity(m)", "n"),
    ],
)
def test_a_subgraph_reads_what_a_form_node_makes_of_integers(nodes: str, read: str) -> None:
    """ONNX Runtime ends the process over DequantizeLinear -> Transpose -> (body), so a pair stands between."""
    model = model_of(
        f"""g (float[1,2,6] x, bool c) => (float[1,6,3] y) {{
            t = Conv(x, w)  {nodes}
            y = If (c) <
                then_branch = a () => (float[1,6,3] p) {{ p = Tanh({read}) }},
                else_branch = b () => (float[1,6,3] q) {{ q = Neg({read}) }}
            >
        }}""",
        w=drawn(3, 2, 1),
    )
    feeds = {"x": drawn(1, 2, 6), "c": np.array(True)}
    result, outcome = quantized(model, feeds)
    assert [each.what for each in outcome.changed] == ["Conv in uint8"]
    assert_close(model, result, feeds)


def test_hard_swish_runs_on_integers() -> None:
    model = model_of(
        "g (float[N,3,8,8] x) => (float[N,4,4,4] y) { c = Conv(x, W) h = HardSwish(c) y = Conv(h, V) }",
        W=drawn(4, 3, 3, 3), V=drawn(4, 4, 3, 3),
    )  # fmt: skip
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, outcome = quantized(model, feeds)
    assert outcome.changed[0].details["between"] == ["h"]
    found = kernels(result.to_bytes())
    assert (found["QLinearAdd"], found["QLinearMul"], found["QuantizeLinear"]) == (1, 1, 1)
    assert not {"HardSwish", "HardSigmoid", "Add", "Mul", "Clip"} & found.keys()
    assert_close(model, result, feeds)


def test_a_channel_gate_is_quantized_beside_the_map_that_it_multiplies() -> None:
    model = model_of(
        """g (float[N,3,9,9] x) => (float[N,8,5,5] y) {
            c = Conv(x, W) p = GlobalAveragePool(c) s = Conv(p, S) e = HardSigmoid<alpha=0.3, beta=0.4>(s)
            m = Mul(c, e) y = Conv(m, V) }""",
        W=drawn(8, 3, 3, 3), S=drawn(8, 8, 1, 1) / 4, V=drawn(8, 8, 3, 3),
    )  # fmt: skip
    feeds = {"x": drawn(2, 3, 9, 9)}
    result, _ = quantized(model, feeds)
    found = kernels(result.to_bytes())
    assert (found["QLinearMul"], found["QLinearAdd"], found["QuantizeLinear"]) == (1, 1, 1)
    assert_close(model, result, feeds, 0.05)


@pytest.mark.parametrize(("height", "joins"), [(6, True), (1, False)])
def test_an_operand_of_float_nodes_joins_only_where_it_is_small(height: int, joins: bool) -> None:
    model = model_of(
        """g (float[N,3,8,8] x, float[N,4,1,1] e) => (float[N,4,H,6] y) {
            c = Conv(x, W) p = MaxPool<kernel_shape=[K,1]>(c) t = Tanh(e) m = Mul(p, t) y = Conv(m, V) }""".replace(
            "K", str(7 - height)
        ),
        W=drawn(4, 3, 3, 3), V=drawn(4, 4, 1, 1),
    )  # fmt: skip
    feeds = {"x": drawn(2, 3, 8, 8), "e": drawn(2, 4, 1, 1)}
    result, _ = quantized(model, feeds)
    assert ("QLinearMul" in kernels(result.to_bytes())) is joins
    assert_close(model, result, feeds, 0.05)


def test_embeddings_are_looked_up_as_codes() -> None:
    table = drawn(1000, 32) * np.linspace(0.1, 3, 32, dtype=np.float32)
    model = model_of("g (int64[N,5] i) => (float[N,5,32] y) { [look] e = Gather(T, i) y = Neg(e) }", T=table)
    feeds = {"i": np.random.default_rng(0).integers(0, 1000, (4, 5))}
    result, outcome = quantized(model, feeds)
    assert [(each.name, each.what) for each in outcome.changed] == [("look", "looked up in int8")]
    assert result.size_bytes < model.size_bytes / 3.5
    rows = Session(result.to_bytes()).run(feeds)["y"]
    step = np.abs(table).max(axis=0) / 127
    assert (np.abs(rows + table[feeds["i"]]) <= step * 0.501).all()
    untouched, outcome = quantized(model, feeds, tables="no")
    assert not outcome.changed and untouched.size_bytes == model.size_bytes


def test_what_the_target_leaves_in_float_is_left_alone() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { [first] c = Conv(x, W) y = Relu(c) }"
    model = model_of(text, W=drawn(4, 3, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, outcome = quantized(model, feeds, activation="uint16")
    assert not outcome.changed and result.proto.SerializeToString() == model.proto.SerializeToString()
    assert [(each.name, "in float" in each.reason) for each in outcome.skipped] == [("first", True)]
    result, outcome = quantized(model, feeds, activation="uint16", all_nodes=True)
    assert len(outcome.changed) == 1 and result.opset == 21
    assert_close(model, result, feeds)


def test_relu_is_no_part_of_a_kernel_about_zero() -> None:
    """A symmetric grid does not cut off what is below zero, so ONNX Runtime finds no kernel for Conv -> Relu."""
    text = (
        """g (float[N,3,8,8] x) => (float[N,4,4,4] y) { [first] c = Conv(x, W) r = Relu(c) [second] y = Conv(r, V) }"""
    )
    model = model_of(text, W=drawn(4, 3, 3, 3), V=drawn(4, 4, 3, 3))
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, outcome = quantized(model, feeds, symmetric="yes")
    assert [each.name for each in outcome.changed] == ["second"]
    assert "in float" in outcome.skipped[0].reason
    assert kernels(result.to_bytes())["QLinearConv"] == 1
    assert_close(model, result, feeds)


def test_attention_runs_on_integers_where_products_are_asked_for() -> None:
    text = """g (float[N,6,16] x) => (float[N,6,16] y) {
        q = MatMul(x, Q) k = MatMul(x, K) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s)
        y = MatMul(p, x) }"""
    model = model_of(text, Q=drawn(16, 16), K=drawn(16, 16, seed=8) / 9)
    feeds = {"x": drawn(4, 6, 16)}
    result, _ = quantized(model, feeds, products="yes")
    found = kernels(result.to_bytes())
    assert "MatMul" not in found and found["Softmax"] == 1
    assert_close(model, result, feeds, 0.05)


def test_shapes_need_not_be_known() -> None:
    """Reshape to a computed shape: what is inferred ends there, and what is seen does not."""
    model = model_of(
        """g (float[A,B] x, int64[S] s) => (float[C,8] y) {
            r = Reshape(x, s) a = MatMul(r, W) k = Add(a, b) y = Relu(k) }""",
        W=drawn(8, 8), b=drawn(8),
    )  # fmt: skip
    feeds = {"x": drawn(4, 16), "s": np.array([8, 8])}
    result, outcome = quantized(model, feeds)
    assert len(outcome.changed) == 1 and "QGemm" in kernels(result.to_bytes())
    assert_close(model, result, feeds)


def test_weights_may_be_constant_nodes() -> None:
    values = ", ".join(str(each) for each in drawn(4 * 3 * 3 * 3))
    model = model_of(
        f"""g (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
            W = Constant<value = float[4,3,3,3] {{{values}}}>() b = Constant<value_floats = [0.1, 0.2, 0.3, 0.4]>()
            c = Conv(x, W, b) y = Relu(c) }}"""
    )
    feeds = {"x": drawn(2, 3, 8, 8)}
    result, outcome = quantized(model, feeds)
    assert len(outcome.changed) == 1 and kernels(result.to_bytes())["QLinearConv"] == 1
    assert_close(model, result, feeds)


def test_scales_per_channel_raise_opset_twelve() -> None:
    model = model_of("g (float[N,8] x) => (float[N,8] y) { y = Gemm(x, W, b) }", 12, W=drawn(8, 8), b=drawn(8))
    feeds = {"x": drawn(20, 8)}
    result, outcome = quantized(model, feeds)
    assert result.opset == 13 and outcome.changed[0].details["scales"] == 8
    assert_close(model, result, feeds)


def test_what_was_tried_once_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxcomp.passes.quantize_static as module

    looked: list[bytes] = []
    real = module.optimized
    monkeypatch.setattr(module, "optimized", lambda source, **options: (looked.append(source), real(source))[1])
    text = "g (float[N,8] x) => (float[N,8] y) { [first] a = MatMul(x, W) [second] y = MatMul(a, V) }"
    model = model_of(text, W=drawn(8, 8), V=drawn(8, 8, seed=8))
    data = calibration(model, {"x": drawn(20, 8)})
    for include in (None, frozenset({"first"}), None, frozenset({"first", "second"})):
        QuantizeStatic().apply(open_graph(model), Context(calibration=data, include=include))
    assert len(looked) == 2


@pytest.mark.parametrize(
    ("before", "outputs", "filled"),
    [("n = Neg(x)", 16, 1), ("n = Transpose<perm=[0,2,1,3]>(x)", 16, 0), ("n = Neg(x)", 10, 0)],
)
def test_a_first_convolution_of_three_channels_gets_a_fourth(before: str, outputs: int, filled: int) -> None:
    text = f"g (float[N,3,3,8] x) => (float[N,{outputs},1,6] y) {{ {before} y = Conv(n, W, b) }}"
    model = model_of(text, W=drawn(outputs, 3, 3, 3), b=drawn(outputs))
    feeds = {"x": drawn(4, 3, 3, 8) + 1}
    result, _ = quantized(model, feeds)
    found = kernels(result.to_bytes())
    assert found["QLinearConv"] == 1 and found.get("Pad", 0) == filled
    plain, _ = quantized(model, feeds, context={"target": styled(rescales=True)})
    codes = [Session(each.to_bytes()).run(feeds)["y"] for each in (result, plain)]
    np.testing.assert_array_equal(*codes)
