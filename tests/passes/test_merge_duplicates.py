"""merge-duplicates: equal to the bit means one, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.registry import get_pass
from tests.passes.exactly import check_same, floats, model, rewrite

X = {"x": floats(3)}


def test_merges_equal_constants_wherever_they_are_kept() -> None:
    body = """g (float[3] x) => (float[3] y) <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}>
        { c = Constant <value = float[3] {1, 2, 3}> () h = Add(x, b) i = Add(h, a) y = Mul(i, c) }"""
    done = rewrite(model(body), "merge-duplicates")
    assert done.counts == {"Add": 2, "Mul": 1} and [each.name for each in done.graph.initializer] == ["a"]
    check_same(done, X)


@pytest.mark.parametrize("other", ["float[3] b = {1, 2, 4}", "float[1, 3] b = {1, 2, 3}", "float[3] b = {1, 2, -0.0}"])
def test_keeps_different_constants(other: str) -> None:
    first = "float[3] a = {1, 2, 0.0}" if "-0.0" in other else "float[3] a = {1, 2, 3}"
    rank = "1, 3" if "1, 3" in other else "3"
    body = f"g (float[3] x) => (float[{rank}] y) <{first}, {other}> {{ h = Add(x, a) y = Mul(h, b) }}"
    assert not rewrite(model(body), "merge-duplicates").outcome.changed


def test_a_constant_node_that_is_read_earlier_moves_to_the_front() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) {
        k = If (c) < then_branch = t () => (float[3] a) { w = Constant <value = float[3] {1, 2, 3}> () a = Add(x, w) },
        else_branch = e () => (float[3] b) { b = Abs(x) }>
        v = Constant <value = float[3] {1, 2, 3}> () y = Add(k, v) }"""
    done = rewrite(model(body), "merge-duplicates")
    assert done.counts["Constant"] == 1
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), **X})


def test_merges_an_inner_constant_with_an_outer_one_but_not_siblings() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> { h = Add(x, w) y = If (c) <
        then_branch = t () => (float[3] a) <float[3] u = {1, 2, 3}, float[2] s = {1, 2}>
            { i = Mul(h, u) r = ReduceSum(s) a = Add(i, r) },
        else_branch = e () => (float[3] b) <float[2] z = {1, 2}> { r = ReduceMax(z) b = Sub(h, r) }> }"""
    done = rewrite(model(body), "merge-duplicates")
    assert [each.name for each in done.outcome.changed] == ["y/then_branch/u"]
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), **X})


def test_one_of_two_equal_outputs_stays_as_it_is() -> None:
    body = """g (float[3] x) => (float[3] y, float[3] a, float[3] b)
        <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}> { h = Add(x, a) y = Add(h, b) }"""
    done = rewrite(model(body), "merge-duplicates")
    assert len(done.graph.initializer) == 2 and "output" in done.skipped("b")


def test_an_encoding_stays_with_the_one_that_is_kept() -> None:
    proto = model("""g (float[3] x) => (float[3] y) <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}>
        { h = Add(x, a) y = Mul(h, b) }""")
    graph = open_graph(load(proto))
    graph.encodings["b"] = CodebookEncoding(dtype="float32", codebook=np.array([1, 2, 3], np.float32))
    get_pass("merge-duplicates")().apply(graph, Context())
    assert list(close_graph(graph).encodings) == ["a"]


def test_merges_equal_computations() -> None:
    body = """g (float[3] x) => (float[3] y, float[3] z)
        { a = Relu(x) b = Relu(x) c = Neg(a) z = Neg(b) d = Selu <alpha = 1.0> (x) e = Selu <alpha = 2.0> (x)
          f = Add(d, e) y = Add(c, f) }"""
    done = rewrite(model(body), "merge-duplicates")
    assert done.ops == ["Relu", "Neg", "Selu", "Selu", "Add", "Add"]
    check_same(done, X)


def test_keeps_two_outputs_random_values_and_quantization() -> None:
    body = """g (float[3] x) => (float[3] y, float[3] z, float[3] u, float[3] v, float[3] r, float[3] s)
        <float k = {0.1}, uint8 o = {3}>
        { y = Relu(x) z = Relu(x) a = RandomNormalLike(x) b = RandomNormalLike(x) u = Neg(a) v = Neg(b)
          q = QuantizeLinear(x, k, o) c = DequantizeLinear(q, k, o) d = DequantizeLinear(q, k, o)
          r = Abs(c) s = Abs(d) }"""
    done = rewrite(model(body), "merge-duplicates")
    assert not done.outcome.changed and "outputs" in done.skipped("z")


def test_leaves_excluded_constants() -> None:
    body = """g (float[3] x) => (float[3] y) <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}>
        { h = Add(x, a) y = Mul(h, b) }"""
    assert not rewrite(model(body), "merge-duplicates", context=Context(exclude=("b",))).outcome.changed
