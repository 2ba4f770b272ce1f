"""drop-unused: what nothing reads goes, inputs and outputs stay."""

from __future__ import annotations

import numpy as np

from onnxcomp.contract import Context
from tests.passes.exactly import check_same, floats, model, rewrite


def test_drops_dead_chains_and_constants() -> None:
    body = """g (float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}, float[3] v = {1, 2, 3}>
        { y = Relu(x) d = Add(x, w) e = Neg(d) c = Constant <value_float = 1.0> () }"""
    done = rewrite(model(body), "drop-unused")
    assert done.counts == {"Relu": 1} and not done.graph.initializer
    assert {each.name for each in done.outcome.changed} == {"d", "e", "c", "w", "v"}
    check_same(done, {"x": floats(3)})


def test_keeps_inputs_and_their_defaults() -> None:
    body = "g (float[3] x, float[3] u, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Relu(x) }"
    done = rewrite(model(body), "drop-unused")
    assert [each.name for each in done.graph.input] == ["x", "u", "w"]
    assert done.initializer("w").tolist() == [1, 2, 3] and not done.outcome.changed


def test_keeps_outputs_that_are_constants() -> None:
    body = "g (float[3] x) => (float[3] y, float[3] w) <float[3] w = {1, 2, 3}> { y = Relu(x) }"
    assert not rewrite(model(body), "drop-unused").outcome.changed


def test_drops_in_subgraphs_and_what_only_they_kept() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) { h = Neg(x) y = If (c) <
        then_branch = t () => (float[3] a) { a = Relu(x) },
        else_branch = e () => (float[3] b) <float[3] w = {1, 2, 3}> { d = Add(h, w) b = Abs(x) }> }"""
    done = rewrite(model(body), "drop-unused")
    assert done.counts == {"If": 1, "Relu": 1, "Abs": 1}
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(3)})


def test_drops_functions_that_are_not_called_and_their_imports() -> None:
    body = """g (float[3] x) => (float[3] y) { y = local.f(x) d = other.h(x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> f (a) => (b) { b = local.inner(a) }
        <domain: "local", opset_import: ["" : 17]> inner (a) => (b) { d = Neg(a) b = Relu(a) }
        <domain: "other", opset_import: ["" : 17]> h (a) => (b) { b = Neg(a) }"""
    done = rewrite(model(body, more=', "local" : 1, "other" : 1, "ai.onnx.ml" : 2'), "drop-unused")
    assert done.counts == {"f": 1, "inner": 1, "Relu": 1}
    assert [each.domain for each in done.after.proto.opset_import] == ["", "local"]
    check_same(done, {"x": floats(3)})


def test_leaves_excluded_nodes() -> None:
    body = "g (float[3] x) => (float[3] y) { y = Relu(x) d = Neg(x) e = Abs(x) }"
    done = rewrite(model(body), "drop-unused", context=Context(exclude=("d",)))
    assert done.ops == ["Relu", "Neg"]
