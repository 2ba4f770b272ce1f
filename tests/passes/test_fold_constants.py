"""fold-constants: what is computed ahead, what stays, and that no file grows by it."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.registry import get_pass
from tests.passes.exactly import Rewrite, check_same, floats, model, rewrite

X23 = {"x": floats(2, 3)}


def fold(body: str, *, opset: int = 17, **fields: int) -> Rewrite:
    done = rewrite(model(body, opset=opset), "fold-constants", **fields)
    assert done.after.size_bytes <= done.before.size_bytes
    return done


def test_folds_a_chain_of_constants() -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
        { t = Transpose(w) n = Neg(t) y = Add(x, n) }"""
    done = fold(body)
    assert done.ops == ["Add"]
    assert done.initializer("n").tolist() == [[-1, -3, -5], [-2, -4, -6]]
    check_same(done, X23)


def test_keeps_what_would_grow() -> None:
    body = """g (float[2, 3] x, int64[2] i) => (float[2, 3] y) <float scale = {0.5}>
        { c = Cast <to = 1> (codes) w = Mul(c, scale) g = Gather(w, i) y = Add(x, g) }"""
    proto = model(body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4096, 3), np.uint8), "codes"))
    done = rewrite(proto, "fold-constants")
    assert done.ops == ["Cast", "Mul", "Gather", "Add"] and not done.outcome.changed
    assert "larger" in done.skipped("w")
    grown = rewrite(proto, "fold-constants", growth_bytes=2**17)
    assert grown.ops == ["Gather", "Add"]
    check_same(grown, {**X23, "i": np.array([0, 4095])})


def test_folds_the_part_of_a_decoder_that_pays() -> None:
    """A small result in the middle of what is left alone as a whole."""
    body = """g (float[9] x) => (float[9, 512] y) <float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6},
        float[3] c = {7, 8, 9}, int64[2] form = {9, 512}, int64[2] column = {9, 1}>
        { t = Concat <axis = 0> (a, b, c) u = Reshape(t, column) w = Expand(u, form) y = Add(w, w) }"""
    done = fold(body)
    assert done.ops == ["Expand", "Add"]
    check_same(done, {"x": floats(9)})


def test_shared_constants_are_counted_once_and_only_if_freed() -> None:
    body = """g (float[32, 32] x) => (float[32, 32] y, float[32, 32] z)
        { t = Transpose(w) y = MatMul(x, t) z = MatMul(x, w) }"""
    proto = model(body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(32, 32), "w"))
    done = rewrite(proto, "fold-constants")
    assert done.ops == ["Transpose", "MatMul", "MatMul"]


@pytest.mark.parametrize("opset", [9, 12, 13, 17])
def test_folds_shapes_that_are_fixed(opset: int) -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y)
        { h = Relu(x) s = Shape(h) t = Reshape(x, s) y = Neg(t) }"""
    done = fold(body, opset=opset)
    assert done.ops == ["Relu", "Reshape", "Neg"] or done.ops == ["Reshape", "Neg"]
    assert done.initializer("s").tolist() == [2, 3]
    check_same(done, X23)


def test_folds_the_known_part_of_an_open_shape() -> None:
    body = """g (float[N, 3, 4] x) => (float[N, 12] y) <int64[2] i = {1, 2}, int64[1] first = {-1}>
        { s = Shape(x) d = Gather(s, i) p = ReduceProd <keepdims = 1> (d)
          f = Concat <axis = 0> (first, p) y = Reshape(x, f) }"""
    done = fold(body)
    assert done.ops == ["Reshape"] and done.initializer("f").tolist() == [-1, 12]
    check_same(done, {"x": floats(5, 3, 4)})


def test_open_dimensions_stay_computed() -> None:
    body = """g (float[N, 3] x) => (float[M] y) <int64[1] i = {0}, int64[1] three = {3}>
        { s = Shape(x) d = Gather(s, i) n = Mul(d, three) y = Reshape(x, n) }"""
    assert fold(body).ops == ["Shape", "Gather", "Mul", "Reshape"]


def test_inputs_with_defaults_are_no_constants() -> None:
    body = """g (float[2, 3] x, float[3] b) => (float[2, 3] y) <float[3] b = {1, 2, 3}>
        { n = Neg(b) y = Add(x, n) }"""
    done = fold(body)
    assert done.ops == ["Neg", "Add"]
    check_same(done, {**X23, "b": np.array([5, 6, 7], np.float32)})


@pytest.mark.parametrize(
    "line",
    [
        "r = RandomNormal <shape = [2, 3]> ()",
        "r = RandomUniformLike(w)",
        "r = Dropout(w, half, yes)",
    ],
)
def test_random_values_stay_random(line: str) -> None:
    body = f"""g (float[2, 3] x) => (float[2, 3] y)
        <float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float half = {{0.5}}, bool yes = {{1}}>
        {{ {line} y = Add(x, r) }}"""
    assert not fold(body).outcome.changed


def test_quantized_weights_stay_quantized() -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y) <int8[3] q = {1, 2, 3}, float s = {0.5}, int8 z = {0}>
        { w = DequantizeLinear(q, s, z) y = Add(x, w) }"""
    assert not fold(body, growth_bytes=10**6).outcome.changed


