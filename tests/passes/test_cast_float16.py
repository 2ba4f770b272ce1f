"""cast-float16: short weights behind a Cast, and whole models that compute in a short type."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcomp.contract import Context
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.pipeline import optimize
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import calibration_of
from onnxcomp.testing.comparing import differences
from tests.passes.exactly import Rewrite, floats, model, rewrite


def converted(proto: onnx.ModelProto, *, data: dict[str, Any] | None = None, **fields: Any) -> Rewrite:
    """The model computing in float16; ``data`` serve as calibration data."""
    context = Context(calibration=None if data is None else calibration_of(proto, data))
    return rewrite(proto, "cast-float16", context=context, **{"scope": "all", **fields})


def outputs(done: Rewrite, feeds: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model gave before and gives after."""
    before, after = (dict(Session(each.to_bytes()).run(feeds)) for each in (done.before, done.after))
    return before, after


def assert_near(done: Rewrite, feeds: dict[str, Any], *, share: float = 5e-3) -> None:
    before, after = outputs(done, feeds)
    assert not differences(before, after, rtol=share)


def assert_near_by_reference(done: Rewrite, feeds: dict[str, Any], *, share: float = 5e-3) -> None:
    assert not differences(outputs(done, feeds)[0], by_reference(done, feeds), rtol=share)


def by_reference(done: Rewrite, feeds: dict[str, Any]) -> dict[str, Any]:
    """The new model's outputs by onnx's reference, which rounds every result: ONNX Runtime on CPU drops Casts."""
    evaluator = ReferenceEvaluator(done.after.proto)
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def with_weight(proto: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    for name, array in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def casts(done: Rewrite) -> list[tuple[str, int]]:
    """Source and target type of every Cast of the main graph."""
    return [(node.input[0], node.attribute[0].i) for node in done.graph.node if node.op_type == "Cast"]


def test_on_cpu_only_the_weights_change() -> None:
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }"), w=floats(40, 30))
    done = rewrite(proto, "cast-float16")
    assert done.ops == ["Cast", "MatMul"]
    assert done.initializer("w").dtype == np.float16
    np.testing.assert_array_equal(done.initializer("w"), floats(40, 30).astype(np.float16))
    assert done.after.size_bytes < 0.55 * done.before.size_bytes
    assert_near(done, {"x": floats(2, 40, seed=1)})


def test_weight_read_in_two_scopes_is_stored_once() -> None:
    text = """g (bool c, float[4,20] x) => (float[4,20] z) {
        y = MatMul(x, w)
        z = If(c) <then_branch = a () => (float[4,20] p) { p = MatMul(y, w) },
                   else_branch = b () => (float[4,20] q) { q = Identity(y) }>
    }"""
    done = rewrite(with_weight(model(text), w=floats(20, 20)), "cast-float16")
    assert done.counts["Cast"] == 1
    assert_near(done, {"c": np.array(True), "x": floats(4, 20, seed=1)})


def test_constant_node_is_read_by_the_cast_that_follows_it() -> None:
    weight = numpy_helper.from_array(floats(20, 20))
    proto = model("g (float[4,20] x) => (float[4,20] y) { z = Relu(x) y = MatMul(z, w) }")
    proto.graph.node.insert(1, helper.make_node("Constant", [], ["w"], value=weight))
    assert rewrite(proto, "cast-float16").ops == ["Cast", "Relu", "MatMul"]


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "float8e5m2"])
def test_float8_weights_are_scaled_into_range(dtype: str) -> None:
    weight = floats(40, 30) * np.float32(1e-4)
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }", opset=21, ir=10), w=weight)
    done = rewrite(proto, "cast-float16", dtype=dtype)
    assert done.ops == ["Cast", "Mul", "MatMul"]
    assert done.after.size_bytes < 0.35 * done.before.size_bytes
    stored = done.initializer("w").astype(np.float32) * done.initializer("w_scale")
    step = {"float8e4m3fn": 2.0**-4, "float8e5m2": 2.0**-3}[dtype]  # half a unit of the last place
    normal = np.abs(weight) > 2.0**-6 * done.initializer("w_scale")
    assert (np.abs(stored - weight)[normal] <= step * np.abs(weight)[normal]).all()
    assert_near(done, {"x": floats(2, 40, seed=1)}, share=0.2)


