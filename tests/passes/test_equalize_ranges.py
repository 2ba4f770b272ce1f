"""equalize-ranges: ranges become alike, outputs stay within float rounding, and what stays says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.registry import get_pass
from tests.passes.exactly import Rewrite, check_same, floats, model, rewrite

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # float32, sums of at most 100 products of channels 30 times apart


def uneven(body: str, *, opset: int = 17, more: str = "", seed: int = 0, **shapes: tuple[int, ...]) -> ModelProto:
    """The model with initializers whose rows, along the first axis, lie up to 30 times apart."""
    proto = model(body, opset=opset, more=more)
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        spread = np.exp(random.uniform(-1.7, 1.7, (shape[0], *(1,) * (len(shape) - 1))))
        values = (random.standard_normal(shape) * spread).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def equalize(
    proto: ModelProto, *, context: Context | None = None, bounds: bool = False, **feeds: np.ndarray
) -> Rewrite:
    done = rewrite(proto, "equalize-ranges", context=context, bounds=bounds)
    check_same(done, feeds, **ROUNDING)
    return done


def assert_alike(made: np.ndarray, read: np.ndarray) -> None:
    """The ranges of channels on both sides are in one ratio."""
    ratio = made / read
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.02)


def ranges(done: Rewrite, name: str, axis: int) -> np.ndarray:
    values = np.abs(done.initializer(name))
    return values.max(axis=tuple(i for i in range(values.ndim) if i != axis))


def test_two_matrices_by_hand() -> None:
    proto = model("""g (float[N, 1] x) => (float[N, 1] y)
        <float[1, 2] w = {8, 1}, float[2] b = {4, 1}, float[2, 1] v = {2, 4}> {
        h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, v) }""")
    done = equalize(proto, x=floats(5, 1))
    # s = sqrt(8 / 2), sqrt(1 / 4) = 2, 1/2
    np.testing.assert_allclose(done.initializer("w"), [[4, 2]], rtol=1e-6)
    np.testing.assert_allclose(done.initializer("b"), [2, 2], rtol=1e-6)
    np.testing.assert_allclose(done.initializer("v"), [[4], [2]], rtol=1e-6)
    assert [each.name for each in done.outcome.changed] == ["h"]


def test_says_what_a_bias_was_before_it_was_scaled() -> None:
    proto = model("""g (float[N, 1] x) => (float[N, 1] y)
        <float[1, 2] w = {8, 1}, float[2] b = {4, 1}, float[2, 1] v = {2, 4}> {
        h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, v) }""")
    done = equalize(proto, x=floats(5, 1))
    before = Reference(done.before, done.outcome.origins).constant("b")
    np.testing.assert_allclose(before, done.initializer("b"), rtol=1e-6)


def test_weights_in_double_precision_keep_it() -> None:
    """Their factors are no powers of two, and in float32 eight digits would be left."""
    proto = model("""g (double[N, 3] x) => (double[N, 2] y) {
        h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, v) }""")
    random = np.random.default_rng(0)
    for name, shape in (("w", (3, 4)), ("b", (4,)), ("v", (4, 2))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(shape), name))
    done = rewrite(proto, "equalize-ranges")
    assert done.outcome.changed and done.initializer("w").dtype == np.float64
    check_same(done, {"x": random.standard_normal((5, 3))}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_convolutions_of_every_rank_and_grouping(groups: int, rank: int) -> None:
    dims = ", ".join(["N", "4", *["7"] * (rank - 2)])
    body = f"""g (float[{dims}] x) => (float[{dims.replace("7", "D").replace("4", "8")}] y) {{
        h = Conv <group = {groups}> (x, w, b) r = LeakyRelu(h) y = Conv <group = {groups}> (r, v, c) }}"""
    kernel = (3,) * (rank - 2)
    proto = uneven(body, w=(8, 4 // groups, *kernel), b=(8,), v=(8, 8 // groups, *kernel), c=(8,))
    done = equalize(proto, x=floats(2, 4, *[7] * (rank - 2)))
    packed = np.abs(done.initializer("v")).reshape(groups, 8 // groups, 8 // groups, -1)
    assert_alike(ranges(done, "w", 0), packed.max(axis=(1, 3)).reshape(-1))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int) -> None:
    body = f"""g (float[N, 4, 5, 5] x) => (float[N, C, H, W] y) {{
        h = ConvTranspose <group = {groups}, strides = [2, 2]> (x, w, b) r = Relu(h)
        y = ConvTranspose <group = {groups}> (r, v) }}"""
    proto = uneven(body, w=(4, 6 // groups, 3, 3), b=(6,), v=(6, 4 // groups, 2, 2))
    done = equalize(proto, x=floats(2, 4, 5, 5))
    packed = np.abs(done.initializer("w")).reshape(groups, 4 // groups, 6 // groups, -1)
    assert_alike(packed.max(axis=(1, 3)).reshape(-1), ranges(done, "v", 0))


@pytest.mark.parametrize(
    ("first", "second", "w", "v"),
    [
        ("Gemm (x, w, b)", "Gemm (r, v, c)", (5, 6), (6, 4)),
        ("Gemm <transB = 1> (x, w, b)", "Gemm <transB = 1, alpha = 2.0> (r, v, c)", (6, 5), (4, 6)),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", "MatMul(r, v)", (5, 6), (6, 4)),
    ],
)
def test_matrix_products(first: str, second: str, w: tuple[int, ...], v: tuple[int, ...]) -> None:
    proto = uneven(
        f"g (float[3, 5] x) => (float[3, 4] y) {{ h = {first} r = Relu(h) y = {second} }}", w=w, b=(6,), v=v, c=(4,)
    )
    done = equalize(proto, x=floats(3, 5))
    assert_alike(ranges(done, "w", w.index(6)), ranges(done, "v", v.index(6)))


def test_left_operands_and_transposed_inputs() -> None:
    body = """g (float[5, 3] x) => (float[4, 3] y) {
        h = Gemm(w, x, b) r = Relu(h) p = MatMul(v, r) q = Relu(p) y = Gemm <transA = 1> (u, q) }"""
    done = equalize(uneven(body, w=(6, 5), b=(6, 1), v=(7, 6), u=(7, 4)), x=floats(5, 3))
    assert_alike(ranges(done, "w", 0), ranges(done, "v", 1))
    assert len(done.outcome.changed) == 1  # Gemm with transA on its constant operand is not followed


def test_weights_behind_transpose_and_in_constant_nodes() -> None:
    body = """g (float[N, 5] x) => (float[N, 2] y) {
        t = Transpose <perm = [1, 0]> (w) h = MatMul(x, t) r = Relu(h)
        v = Constant <value = float[3, 2] {1, 20, 1, 1, 300, 4}> () y = MatMul(r, v) }"""
    done = equalize(uneven(body, w=(3, 5)), x=floats(4, 5))
    assert len(done.outcome.changed) == 1


def test_a_chain_with_a_depthwise_convolution() -> None:
    body = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
        a = Conv(x, w, b) p = Relu(a) c = Conv <group = 8> (p, d, e) q = Relu(c) y = Conv(q, v) }"""
    done = equalize(uneven(body, w=(8, 3, 1, 1), b=(8,), d=(8, 1, 3, 3), e=(8,), v=(4, 8, 1, 1)), x=floats(2, 3, 8, 8))
    assert len(done.outcome.changed) == 2
    assert_alike(ranges(done, "w", 0), ranges(done, "d", 0))
    assert_alike(ranges(done, "d", 0), ranges(done, "v", 1))


