"""quantize-dynamic: its numbers against integer arithmetic by hand, and the kernels that ONNX Runtime makes of it."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import QuantizationStyle, Target
from tests.graphs.running import kernels

Array = NDArray[Any]
QuantizeDynamic = get_pass("quantize-dynamic")


def drawn(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(text: str, opset: int = 17, functions: str = "", **constants: Array) -> Model:
    """``text`` is the graph, ``constants`` are its initializers."""
    domains = ', "f" : 1' if functions else ""
    imports = f'opset_import: ["" : {opset}, "com.microsoft" : 1{domains}]'
    proto = parser.parse_model(f"<ir_version: 8, {imports}>\n{text}\n{functions}")
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def quantized(model: Model, context: dict[str, Any] | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = QuantizeDynamic(**{"min_elements": 1, **fields}).apply(graph, Context(**(context or {})))
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def outputs(model: Model, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(each) for each in dict(Session(model.to_bytes()).run(feeds)).values()]


def assert_close(model: Model, result: Model, feeds: dict[str, Array], share: float = 0.02) -> None:
    """8 bits keep a layer within two hundredths of its outputs' range."""
    for before, after in zip(outputs(model, feeds), outputs(result, feeds), strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        assert np.abs(after - before).max() <= share * np.abs(before).max()


def by_hand(x: Array, w: Array, limit: int = 127) -> Array:
    """x @ w in integers, in float64, w with one scale a column."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    columns = np.abs(w).max(axis=0) / limit
    rounded = np.rint(w / columns)
    return ((codes - zero) @ rounded) * scale * columns


def test_a_product_is_the_integer_product_by_hand() -> None:
    x, w = drawn(5, 24), drawn(24, 6, seed=8)
    model = model_of("g (float[N,24] x) => (float[N,6] y) { y = MatMul(x, W) }", W=w)
    result, outcome = quantized(model)
    (got,) = outputs(result, {"x": x})
    np.testing.assert_allclose(got, by_hand(x.astype(np.float64), w.astype(np.float64)), rtol=1e-4, atol=1e-4)
    assert outcome.changed[0].details["weight"] == ["W"]


def test_the_error_named_is_that_of_the_weight() -> None:
    w = drawn(24, 6)
    _, outcome = quantized(model_of("g (float[N,24] x) => (float[N,6] y) { y = MatMul(x, W) }", W=w))
    scales = np.abs(w).max(axis=0) / np.float32(127)
    rest = np.rint(w / scales) * scales - w
    expected = float(np.sum(rest.astype(np.float64) ** 2) / np.sum(w.astype(np.float64) ** 2))
    assert outcome.changed[0].details["error"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, W)",
        "y = Gemm(x, W, b)",
        "y = Gemm<alpha=0.5, beta=2.0>(x, W, b)",
        "y = Gemm<alpha=-1.5>(x, W, b)",
        "y = Gemm<transB=1>(x, W, b)",
        "t = Transpose(x) y = Gemm<transA=1>(t, W, b)",
        "t = Transpose(x) y = Gemm<transA=1, transB=1, alpha=2.0, beta=0.25>(t, W, c)",
        "y = Gemm<beta=3.0>(x, W, c)",
        "y = Gemm(x, W, s)",
        "y = Gemm<beta=0.5>(x, W, r)",
        "y = Gemm<beta=0.5>(x, W, x)",
        "t = Transpose(W) i = Identity(t) y = MatMul(x, i)",
        "h = MatMul(x, W) y = Add(h, b)",
        "h = MatMul(x, W) y = MatMul(h, W)",
    ],
)
def test_every_form_of_a_product_keeps_its_meaning(body: str) -> None:
    constants = {
        "W": drawn(16, 16), "b": drawn(16), "c": drawn(1, 16), "s": drawn(1), "r": drawn(16, 1),
    }  # fmt: skip
    used = {name: each for name, each in constants.items() if f"{name})" in body or f"{name}," in body}
    model = model_of(f"g (float[16,16] x) => (float[16,16] y) {{ {body} }}", **used)
    result, outcome = quantized(model)
    assert outcome.changed and not outcome.skipped
    assert not {"MatMul", "Gemm"} & {node.op_type for node in result.proto.graph.node}
    assert_close(model, result, {"x": drawn(16, 16, seed=9)}, share=0.03)


@pytest.mark.parametrize("shape", ["16", "N,16", "2,N,16", "N,3,M,16"])
def test_inputs_of_any_rank_become_one_kernel(shape: str) -> None:
    out = ",".join([*shape.split(",")[:-1], "8"])
    model = model_of(
        f"g (float[{shape}] x) => (float[{out}] y) {{ h = MatMul(x, W) y = Add(h, b) }}", W=drawn(16, 8), b=drawn(8)
    )
    result, _ = quantized(model)
    assert kernels(result.to_bytes()) == {"DynamicQuantizeMatMul": 1}
    dims = [3 if each in "NM" else int(each) for each in shape.split(",")]
    assert_close(model, result, {"x": drawn(*dims, seed=9)})


@pytest.mark.parametrize("shape", ["16,C", "N,16,5", "N,M,16,5"])
def test_a_weight_on_the_left_is_turned(shape: str) -> None:
    out = shape.replace("16", "8")
    model = model_of(f"g (float[{shape}] x) => (float[{out}] y) {{ y = MatMul(W, x) }}", W=drawn(8, 16))
    result, _ = quantized(model)
    assert kernels(result.to_bytes()) == {"Transpose": 2, "DynamicQuantizeMatMul": 1}
    dims = [3 if each in "NMC" else int(each) for each in shape.split(",")]
    assert_close(model, result, {"x": drawn(*dims, seed=9)})


def test_a_batch_of_matrices_has_one_scale_a_column() -> None:
    model = model_of("g (float[N,3,M,16] x) => (float[N,3,M,8] y) { y = MatMul(x, W) }", W=drawn(3, 16, 8))
    result, _ = quantized(model)
    assert [list(each.dims) for each in result.proto.graph.initializer if each.name.startswith("scales")] == [[8]]
    assert_close(model, result, {"x": drawn(2, 3, 4, 16, seed=9)})


def test_what_several_nodes_read_is_quantized_once() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, V) b = Gemm(x, W) y = Add(a, b) }"
    model = model_of(text, V=drawn(16, 16), W=drawn(16, 16, seed=8))
    result, _ = quantized(model)
    assert kernels(result.to_bytes()) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}
    assert_close(model, result, {"x": drawn(4, 16, seed=9)})


def test_a_shared_weight_is_stored_once() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, W) y = Gemm<alpha=0.5>(a, W) }"
    result, _ = quantized(model_of(text, W=drawn(16, 16)))
    codes = [each.name for each in result.proto.graph.initializer if list(each.dims) == [16, 16]]
    assert codes == ["W_int8"]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_becomes_the_kernel_of_the_runtime(direction: str) -> None:
    many = 2 if direction == "bidirectional" else 1
    model = model_of(
        f"""g (float[T,N,12] x, int32[N] lengths) => (float[T,D,N,8] y, float[D,N,8] h, float[D,N,8] c) {{
            y, h, c = LSTM<hidden_size=8, direction="{direction}">(x, W, R, B, lengths, h0, c0, P) }}""",
        W=drawn(many, 32, 12) / 4, R=drawn(many, 32, 8) / 4, B=drawn(many, 64), P=drawn(many, 24),
        h0=drawn(many, 3, 8), c0=drawn(many, 3, 8),
    )  # fmt: skip
    result, outcome = quantized(model)
    assert outcome.changed[0].details["weight"] == ["W", "R"]
    assert kernels(result.to_bytes()) == {"DynamicQuantizeLSTM": 1}
    assert_close(model, result, {"x": drawn(5, 3, 12), "lengths": np.array([5, 2, 4], np.int32)}, share=0.04)
    assert result.size_bytes < model.size_bytes


def test_an_attention_becomes_the_kernel_of_the_runtime() -> None:
    text = """g (float[N,T,16] x, int32[N] mask) => (float[N,T,16] y) {
        y = com.microsoft.Attention<num_heads=2>(x, W, b, mask) }"""
    model = model_of(text, W=drawn(16, 48) / 4, b=drawn(48) / 4)
    result, outcome = quantized(model)
    assert [each.what.split()[0] for each in outcome.changed] == ["Attention"]
    assert kernels(result.to_bytes())["QAttention"] == 1
    assert_close(model, result, {"x": drawn(2, 5, 16, seed=9), "mask": np.array([5, 3], np.int32)}, share=0.04)


@pytest.mark.parametrize("attributes", ["", "group=2", 'auto_pad="SAME_UPPER"', "pads=[1,1,1,1], strides=[2,2]"])
def test_a_convolution_is_rewritten_on_request(attributes: str) -> None:
    group = 2 if "group" in attributes else 1
    text = f"g (float[N,4,9,9] x) => (float[N,6,P,Q] y) {{ y = Conv<{attributes or 'group=1'}>(x, W, b) }}"
    model = model_of(text, W=drawn(6, 4 // group, 3, 3), b=drawn(6))
    _, outcome = quantized(model)
    assert not outcome.changed and "convolutions" in outcome.skipped[0].reason
    result, _ = quantized(model, convolutions=True)
    assert "ConvInteger" in {node.op_type for node in result.proto.graph.node}
    assert_close(model, result, {"x": drawn(2, 4, 9, 9, seed=9)})


def test_subgraphs_read_weights_of_the_graph_around_them() -> None:
    model = model_of(
        """g (bool c, float[N,16] x) => (float[N,16] y) { h = MatMul(x, W) y = If(c) <
            then_branch = t () => (float[N,16] a) { [inner] a = MatMul(h, W) },
            else_branch = e () => (float[N,16] b) { b = Relu(h) }> }""",
        W=drawn(16, 16),
    )
    result, outcome = quantized(model)
    assert len(outcome.changed) == 2 and outcome.changed[1].name.endswith("inner")
    for condition in True, False:
        assert_close(model, result, {"x": drawn(4, 16, seed=9), "c": np.array(condition)}, share=0.03)


def test_functions_import_the_domain_of_the_kernels() -> None:
    values = ", ".join(f"{each:.4f}" for each in drawn(32 * 8).reshape(-1))
    function = f"""<domain: "f", opset_import: ["" : 17]> recur (x) => (y) {{
        W = Constant<value=float[1,32,8] {{ {values} }}>() y = LSTM<hidden_size=8>(x, W, W) }}"""
    model = model_of("g (float[T,N,8] x) => (float[T,1,N,8] y) { y = f.recur(x) }", functions=function)
    result, outcome = quantized(model)
    assert len(outcome.changed) == 1
    assert {each.domain for each in result.proto.functions[0].opset_import} == {"", "com.microsoft"}
    assert_close(model, result, {"x": drawn(3, 2, 8, seed=9)}, share=0.04)


def test_older_opsets_are_raised_and_limits_kept() -> None:
    model = model_of("g (float[N,16] x) => (float[N,8] y) { y = Gemm(x, W, b) }", 9, W=drawn(16, 8), b=drawn(8))
    result, _ = quantized(model)
    assert result.opset == 11
    assert_close(model, result, {"x": drawn(4, 16, seed=9)})
    same, outcome = quantized(model, context={"max_opset": 10})
    assert not outcome.changed and "opset 11" in outcome.skipped[0].reason
    assert same.proto.SerializeToString() == model.proto.SerializeToString()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("t = Relu(x) y = MatMul(x, t)", "none of its operands is a constant"),
        ("y = Gemm(W, x)", "left operand"),
        (
            "i = Constant<value_int=3>() v = Gather(x, i) w = MatMul(W, v) "
            "a = Constant<value_ints=[0]>() y = Unsqueeze(w, a)",
            "not known to be two or more",
        ),
        ("y = MatMul(x, E)", "not finite"),
        ("h = Cast<to=10>(x) w = MatMul(h, H) y = Cast<to=1>(w)", "float16"),
        ("y = MatMul(x, O)", "fewer than"),
    ],
)
def test_says_why_it_leaves_a_node(body: str, reason: str) -> None:
    constants = {
        "W": drawn(16, 16), "E": np.full((16, 16), np.inf, np.float32), "H": drawn(16, 16).astype(np.float16),
        "O": np.zeros((16, 0), np.float32),
    }  # fmt: skip
    used = {name: each for name, each in constants.items() if f"{name})" in body or f"{name}," in body}
    _, outcome = quantized(model_of(f"g (float[16,16] x) => (float[A,B] y) {{ {body} }}", **used))
    assert not outcome.changed
    assert [reason in each.reason for each in outcome.skipped] == [True]


def test_recurrent_nodes_without_a_kernel_stay_in_float() -> None:
    text = "g (float[T,N,8] x) => (float[T,1,N,4] y) { y = GRU<hidden_size=4>(x, W, R) }"
    _, outcome = quantized(model_of(text, W=drawn(1, 12, 8), R=drawn(1, 12, 4)))
    assert not outcome.changed and "GRU" in outcome.skipped[0].reason


def test_small_weights_stay_in_float_by_default() -> None:
    model = model_of("g (float[N,16] x) => (float[N,8] y) { y = MatMul(x, W) }", W=drawn(16, 8))
    graph = open_graph(model)
    outcome = QuantizeDynamic().apply(graph, Context())
    assert not outcome.changed and "fewer than" in outcome.skipped[0].reason


def test_a_weight_on_a_grid_a_channel_keeps_its_values() -> None:
    model = model_of("g (float[N,32] x) => (float[N,8] y) { y = MatMul(x, W) }", W=drawn(32, 8))
    graph = open_graph(model)
    get_pass("quantize-weights")(bits=5).apply(graph, Context())
    rounded = close_graph(graph)
    values = numpy_helper.to_array(rounded.proto.graph.initializer[0])
    result, outcome = quantized(rounded)
    assert outcome.changed[0].details["error"] == 0
    held = {each.name: numpy_helper.to_array(each) for each in result.proto.graph.initializer}
    np.testing.assert_array_equal(held["W_int8"].astype(np.float32) * held["scales"], values)


def test_a_weight_on_blocks_is_left_alone() -> None:
    model = model_of("g (float[N,32] x) => (float[N,8] y) { y = MatMul(x, W) }", W=drawn(32, 8))
    graph = open_graph(model)
    get_pass("quantize-weights")(bits=4, granularity="block", block_size=16).apply(graph, Context())
    _, outcome = quantized(close_graph(graph))
    assert not outcome.changed and "grid" in outcome.skipped[0].reason


def test_an_lstm_counts_both_its_weights_and_needs_the_cpu() -> None:
    text = "g (float[T,N,4] x) => (float[T,1,N,64] y) { y = LSTM<hidden_size=64>(x, W, R) }"
    model = model_of(text, W=drawn(1, 256, 4) / 4, R=drawn(1, 256, 64) / 4)
    assert quantized(model, min_elements=16384)[1].changed
    _, outcome = quantized(model, context=styled())
    assert not outcome.changed and "CPU" in outcome.skipped[0].reason


def styled(**style: Any) -> dict[str, Any]:
    target = Target(name="other", provider="CPUExecutionProvider", style=QuantizationStyle(**style))
    return {"target": target}


def test_weights_keep_to_seven_bits_where_the_target_asks() -> None:
    x, w = drawn(5, 24), drawn(24, 6, seed=8)
    model = model_of("g (float[N,24] x) => (float[N,6] y) { y = MatMul(x, W) }", W=w)
    result, _ = quantized(model, context=styled(reduce_range=True))
    codes = next(numpy_helper.to_array(each) for each in result.proto.graph.initializer if each.name == "W_int8")
    assert np.abs(codes.astype(int)).max() == 64
    (got,) = outputs(result, {"x": x})
    np.testing.assert_allclose(got, by_hand(x.astype(np.float64), w.astype(np.float64), 64), rtol=1e-4, atol=1e-4)


def test_unsigned_weights_have_their_zero_in_the_middle() -> None:
    x, w = drawn(5, 24), drawn(24, 6, seed=8)
    model = model_of("g (float[N,24] x) => (float[N,6] y) { y = MatMul(x, W) }", W=w)
    result, _ = quantized(model, context=styled(weight="uint8"))
    assert kernels(result.to_bytes()) == {"DynamicQuantizeMatMul": 1}
    (got,) = outputs(result, {"x": x})
    np.testing.assert_allclose(got, by_hand(x.astype(np.float64), w.astype(np.float64)), rtol=1e-4, atol=1e-4)


def test_leaves_excluded_nodes_and_weights() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { [first] a = MatMul(x, W) [second] y = MatMul(a, V) }"
    model = model_of(text, W=drawn(16, 16), V=drawn(16, 16, seed=8))
    for context in {"exclude": ("first",)}, {"exclude": ("W",)}, {"include": frozenset({"second"})}:
        _, outcome = quantized(model, context=context)
        assert [each.name for each in outcome.changed] == ["second"]


def test_nothing_is_changed_where_nothing_can_be() -> None:
    model = model_of("g (float[N,16] x) => (float[N,16] y) { y = Relu(x) }", 9)
    result, outcome = quantized(model)
    assert not outcome.changed and result.proto.SerializeToString() == model.proto.SerializeToString()