def test_graph_outputs_stay_computed() -> None:
    body = "g (float[2, 3] x) => (float[3] y) <float[3] b = {1, 2, 3}> { y = Neg(b) }"
    assert fold(body).ops == ["Neg"]


def test_folds_inside_subgraphs_and_leaves_what_is_captured() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) <float[3] b = {1, 2, 3}> { h = Relu(x) y = If (c) <
        then_branch = t () => (float[3] a) { n = Neg(b) m = Abs(n) a = Add(m, h) },
        else_branch = e () => (float[3] d) { k = Neg(h) d = Neg(k) }> }"""
    done = fold(body)
    assert done.counts == {"Relu": 1, "If": 1, "Add": 1, "Neg": 2}
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(3)})


def test_folds_inside_functions_to_constant_nodes() -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y) { y = local.f <k = 2.0> (x) }
        <domain: "local", opset_import: ["" : 17]> f <k> (a) => (b)
        { s = Constant <value = float[3] {1, 2, 3}> () n = Neg(s) m = Abs(n)
          r = Constant <value_float: float = @k> () t = Add(r, m) b = Mul(a, t) }"""
    done = rewrite(model(body, more=', "local" : 1'), "fold-constants")
    assert done.counts == {"f": 1, "Constant": 2, "Add": 1, "Mul": 1}
    check_same(done, X23)


def test_a_weight_with_an_encoding_stays() -> None:
    proto = model("""g (float[2, 3] x) => (float[2, 3] y) <float[3, 2] w = {1, 1, 2, 1, 2, 2}>
        { t = Transpose(w) y = Add(x, t) }""")
    graph = open_graph(load(proto))
    graph.encodings["w"] = CodebookEncoding(dtype="float32", codebook=np.array([1, 2], np.float32))
    outcome = get_pass("fold-constants")().apply(graph, Context())
    assert not outcome.changed and "encoding" in outcome.skipped[0].reason


def test_operators_that_onnx_runtime_lacks_are_named() -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y) <double[3] c = {0.1, 0.2, 0.3}>
        { a = Acosh (c) n = Cast <to = 1> (a) y = Add(x, n) }"""
    done = rewrite(model(body, opset=17), "fold-constants")
    assert not done.outcome.changed and "does not compute" in done.skipped("n")


def test_a_known_scalar_stays_a_scalar() -> None:
    """As in nn.TransformerEncoder by torch's older exporter: half of a fixed size goes into a form."""
    body = """g (float[n, 4, 8] x) => (float[a, b, c, d] y) <int64 last = {2}, int64 first = {0}, int64 two = {2},
        int64[1] at = {0}, int64[1] four = {4}, int64[1] pair = {2}>
        { s = Shape(x) e = Gather <axis = 0> (s, last) h = Div(e, two) f = Cast <to = 7> (h) i = Cast <to = 7> (f)
          b0 = Gather <axis = 0> (s, first) u = Unsqueeze(b0, at) v = Unsqueeze(i, at)
          form = Concat <axis = 0> (u, four, pair, v) y = Reshape <allowzero = 1> (x, form) }"""
    done = fold(body)
    assert done.initializer("v").tolist() == [4]
    check_same(done, {"x": floats(3, 4, 8)})


