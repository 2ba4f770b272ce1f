"""lift-constants: every form of Constant node becomes an initializer, where there can be one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.contract import Context
from tests.passes.exactly import check_same, floats, model, rewrite


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("value = float[3] {1, 2, 3}", [1.0, 2.0, 3.0]),
        ("value_float = 2.5", 2.5),
        ("value_floats = [1.0, 2.0, 3.0]", [1.0, 2.0, 3.0]),
    ],
)
def test_lifts_every_dense_form(attribute: str, values: object) -> None:
    body = f"g (float[2, 3] x) => (float[2, 3] y) {{ w = Constant <{attribute}> () y = Add(x, w) }}"
    done = rewrite(model(body), "lift-constants")
    assert done.counts == {"Add": 1} and done.initializer("w").tolist() == values
    assert done.after.size_bytes < done.before.size_bytes
    check_same(done, {"x": floats(2, 3)})


def test_lifts_whole_numbers() -> None:
    body = """g (float[2, 3] x) => (float[6] y) {
        i = Constant <value_int = 6> () a = Constant <value_ints = [0]> () s = Unsqueeze(i, a) y = Reshape(x, s) }"""
    done = rewrite(model(body), "lift-constants")
    assert done.counts == {"Unsqueeze": 1, "Reshape": 1} and done.initializer("i").dtype == np.int64
    check_same(done, {"x": floats(2, 3)})


def test_lifts_strings() -> None:
    body = """g (string[2] x) => (bool[2] y, bool[2] z) { w = Constant <value_string = "a"> ()
        v = Constant <value_strings = ["a", "b"]> () y = Equal(x, w) z = Equal(x, v) }"""
    done = rewrite(model(body, opset=19, ir=9), "lift-constants")
    assert done.counts == {"Equal": 2}
    check_same(done, {"x": np.array(["b", "b"], object)})


def test_lifts_sparse_tensors() -> None:
    proto = model("g (float[4] x) => (float[4] y) { w = Neg(x) y = Add(x, w) }")
    values = helper.make_tensor("", TensorProto.FLOAT, [2], [5.0, 6.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [2], [1, 3]), [4])
    proto.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    done = rewrite(proto, "lift-constants")
    assert done.counts == {"Add": 1} and len(done.graph.sparse_initializer) == 1
    check_same(done, {"x": floats(4)})


def test_lifts_in_subgraphs_but_not_their_outputs() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) { y = If (c) <
        then_branch = t () => (float[3] a) { w = Constant <value = float[3] {1, 2, 3}> () a = Add(x, w) },
        else_branch = e () => (float[3] b) { b = Constant <value = float[3] {1, 2, 3}> () }> }"""
    done = rewrite(model(body), "lift-constants")
    assert done.counts == {"If": 1, "Add": 1, "Constant": 1}
    assert "graph output" in done.skipped("y/else_branch/b")
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(3)})


def test_leaves_the_constants_of_functions() -> None:
    body = """g (float[3] x) => (float[3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (a) => (b)
        { w = Constant <value = float[3] {1, 2, 3}> () b = Add(a, w) }"""
    done = rewrite(model(body, more=', "local" : 1'), "lift-constants")
    assert not done.outcome.changed and done.counts["Constant"] == 1


def test_lifts_in_models_from_before_ir_4() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y) { w = Constant <value = float[3] {1, 2, 3}> () y = Add(x, w) }"
    done = rewrite(model(body, opset=8, ir=3), "lift-constants")
    assert [each.name for each in done.graph.input] == ["x"]
    onnx.checker.check_model(done.after.proto)
    check_same(done, {"x": floats(2, 3)})


def test_leaves_excluded_constants() -> None:
    body = "g (float[2, 3] x) => (float[2, 3] y) { w = Constant <value_float = 2.5> () y = Add(x, w) }"
    assert not rewrite(model(body), "lift-constants", context=Context(exclude=("w",))).outcome.changed


def test_raises_the_ir_version_for_a_subgraph_alone() -> None:
    body = """g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { s = ReduceMax(x)
        c = Cast <to = 9> (s) h = Add(x, w) y = If (c) <
        then_branch = t () => (float[3] a) { v = Constant <value = float[3] {1, 2, 3}> () a = Add(h, v) },
        else_branch = e () => (float[3] b) { b = Neg(h) }> }"""
    body = body.replace("ReduceMax(x)", "ReduceMax <keepdims = 0> (x)")
    done = rewrite(model(body, opset=9, ir=3), "lift-constants")
    assert done.after.proto.ir_version == 4
    check_same(done, {"x": np.zeros(3, np.float32)})
    check_same(done, {"x": np.ones(3, np.float32)})
