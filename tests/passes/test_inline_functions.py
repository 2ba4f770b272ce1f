"""inline-functions: calls written out, held to ONNX Runtime's own way with functions to the bit."""

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.exactly import check_same, floats, model, rewrite

NAME = "inline-functions"


def functions(main: str, *bodies: str, opset: int = 17, inside: int | None = None) -> onnx.ModelProto:
    """A model with functions of the domain "local"."""
    imports = f'["" : {opset if inside is None else inside}, "local" : 1]'
    texts = [f'<opset_import: {imports}, domain: "local"> {body}' for body in bodies]
    return model(main + "\n" + "\n".join(texts), opset=opset, more=', "local" : 1')


def test_a_call_gives_way_to_its_nodes() -> None:
    done = rewrite(
        functions("g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }", "f (a) => (b) { h = Neg(a) b = Relu(h) }"),
        NAME,
    )
    assert done.ops == ["Neg", "Relu"]
    assert not done.after.proto.functions
    assert [each.name for each in done.outcome.changed] == ["y"]
    check_same(done, {"x": floats(3, 4)})


def test_two_calls_have_names_of_their_own() -> None:
    text = "g (float[N,4] x, float[N,4] h) => (float[N,4] y) { p = local.f(x) q = local.f(p) y = Add(q, h) }"
    done = rewrite(
        functions(text, "f (a) => (b) { c = Constant<value = float[1] {2}>() h = Mul(a, c) b = Tanh(h) }"), NAME
    )
    assert done.ops == ["Mul", "Tanh", "Mul", "Tanh", "Add"]
    check_same(done, {"x": floats(3, 4), "h": floats(3, 4, seed=1)})


def test_functions_that_call_functions_are_written_out_whole() -> None:
    done = rewrite(
        functions(
            "g (float[N,4] x) => (float[N,4] y) { y = local.outer(x) }",
            "inner (a) => (b) { h = Neg(a) b = Relu(h) }",
            "outer (a) => (b) { h = local.inner(a) i = local.inner(h) b = Exp(i) }",
        ),
        NAME,
    )
    assert done.ops == ["Neg", "Relu", "Neg", "Relu", "Exp"] and not done.after.proto.functions
    check_same(done, {"x": floats(3, 4)})


def test_attributes_come_from_the_call_or_the_default_or_not_at_all() -> None:
    body = """f <alpha: float = 0.25, axis> (a) => (b) {
        h = LeakyRelu<alpha: float = @alpha>(a) b = Softmax<axis: int = @axis>(h) }"""
    text = "g (float[N,4] x) => (float[N,4] y) { p = local.f<alpha = 0.5, axis = 0>(x) q = local.f(p) y = Identity(q) }"
    done = rewrite(functions(text, body), NAME)
    alphas = [node.attribute[0].f for node in done.graph.node if node.op_type == "LeakyRelu"]
    axes = [[each.i for each in node.attribute] for node in done.graph.node if node.op_type == "Softmax"]
    assert alphas == [0.5, 0.25] and axes == [[0], []]
    check_same(done, {"x": floats(3, 4)})


def test_attributes_are_handed_on_from_call_to_call() -> None:
    done = rewrite(
        functions(
            "g (float[N,4] x) => (float[N,4] y) { y = local.outer<slope = 0.5>(x) }",
            "inner <alpha> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }",
            "outer <slope> (a) => (b) { b = local.inner<alpha: float = @slope>(a) }",
        ),
        NAME,
    )
    assert done.node("LeakyRelu").attribute[0].f == 0.5
    check_same(done, {"x": floats(3, 4)})


def test_inputs_that_are_left_out_stay_so() -> None:
    body = "f (a, low, high) => (b) { b = Clip(a, low, high) }"
    text = "g (float[N,4] x, float top) => (float[N,4] y, float[N,4] z) { y = local.f(x) z = local.f(x, , top) }"
    done = rewrite(functions(text, body), NAME)
    assert done.ops == ["Clip", "Clip"]
    check_same(done, {"x": floats(3, 4), "top": np.float32(0.1)})


def test_outputs_that_are_left_out_or_handed_through() -> None:
    body = "f (a) => (b, same, c) { b = Neg(a) same = Identity(a) c = Relu(b) }"
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y, z, _ = local.f(x) }"
    proto = functions(text, body)
    proto.graph.node[0].output[2] = ""
    done = rewrite(proto, NAME)
    assert done.ops == ["Neg", "Identity"]
    check_same(done, {"x": floats(3, 4)})


