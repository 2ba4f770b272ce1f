"""quantize-static: what ONNX Runtime makes of the result, and its numbers against integer arithmetic by hand."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.contract import Context
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.graphs.running import kernels
from tests.passes.statically import QuantizeStatic, assert_close, drawn, model_of, quantized, styled


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


def test_products_of_activations_are_quantized_on_request() -> None:
    model = model_of("g (float[N,8] x, float[8,N] z) => (float[N,N] y) { y = MatMul(x, z) }")
    feeds = {"x": drawn(20, 8), "z": drawn(8, 20)}
    result, _ = quantized(model, feeds, products="yes")
    assert "MatMulIntegerToFloat" in kernels(result.to_bytes())
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
