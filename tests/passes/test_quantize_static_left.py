"""quantize-static in subgraphs, and what it leaves in float, with the reason."""

import numpy as np
import pytest
from onnx import parser

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from tests.graphs.running import kernels
from tests.passes.statically import QuantizeStatic, assert_close, calibration, drawn, model_of, quantized


def test_nodes_read_by_float_nodes_alone_are_left_in_float() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,4,4] y) { c = Conv(x, W) p = MaxPool<kernel_shape=[3,3]>(c) y = Exp(p) }"
    _, outcome = quantized(model_of(text, W=drawn(4, 3, 3, 3)), {"x": drawn(2, 3, 8, 8)})
    assert [each.details.get("weight") for each in outcome.changed] == ["W"]


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


def test_a_transposed_convolution_stays_in_float_on_cpu_unless_asked_for() -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,7,7] y) { y = ConvTranspose<group=2>(x, W, b) }"
    model = model_of(text, W=drawn(4, 3, 3, 3), b=drawn(6))
    feeds = {"x": drawn(2, 4, 5, 5)}
    _, outcome = quantized(model, feeds)
    assert not outcome.changed and "ConvTranspose" in outcome.skipped[0].reason
    result, _ = quantized(model, feeds, all_nodes=True)
    assert_close(model, result, feeds)


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