def folds_s(count: int) -> float:
    """Processor time for so many folds, in a graph four times as large."""
    made = [
        f"c{i} = Constant <value = float[2] {{{i}, 1}}> () u{i} = Unsqueeze(c{i}, at) a{i + 1} = Add(a{i}, u{i})"
        for i in range(count)
    ]
    text = f"g (float[1, 2] a0) => (float[1, 2] y) <int64[1] at = {{0}}> {{ {' '.join(made)} y = Neg(a{count}) }}"
    graph = open_graph(load(model(text)))
    started = time.process_time()
    assert len(get_pass("fold-constants")().apply(graph, Context()).changed) == count
    return time.process_time() - started


def test_time_grows_with_the_folds_not_with_their_square() -> None:
    folds_s(100)
    assert folds_s(1200) < 10 * min(folds_s(300) for _ in range(3))


def test_a_chain_inside_what_grows_is_gone_through_once() -> None:
    count = 600
    chain = " ".join(f"a{i + 1} = Neg(a{i})" for i in range(count))
    body = f"""g (float[9, 64] x) => (float[9, 64] y) <int64[2] form = {{9, 64}}>
        {{ a0 = Abs(w) {chain} e = Expand(a{count}, form) f = Expand(e, form) y = Add(x, f) }}"""
    proto = model(body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(64), "w"))
    started = time.process_time()
    done = rewrite(proto, "fold-constants", max_result_bytes=512)
    assert time.process_time() - started < 5  # a second or so; eight times that where each result goes through all
    assert done.ops == ["Expand", "Expand", "Add"]


SIZES = """s = Shape(h) b = Gather(s, first) u = Unsqueeze(b, axis)"""
GIVEN = "<int64 first = {0}, int64[1] axis = {0}, int64[2] tail = {4, 3}>"


def test_a_reshape_copies_the_open_sizes_that_its_own_data_has() -> None:
    body = f"""g (float[N, 12] x) => (float[N, 4, 3] y) {GIVEN}
        {{ h = Relu(x) {SIZES} z = Concat <axis = 0> (u, tail) y = Reshape(h, z) }}"""
    done = fold(body)
    assert done.ops == ["Relu", "Reshape"]
    sizes = done.after.proto.graph.node[1].input[1]
    assert done.initializer(sizes).tolist() == [0, 4, 3] and sizes != "z", "a tensor of its name would be another"
    for count in (1, 5, 0):
        check_same(done, {"x": floats(count, 12)})


@pytest.mark.parametrize(
    "rest",
    [
        "z = Concat <axis = 0> (tail, u) y = Reshape(h, z)",  # at another place
        "z = Concat <axis = 0> (u, tail) y = Reshape(w, z)",  # of other data
        "z = Concat <axis = 0> (u, tail) y = Reshape <allowzero = 1> (h, z)",
        "z = Concat <axis = 0> (u, tail) y = Reshape(h, z) t = Cast <to = 1> (z) v = ReduceSum(t)",  # read elsewhere
    ],
)
def test_other_open_sizes_stay(rest: str) -> None:
    outputs = "float[a, b, c] y" + (", float[1] v" if "v =" in rest else "")
    body = f"""g (float[N, 12] x, float[N, 12] w) => ({outputs}) {GIVEN} {{ h = Relu(x) {SIZES} {rest} }}"""
    done = fold(body)
    assert "Concat" in done.ops and not done.outcome.changed


def test_sizes_that_free_nothing_stay() -> None:
    """The chain is read elsewhere: a constant beside it would make the file larger."""
    body = """g (float[N, 12] x) => (float[N, 12] y, int64[2] z) { h = Relu(x) z = Shape(h) y = Reshape(h, z) }"""
    done = fold(body)
    assert done.ops == ["Relu", "Shape", "Reshape"]