def test_float8_is_refused_where_it_would_have_to_compute() -> None:
    with pytest.raises(ParameterError, match="scope must be weights for float8e4m3fn"):
        get_pass("cast-float16")(dtype="float8e4m3fn", scope="all")


def test_weight_out_of_range_stays() -> None:
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }"), w=floats(40, 30) * 1e6)
    assert rewrite(proto, "cast-float16").skipped("w") == "it is too large for float16"


def test_weight_with_levels_is_left_to_compact_storage() -> None:
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }"), w=floats(40, 30))
    levelled = rewrite(proto, "quantize-weights").after
    outcome = get_pass("cast-float16")().apply(open_graph(levelled), Context())
    assert not outcome.changed and "fewer bytes" in outcome.skipped[0].reason


def test_inputs_and_outputs_stay_float32_between_two_casts() -> None:
    text = "g (float[N,40] x) => (float[N,30] y) { a = MatMul(x, w) b = Relu(a) y = Add(b, c) }"
    done = converted(with_weight(model(text), w=floats(40, 30), c=floats(30)))
    assert done.ops == ["Cast", "MatMul", "Relu", "Add", "Cast"]
    assert done.initializer("c").dtype == np.float16
    assert done.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert_near(done, {"x": floats(2, 40, seed=1)})


def test_output_that_is_read_inside_too_keeps_its_name() -> None:
    text = "g (float[N,40] x) => (float[N,40] y, float[N,40] z) { y = MatMul(x, w) z = MatMul(y, w) }"
    done = converted(with_weight(model(text), w=floats(40, 40)))
    assert [each.name for each in done.graph.output] == ["y", "z"]
    assert len(casts(done)) == 3
    assert_near(done, {"x": floats(2, 40, seed=1)})


def test_what_only_moves_values_is_not_cast_for_its_own_sake() -> None:
    done = converted(model("g (float[N,4] x) => (float[4,N] y) { a = Relu(x) y = Transpose <perm = [1, 0]> (a) }"))
    assert not done.outcome.changed
    assert "cost more than it gains" in done.outcome.skipped[0].reason


def test_node_between_two_that_keep_float32_keeps_it_too() -> None:
    """MatMul -> CumSum (no float16 at opset 13) -> Relu -> CumSum -> MatMul: two Casts around the middle, not four."""
    text = """g (float[4,20] x) => (float[4,20] y) {
        a = MatMul(x, w)  b = CumSum(a, axis)  c = Relu(b)  d = CumSum(c, axis)  y = MatMul(d, w)
    }"""
    done = converted(with_weight(model(text, opset=13), w=floats(20, 20) / 9, axis=np.array(1, np.int64)))
    assert done.ops == ["Cast", "MatMul", "Cast", "CumSum", "Relu", "CumSum", "Cast", "MatMul", "Cast"]
    assert done.skipped("b").startswith("CumSum takes no tensor(float16)")
    assert_near(done, {"x": floats(4, 20, seed=1)})


def test_resize_keeps_its_scales_in_float32() -> None:
    text = 'g (float[1,3,6,6] x) => (float[1,4,12,12] y) { a = Conv(x, w) y = Resize <mode = "linear"> (a, , s) }'
    proto = with_weight(model(text), w=floats(4, 3, 1, 1), s=np.array([1, 1, 2, 2], np.float32))
    done = converted(proto)
    assert done.ops == ["Cast", "Conv", "Resize", "Cast"]
    assert done.initializer("s").dtype == np.float32
    assert_near(done, {"x": floats(1, 3, 6, 6)})