def test_several_readers_count_by_the_widest() -> None:
    body = """g (float[N, 3] x) => (float[N, 4] y, float[N, 4] z) {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) z = MatMul(r, u) }"""
    done = equalize(uneven(body, w=(3, 6), v=(6, 4), u=(6, 4)), x=floats(5, 3))
    shares = [ranges(done, name, 0) / ranges(done, name, 0).max() for name in ("v", "u")]
    assert_alike(ranges(done, "w", 1), np.max(shares, axis=0))


def test_residual_sums_are_scaled_as_one() -> None:
    body = """g (float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y) {
        a = Conv(x, w, b) r = Relu(a) c = Conv(r, u) s = Add(c, r) t = Relu(s) y = Conv(t, v) }"""
    done = equalize(uneven(body, w=(4, 4, 1, 1), b=(4,), u=(4, 4, 1, 1), v=(2, 4, 1, 1)), x=floats(2, 4, 5, 5))
    assert [each.name for each in done.outcome.changed] == ["a"]


def test_leaves_batch_normalization_to_a_pass_of_its_own() -> None:
    body = """g (float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y) {
        a = Conv(x, w) n = BatchNormalization(a, s, o, m, q) r = Relu(n) y = Conv(r, v) }"""
    proto = uneven(body, w=(4, 4, 1, 1), s=(4,), o=(4,), m=(4,), v=(2, 4, 1, 1))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 2, np.float32), "q"))
    assert not equalize(proto, x=floats(2, 4, 5, 5)).outcome.changed  # fuse-batch-norm first


