"""raise-float16: what is between float16 inputs and outputs computes in float32, weights stay float16 in the file."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.target import QuantizationStyle, Target
from onnxcomp.testing.applying import calibration_of
from tests.graphs.running import run
from tests.passes.exactly import check_same, model, rewrite

# ONNX text states the bits of float16 numbers: 16384 is 2.0, 15360 is 1.0, 23104 is 200.0.
TWO_CONVS = """g (float16[1,1,2,2] x) => (float16[1,1,2,2] y)
    <float16[1,1,1,1] w = {16384}, float16[1] b = {15360}> {
    c = Conv(x, w, b)
    r = Relu(c)
    y = Conv(r, w)
}"""
FEEDS = {"x": np.array([[[[1, -2], [0.5, 0]]]], np.float16)}


def test_computes_in_float32_between_casts() -> None:
    done = rewrite(model(TWO_CONVS), "raise-float16")
    assert done.ops.count("Conv") == 2 and done.ops.count("Cast") == 4
    for side in (done.graph.input, done.graph.output):
        assert side[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    (out,) = run(done.after.to_bytes(), FEEDS).values()
    np.testing.assert_array_equal(out, np.array([[[[6, 0], [4, 2]]]], np.float16))


def test_weights_stay_float16_in_the_file() -> None:
    done = rewrite(model(TWO_CONVS), "raise-float16")
    assert {each.data_type for each in done.graph.initializer} == {TensorProto.FLOAT16}


def test_what_float16_drives_to_infinity_inside_is_finite() -> None:
    text = """g (float16[2] x) => (float16[2] y) <float16 k = {23104}> {
        a = Mul(x, k)
        b = Mul(a, k)
        c = Div(b, k)
        y = Div(c, k)
    }"""
    done = rewrite(model(text), "raise-float16")
    (out,) = run(done.after.to_bytes(), {"x": np.array([30, -40], np.float16)}).values()
    np.testing.assert_array_equal(out, np.array([30, -40], np.float16))


def test_stays_where_the_target_computes_in_float16() -> None:
    target = Target(name="cuda", provider="CPUExecutionProvider", style=QuantizationStyle())
    done = rewrite(model(TWO_CONVS), "raise-float16", context=Context(target=target))
    assert not done.outcome.changed and "computes in float16" in done.outcome.skipped[0].reason


def test_leaves_a_float32_model_alone() -> None:
    done = rewrite(model(TWO_CONVS.replace("float16", "float")), "raise-float16")
    assert not done.outcome.changed and not done.outcome.skipped


def test_an_excluded_node_keeps_computing_in_float16() -> None:
    proto = model(TWO_CONVS)
    proto.graph.node[1].name = "rectify"
    done = rewrite(proto, "raise-float16", context=Context(exclude=("rectify",)))
    assert "rectify" not in {each.name for each in done.outcome.changed}
    inferred = onnx.shape_inference.infer_shapes(done.after.proto).graph.value_info
    kinds = {each.name: each.type.tensor_type.elem_type for each in inferred}
    assert kinds[done.node("Relu").output[0]] == TensorProto.FLOAT16
    check_same(done, FEEDS)


def test_constants_that_state_a_type_state_float32() -> None:
    text = """g (float16[2] x, int64[1] n) => (float16[m] y) {
        zeros = ConstantOfShape<value = float16[1] {15360}>(n)
        y = Add(x, zeros)
    }"""
    done = rewrite(model(text), "raise-float16")
    (out,) = run(done.after.to_bytes(), {"x": np.array([1, 2], np.float16), "n": np.array([2])}).values()
    np.testing.assert_array_equal(out, np.array([2, 3], np.float16))


def test_a_branch_computes_in_float32_too() -> None:
    text = """g (bool c, float16[2] x) => (float16[2] y) {
        d = Add(x, x)
        y = If (c) <
            then_branch = a () => (float16[2] t) { t = Mul(d, d) },
            else_branch = b () => (float16[2] e) { e = Neg(d) }
        >
    }"""
    done = rewrite(model(text), "raise-float16")
    feeds = {"c": np.array(True), "x": np.array([1, 2], np.float16)}
    (out,) = run(done.after.to_bytes(), feeds).values()
    np.testing.assert_array_equal(out, np.array([4, 16], np.float16))
    assert done.counts["Cast"] == 2


def convolutions() -> onnx.ModelProto:
    """Three convolutions in float16."""
    rng = np.random.default_rng(0)
    held, nodes, x = [], [], "x"
    for i, (inputs, outputs) in enumerate([(3, 16), (16, 16), (16, 8)]):
        values = rng.standard_normal((outputs, inputs, 3, 3)) * (2 / inputs / 9) ** 0.5
        held.append(numpy_helper.from_array(values.astype(np.float16), f"w{i}"))
        held.append(numpy_helper.from_array(np.zeros(outputs, np.float16), f"b{i}"))
        result = "y" if i == 2 else f"c{i}"
        nodes.append(helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [result], f"conv{i}", pads=[1] * 4))
        x = result
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 8, 16, 16])], held,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_quantize_static_serves_what_was_raised_and_the_rest_stays_float16() -> None:
    proto = convolutions()
    x = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float16)
    raised, _ = apply_pass(load(proto), get_pass("raise-float16")(), Context())
    data = calibration_of(proto, {"x": x})
    context = Context(calibration=data, target=Target.of("cpu"), exclude=("conv1",), reference=Reference(raised))
    done, outcome = apply_pass(raised, get_pass("quantize-static")(), context)
    assert {"conv0", "conv2"} <= {each.name for each in outcome.changed}
    kinds = {each.name: each.data_type for each in done.proto.graph.initializer}
    assert kinds["w1"] == TensorProto.FLOAT16
    assert TensorProto.FLOAT not in {kinds[name] for name in kinds if name.startswith("w") and "scale" not in name}
    (expected,), (got,) = (run(each.to_bytes(), {"x": x}).values() for each in (load(proto), done))
    assert got.dtype == np.float16
    assert np.mean((got.astype(float) - expected) ** 2) < 1e-2 * np.var(expected.astype(float))