def test_a_result_that_is_an_input_of_the_function() -> None:
    proto = functions(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y, z = local.f(x) }", "f (a) => (a, b) { b = Relu(a) }"
    )
    done = rewrite(proto, NAME)
    assert sorted(done.ops) == ["Identity", "Relu"]  # ONNX Runtime does not load the original
    x = floats(3, 4)
    got = Session(done.after.to_bytes()).run({"x": x})
    assert np.array_equal(got["y"], x) and np.array_equal(got["z"], np.maximum(x, 0))


BRANCHES = """f (a, c) => (b) {
    h = Neg(a)
    b = If (c) <
      then_branch = yes () => (float[A,B] t) { h2 = Exp(h) t = Relu(h2) },
      else_branch = no () => (float[A,B] e) { h3 = local.g(a) e = Identity(h3) }
    > }"""


def test_calls_inside_bodies_and_bodies_inside_functions() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        p = local.f(x, c) q = local.f(p, c)
        y = If (c) <
          then_branch = yes () => (float[A,B] t) { t = local.g(q) },
          else_branch = no () => (float[A,B] e) { e = local.f(q, c) }
        > }"""
    done = rewrite(functions(text, BRANCHES, "g (a) => (b) { h = Tanh(a) b = Abs(h) }"), NAME)
    assert not done.after.proto.functions
    assert done.counts["If"] == 4 and done.counts["Tanh"] == 4
    for taken in (True, False):
        check_same(done, {"x": floats(3, 4), "c": np.array(taken)})


def test_operators_that_mean_the_same_in_both_versions_are_written_out_and_others_not() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { p = local.same(x) y = local.other(p) }"
    same, other = "same (a) => (b) { b = Tanh(a) }", "other (a) => (b) { b = Softmax(a) }"
    done = rewrite(functions(text, same, other, opset=17, inside=13), NAME)
    assert done.ops == ["Tanh", "Softmax"]
    check_same(done, {"x": floats(3, 4)})
    other = "other (a) => (b) { b = ReduceMean<axes = [1], keepdims = 1>(a) }"
    graph = open_graph(load(functions(text, same, other, opset=18, inside=17)))  # the checker refuses it
    outcome = get_pass(NAME)().apply(graph, Context())
    assert [node.op for node in graph.main.graph.nodes] == ["Tanh", "other"]
    assert [(each.name, "opset 17" in each.reason) for each in outcome.skipped] == [("y", True)]


def test_encodings_and_weights_come_along() -> None:
    body = """f (a) => (b) {
        w = Constant<value = float[2,2] {0, 1, 2, 3}>() b = MatMul(a, w) }"""
    proto = functions("g (float[N,2] x) => (float[N,2] y) { p = local.f(x) y = local.f(p) }", body)
    graph = open_graph(load(proto))
    get_pass("quantize-weights")(bits=4).apply(graph, Context())
    coded = close_graph(graph)
    assert list(coded.encodings) == ["function local:f/w"]
    again = open_graph(coded)
    outcome = get_pass(NAME)().apply(again, Context())
    after = close_graph(again)
    assert len(outcome.changed) == 2
    assert sorted(after.encodings) == sorted(each.name for each in weights(open_graph(after)))
    assert len(after.encodings) == 2


def test_a_call_that_is_excluded_keeps_its_function() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { p = local.f(x) y = local.f(p) }"
    done = rewrite(functions(text, "f (a) => (b) { b = Relu(a) }"), NAME, context=Context(exclude=("y",)))
    assert done.ops == ["Relu", "f"] and len(done.after.proto.functions) == 1
    check_same(done, {"x": floats(3, 4)})


def test_a_function_that_nothing_calls_is_left_alone() -> None:
    proto = functions("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }", "f (a) => (b) { b = Relu(a) }")
    done = rewrite(proto, NAME)
    assert not done.outcome.changed and len(done.after.proto.functions) == 1


def test_the_functions_own_operator_sets_are_imported() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }
        <opset_import: ["" : 17, "com.microsoft" : 1], domain: "local">
        f (a) => (b) { b = com.microsoft.QuickGelu(a) }"""
    done = rewrite(parser.parse_model(text), NAME)
    assert {each.domain: each.version for each in done.after.proto.opset_import}["com.microsoft"] == 1
    check_same(done, {"x": floats(3, 4)})


@pytest.mark.parametrize("count", [2000])
def test_a_model_of_thousands_of_calls(count: int) -> None:
    calls = " ".join(f"t{i + 1} = local.f(t{i})" for i in range(count))
    text = f"g (float[1,4] t0) => (float[1,4] y) {{ {calls} y = Identity(t{count}) }}"
    done = rewrite(functions(text, "f (a) => (b) { h = Neg(a) b = Tanh(h) }"), NAME)
    assert (
        done.counts["Tanh"] == count and len({out for node in done.graph.node for out in node.output}) == 2 * count + 1
    )