CLIPPED = """g (float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y) <float low = {LOW}, float six = {0.5}> {
    a = Conv(x, w, b) c = Clip(a, low, six) y = Conv(c, v) }"""


def test_a_bound_stops_it() -> None:
    proto = uneven(CLIPPED.replace("LOW", "0"), w=(4, 4, 1, 1), b=(4,), v=(2, 4, 1, 1))
    done = equalize(proto, x=floats(2, 4, 5, 5))
    assert not done.outcome.changed and "one bound for all" in done.skipped("a")


@pytest.mark.parametrize(("low", "ops"), [("0", ["Relu", "Min"]), ("-0.5", ["Max", "Min"])])
def test_a_bound_becomes_one_for_each_channel(low: str, ops: list[str]) -> None:
    proto = uneven(CLIPPED.replace("LOW", low), w=(4, 4, 1, 1), b=(4,), v=(2, 4, 1, 1))
    done = equalize(proto, bounds=True, x=floats(2, 4, 5, 5))
    assert done.ops == ["Conv", *ops, "Conv"]


def test_bounds_as_attributes_in_old_models() -> None:
    body = """g (float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y) {
        a = Conv(x, w) c = Clip <min = 0.0, max = 0.5> (a) y = Conv(c, v) }"""
    done = equalize(uneven(body, opset=9, w=(4, 4, 1, 1), v=(2, 4, 1, 1)), bounds=True, x=floats(2, 4, 5, 5))
    assert done.ops == ["Conv", "Relu", "Min", "Conv"]


def test_a_shared_bias_is_copied() -> None:
    body = """g (float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y, float[4] z) {
        a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) z = Neg(b) }"""
    done = equalize(uneven(body, w=(4, 4, 1, 1), b=(4,), v=(2, 4, 1, 1)), x=floats(2, 4, 5, 5))
    assert done.outcome.changed and done.node("Conv").input[2] != "b"


def test_one_number_added_to_all_channels_becomes_one_for_each() -> None:
    body = """g (float[N, 3] x) => (float[N, 2] y) <float one = {1}> {
        h = MatMul(x, w) a = Add(one, h) r = Relu(a) y = MatMul(r, v) }"""
    done = equalize(uneven(body, w=(3, 4), v=(4, 2)), x=floats(5, 3))
    assert done.outcome.changed and len(done.graph.initializer) == 3


def test_in_subgraphs_and_functions() -> None:
    body = """g (bool c, float[N, 4, 5, 5] x) => (float[N, 2, 5, 5] y) { y = If (c) <
        then_branch = t () => (float[N, 2, 5, 5] p) { a = Conv(x, w) r = Relu(a) p = Conv(r, v) },
        else_branch = e () => (float[N, 2, 5, 5] q) { q = local.f(x) }> }
        <domain: "local", opset_import: ["" : 17]> f (i) => (o)
        { k = Constant <value = float[2, 4, 1, 1] {1, 2, 3, 4, 50, 60, 70, 80}> () a = Conv(i, k) r = Relu(a)
          l = Constant <value = float[2, 2, 1, 1] {1, 2, 3, 4}> () o = Conv(r, l) }"""
    proto = uneven(body, more=', "local" : 1', w=(4, 4, 1, 1), v=(2, 4, 1, 1))
    done = rewrite(proto, "equalize-ranges")
    assert len(done.outcome.changed) == 2
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(2, 4, 5, 5)}, **ROUNDING)


TWO = """g (float[N, 3] x) => (float[N, 2] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"""


@pytest.mark.parametrize("excluded", ["w", "v", "h", "y"])
def test_leaves_what_is_excluded_on_either_side(excluded: str) -> None:
    proto = uneven(TWO, w=(3, 4), v=(4, 2))
    assert not equalize(proto, context=Context(exclude=(excluded,)), x=floats(5, 3)).outcome.changed


def test_leaves_weights_on_levels() -> None:
    graph = open_graph(load(uneven(TWO, w=(3, 4), v=(4, 2))))
    context = Context(include=frozenset({"v"}))
    get_pass("quantize-weights")(granularity="tensor").apply(graph, context)
    quantized = close_graph(graph)
    again = open_graph(quantized)
    outcome = get_pass("equalize-ranges")().apply(again, Context())
    assert not outcome.changed
    assert next(each.reason for each in outcome.skipped if each.name == "h") == "v is on levels, or pruned, already"
    assert weights(again)[1].encoding is not None


def test_nothing_is_left_for_a_second_time() -> None:
    once = equalize(uneven(TWO, w=(3, 4), v=(4, 2)), x=floats(5, 3))
    assert not rewrite(once.after.proto, "equalize-ranges").outcome.changed