def test_cast_to_float32_becomes_one_to_float16() -> None:
    text = "g (uint8[2,20] x) => (float[2,20] y) { a = Cast <to = 1> (x) y = MatMul(a, w) }"
    done = converted(with_weight(model(text), w=floats(20, 20)))
    assert [kind for _, kind in casts(done)] == [TensorProto.FLOAT16, TensorProto.FLOAT]


def test_whole_numbers_become_float32_first() -> None:
    """40,001 is no float16: half of it would be one too few."""
    text = "g (int64[1] x) => (float[1,20] y) { a = Cast <to = 1> (x) b = Mul(a, half) y = MatMul(b, w) }"
    proto = with_weight(model(text), w=np.ones((1, 20), np.float32), half=np.array(0.5, np.float32))
    done = converted(proto)
    assert "whole numbers have to be exact" in done.skipped("a")


def test_what_generates_values_generates_them_short() -> None:
    text = """g (float[2,20] x, int64[2] shape) => (float[2,20] y) {
        a = MatMul(x, w)  b = ConstantOfShape <value = float[1] {2.0}> (shape)  c = Add(a, b)  y = MatMul(c, w)
    }"""
    done = converted(with_weight(model(text), w=floats(20, 20)))
    assert done.node("ConstantOfShape").attribute[0].t.data_type == TensorProto.FLOAT16
    assert len(casts(done)) == 2
    assert_near(done, {"x": floats(2, 20, seed=1), "shape": np.array([2, 20], np.int64)})


def test_branches_and_states_agree_on_their_types() -> None:
    text = """g (bool c, int64 n, float[4,20] x) => (float[4,20] z, float[T,4,20] s) {
        y = If(c) <then_branch = a () => (float[4,20] p) { p = MatMul(x, w) },
                   else_branch = b () => (float[4,20] q) { q = CumSum(x, axis) }>
        z, s = Loop(n, c, y) <body = l (int64 i, bool d, float[4,20] u) => (bool e, float[4,20] v, float[4,20] o) {
            e = Identity(d)  t = MatMul(u, w)  v = Tanh(t)  o = Neg(v)
        }>
    }"""
    proto = with_weight(model(text, opset=13), w=floats(20, 20) / 4, axis=np.array(1, np.int64))
    done = converted(proto)
    assert {each.name for each in done.outcome.changed} >= {"y/then_branch/p", "z/body/t", "z/body/v"}
    for condition in (True, False):
        assert_near(done, {"c": np.array(condition), "n": np.array(2), "x": floats(4, 20, seed=1)}, share=2e-2)


def test_weight_that_float32_readers_share_stays_and_is_cast() -> None:
    text = "g (float[2,20] x) => (float[2,20] y, float[20,20] z) { y = MatMul(x, w) z = CumSum(w, axis) }"
    proto = with_weight(model(text, opset=13), w=floats(20, 20), axis=np.array(0, np.int64))
    done = converted(proto)
    assert done.initializer("w").dtype == np.float32
    assert ("w", TensorProto.FLOAT16) in casts(done)
    np.testing.assert_array_equal(*(each["z"] for each in outputs(done, {"x": floats(2, 20)})))


def test_encoded_weight_keeps_its_values_behind_a_cast() -> None:
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }"), w=floats(40, 30))
    levelled = rewrite(proto, "quantize-weights").after
    graph = open_graph(levelled)
    get_pass("cast-float16")(scope="all").apply(graph, Context())
    assert "w" in graph.encodings


def test_operators_of_onnx_runtime_are_asked_for() -> None:
    text = "g (float[2,20] x) => (float[2,20] y) { a = com.microsoft.FusedMatMul(x, w) y = com.microsoft.Gelu(a) }"
    done = converted(with_weight(model(text, more=', "com.microsoft" : 1'), w=floats(20, 20)))
    assert done.ops == ["Cast", "FusedMatMul", "Gelu", "Cast"]
    assert_near(done, {"x": floats(2, 20, seed=1)})


def test_quantized_patterns_and_local_functions_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2,20] x) => (float[2,20] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  a = MatMul(d, w)  y = local.f(a)
    }
    <domain: "local", opset_import: ["" : 17]> f (x) => (y) { y = Relu(x) }"""
    zero = np.array(0, np.uint8)
    proto = with_weight(onnx.parser.parse_model(text), w=floats(20, 20), s=np.array(0.1, np.float32), z=zero)
    done = converted(proto)
    assert not done.outcome.changed
    assert done.skipped("a") == "it belongs to a quantized pattern"
    assert "local function" in done.skipped("y")


def test_excluded_node_stays_between_casts() -> None:
    text = "g (float[2,20] x) => (float[2,20] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, w) }"
    proto = with_weight(model(text), w=floats(20, 20), v=floats(20, 20, seed=1))
    context = Context(exclude=("v",))
    done = rewrite(proto, "cast-float16", context=context, scope="all")
    assert done.ops == ["Cast", "MatMul", "Cast", "MatMul", "Cast", "MatMul", "Cast"]
    assert done.initializer("v").dtype == np.float32


MASKED = """g (float[2,8,8] q, float[2,8,8] k, int64[2,1,8] mask) => (float[2,8,8] y) {
    s = MatMul(q, k)  m = Cast <to = 1> (mask)  n = Sub(one, m)  big = Mul(n, least)  t = Add(s, big)
    p = Softmax <axis = -1> (t)  y = MatMul(p, k)
}"""


@pytest.mark.parametrize("sees_data", [True, False])
def test_mask_of_the_least_float32_gives_no_nan(sees_data: bool) -> None:
    least = np.array(np.finfo(np.float32).min)
    proto = with_weight(model(MASKED), one=np.array(1, np.float32), least=least)
    mask = np.zeros((2, 1, 8), np.int64)
    mask[0, 0, :3] = 1  # the second sample is masked as a whole
    feeds = {"q": floats(2, 8, 8), "k": floats(2, 8, 8, seed=1), "mask": mask}
    done = converted(proto, data=feeds if sees_data else None)
    assert {"s", "y"} <= {each.name for each in done.outcome.changed}
    assert not {"big", "t", "p"} & {each.name for each in done.outcome.changed}
    assert_near_by_reference(done, feeds)


def test_small_epsilon_keeps_the_normalization_in_float32() -> None:
    text = """g (float[2,20] x) => (float[2,20] y) {
        h = MatMul(x, w)  m = ReduceMean <axes = [1]> (h)  d = Sub(h, m)  s = Mul(d, d)  v = ReduceMean <axes = [1]> (s)
        e = Add(v, eps)  r = Sqrt(e)  n = Div(d, r)  y = MatMul(n, w)
    }"""
    proto = with_weight(model(text), w=floats(20, 20) * 1e-4, eps=np.array(1e-12, np.float32))
    done = converted(proto)
    changed = {each.name for each in done.outcome.changed}
    assert {"h", "y"} <= changed and not {"s", "v", "e", "r"} & changed
    assert "too small" in done.skipped("e")
    assert_near_by_reference(done, {"x": floats(2, 20, seed=1)}, share=2e-2)


def test_overflow_that_data_show_stays_in_float32() -> None:
    text = "g (float[2,20] x) => (float[2,20] y) { a = MatMul(x, w) b = Mul(a, a) c = Sqrt(b) y = MatMul(c, w) }"
    proto = with_weight(model(text), w=floats(20, 20))
    feeds = {"x": floats(2, 20, seed=1) * 1e3}
    seen, unseen = converted(proto, data=feeds), converted(proto)
    assert "reaches" in seen.skipped("b")
    assert_near_by_reference(seen, feeds)
    assert not np.isfinite(by_reference(unseen, feeds)["y"]).all()


def test_overflow_inside_a_branch_is_seen_too() -> None:
    text = """g (bool c, float[2,20] x) => (float[2,20] y) {
        y = If(c) <then_branch = t () => (float[2,20] d) {
            a = MatMul(x, w)  b = Mul(a, a)  e = Sqrt(b)  d = MatMul(e, w)
        },
                   else_branch = f () => (float[2,20] q) { q = MatMul(x, w) }>
    }"""
    proto = with_weight(model(text), w=floats(20, 20))
    feeds = {"c": np.array(True), "x": floats(2, 20, seed=1) * 1e3}
    done = converted(proto, data=feeds)
    assert "reaches" in done.skipped("y/then_branch/b")
    assert_near_by_reference(done, feeds)


def test_sum_behind_an_average_counts() -> None:
    text = "g (float[1,4,64,64] x) => (float[1,4,1,1] y) { a = Conv(x, w) b = GlobalAveragePool(a) y = Conv(b, w) }"
    proto = with_weight(model(text), w=floats(4, 4, 1, 1))
    done = converted(proto, data={"x": floats(1, 4, 64, 64) + 30})
    assert "sums up" in done.skipped("b")


def test_bfloat16_raises_the_opset_only_when_something_comes_of_it() -> None:
    weight = floats(20, 20)
    old = with_weight(model("g (float[2,20] x) => (float[2,20] y) { y = MatMul(x, w) }", opset=11), w=weight)
    assert rewrite(old, "cast-float16", dtype="bfloat16").after.opset == 13
    assert rewrite(old, "cast-float16", dtype="bfloat16", context=Context(exclude=("w",))).after.opset == 11
    bound = rewrite(old, "cast-float16", dtype="bfloat16", context=Context(max_opset=12))
    assert "12 is the highest allowed" in bound.outcome.skipped[0].reason


def test_ends_change_as_asked() -> None:
    text = """g (float[N,40] x, float[N,30] b) => (float[N,30] y, float[N,30] z) {
        a = MatMul(x, w)  y = Add(a, b)  z = Neg(y)
    }"""
    done = converted(with_weight(model(text), w=floats(40, 30)), convert="x, y")
    types = {each.name: each.type.tensor_type.elem_type for each in (*done.graph.input, *done.graph.output)}
    assert types == {"x": TensorProto.FLOAT16, "b": TensorProto.FLOAT, "y": TensorProto.FLOAT16, "z": TensorProto.FLOAT}
    feeds = {"x": floats(2, 40, seed=1), "b": floats(2, 30, seed=2)}
    before, after = outputs(done, feeds)
    assert after["y"].dtype == np.float16
    assert not differences(before, {name: each.astype(np.float32) for name, each in after.items()}, rtol=5e-3)


def test_the_pipeline_verifies_ends_that_were_asked_for(tmp_path: Path) -> None:
    proto = with_weight(model("g (float[N,40] x) => (float[N,30] y) { y = MatMul(x, w) }"), w=floats(40, 30))
    np.savez(tmp_path / "x.npz", x=floats(64, 40, seed=1))
    for convert, kind in (("*", TensorProto.FLOAT16), ("", TensorProto.FLOAT)):
        recipe = Recipe.of(get_pass("cast-float16")(scope="all", convert=convert))
        result = optimize(proto, recipe=recipe, calibration=tmp_path / "x.npz", measure=False)
        assert result.model.proto.graph.output[0].type.tensor_type.elem_type == kind
        assert result.model.size_bytes < 0.6 * proto.ByteSize()


def test_initializers_that_are_inputs_change_with_them() -> None:
    """Before IR version 4 every initializer is declared as an input too."""
    proto = model("g (float[2,20] x, float[20,20] w) => (float[2,20] y) { y = MatMul(x, w) }", opset=8, ir=3)
    done = converted(with_weight(proto, w=floats(20, 20)))
    assert [each.type.tensor_type.elem_type for each in done.graph.input if each.name == "w"] in ([10], [])
    assert_near(done, {"x": floats(2, 20, seed=1)})
