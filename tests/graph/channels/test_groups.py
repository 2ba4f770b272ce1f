"""channel_trace: which channels of which weights belong together, and what is in the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.graph.channels.groups import ChannelGroup, Channels
from onnxcomp.graph.channels.ids import ChannelSets, along, condensed, reformed
from onnxcomp.graph.channels.trace import trace_channels
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from tests.passes.exactly import floats, model


def trace(body: str, *, opset: int = 17, through_bounds: bool = False, **shapes: tuple[int, ...]) -> Channels:
    proto = model(body, opset=opset)
    for seed, (name, shape) in enumerate(shapes.items()):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(*shape, seed=seed), name))
    return trace_channels(open_graph(load(proto)), through_bounds=through_bounds)


def described(group: ChannelGroup) -> tuple[list[str], list[str], int]:
    """Producers' weights, consumers' weights, number of channels."""
    made, read = ([each.weight.name for each in side] for side in (group.producers, group.consumers))
    return made, read, group.channels.size


def columns_by_row(channels: Channels) -> list[list[int]]:
    """For each column of the last product, which row of the first one it reads (-1: none)."""
    first, last = channels.products[0], channels.products[-1]
    rows = channels.sets.roots(first.rows).tolist()
    return [rows.index(each) if each in rows else -1 for each in channels.sets.roots(last.columns).tolist()]


CHANNELWISE = [
    "h = Relu(a)",
    "h = LeakyRelu <alpha = 0.2> (a)",
    "h = PRelu(a, slope)",
    "h = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a)",
    "h = AveragePool <kernel_shape = [2, 2]> (a)",
    "b = GlobalAveragePool(a) h = Expand(b, shape)",
    "h = ReduceMean <axes = [2], keepdims = 1> (a)",
    "h = Pad(a, pads)",
    "h = Identity(a)",
    "h = Dropout(a)",
    "h = Mul(a, two)",
    "h = Mul(a, slope)",
    "b = Transpose <perm = [0, 2, 3, 1]> (a) c = Relu(b) h = Transpose <perm = [0, 3, 1, 2]> (c)",
    "b = Reshape(a, flat) c = Relu(b) h = Reshape(c, back)",
    "c = Sigmoid(x) d = Slice(c, begin, end, axis) h = Mul(a, d)",
    "b = Shape(a) c = ConstantOfShape(b) h = Mul(a, c)",
    "b = Add(a, a) h = Max(b, zero)",
]


@pytest.mark.parametrize("between", CHANNELWISE)
def test_follows_channels_through(between: str) -> None:
    body = f"""g (float[2, 4, 4, 4] x) => (float[N, 5, H, W] y)
        <float two = {{2}}, float zero = {{0}}, int64[2] flat = {{2, -1}}, int64[4] back = {{2, 4, 4, 4}},
         int64[4] shape = {{2, 4, 4, 4}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, int64[1] begin = {{0}},
         int64[1] end = {{1}}, int64[1] axis = {{1}}> {{
        a = Conv(x, w) {between} y = Conv(h, v) }}"""
    channels = trace(body, w=(4, 4, 1, 1), v=(5, 4, 1, 1), slope=(4, 1, 1))
    assert [described(each) for each in channels.groups() if each.consumers] == [(["w"], ["v"], 4)]
    assert columns_by_row(channels) == [0, 1, 2, 3]


def test_follows_channels_into_a_flattened_matrix() -> None:
    body = """g (float[N, 3, 4, 4] x) => (float[N, 5] y) {
        a = Conv(x, w) h = Relu(a) f = Flatten(h) y = Gemm <transB = 1> (f, v, b) }"""
    channels = trace(body, w=(2, 3, 3, 3), v=(5, 8), b=(5,))
    assert columns_by_row(channels) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_follows_channels_last_into_a_flattened_matrix() -> None:
    body = """g (float[1, 3, 4, 4] x) => (float[1, 5] y) <int64[2] s = {1, -1}> {
        a = Conv(x, w) t = Transpose <perm = [0, 2, 3, 1]> (a) f = Reshape(t, s) y = MatMul(f, v) }"""
    assert columns_by_row(trace(body, w=(2, 3, 3, 3), v=(8, 5))) == [0, 1, 0, 1, 0, 1, 0, 1]


def test_follows_parts_and_joins_of_channels() -> None:
    body = """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) <int64[2] s = {1, 3}> {
        a = Conv(x, w) p, q = Split <axis = 1> (a, s) r = Relu(p) c = Concat <axis = 1> (q, x, r) y = Conv(c, v) }"""
    assert columns_by_row(trace(body, w=(4, 3, 1, 1), v=(2, 7, 1, 1))) == [1, 2, 3, -1, -1, -1, 0]


def test_what_stands_side_by_side_is_scaled_as_one() -> None:
    """Below each other in a picture, both are read by the same columns."""
    body = """g (float[1, 3, 4, 4] x) => (float[1, 2, 8, 4] y) {
        a = Conv(x, w) b = Conv(x, u) c = Concat <axis = 2> (a, b) y = Conv(c, v) }"""
    channels = trace(body, w=(4, 3, 1, 1), u=(4, 3, 1, 1), v=(2, 4, 1, 1))
    assert [described(each) for each in channels.groups()] == [(["w", "u"], ["v"], 4)]
    first, second, last = (channels.sets.roots(each) for each in (
        channels.products[0].rows, channels.products[1].rows, channels.products[2].columns))  # fmt: skip
    assert first.tolist() == second.tolist() == last.tolist()


def test_follows_slices_and_picks_of_channels() -> None:
    body = """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
        <int64[3] i = {3, 0, 1}, int64[1] start = {-1}, int64[1] end = {-9}, int64[1] axis = {1},
         int64[1] step = {-1}> {
        a = Conv(x, w) b = Gather <axis = 1> (a, i) c = Slice(b, start, end, axis, step) y = Conv(c, v) }"""
    assert columns_by_row(trace(body, w=(4, 3, 1, 1), v=(2, 3, 1, 1))) == [1, 0, 3]


def test_a_depthwise_convolution_reads_channels_and_makes_others() -> None:
    body = """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        a = Conv(x, w) b = Conv <group = 4> (a, d, c) y = Conv(b, v) }"""
    channels = trace(body, w=(4, 3, 1, 1), d=(4, 1, 1, 1), c=(4,), v=(2, 4, 1, 1))
    assert [described(each) for each in channels.groups()] == [(["w"], ["d"], 4), (["d"], ["v"], 4)]
    assert [len(each.factors) for each in channels.groups()] == [0, 1]


def test_what_is_added_is_scaled_as_one() -> None:
    body = """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] z) {
        a = Conv(x, w) b = Conv(x, u) c = Add(a, b) y = Conv(c, v) z = Conv(b, t) }"""
    channels = trace(body, w=(4, 3, 1, 1), u=(4, 3, 1, 1), v=(2, 4, 1, 1), t=(2, 4, 1, 1))
    assert [described(each) for each in channels.groups()] == [(["w", "u"], ["v", "t"], 4)]


def test_follows_heads_of_attention_to_the_output_projection() -> None:
    body = """g (float[N, L, 8] x) => (float[N, L, 8] y)
        <int64[4] apart = {0, -1, 2, 4}, int64[3] joined = {0, -1, 8}> {
        n = LayerNormalization(x, gain, shift)
        q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) vb = Add(v, b)
        qh = Reshape(q, apart) qt = Transpose <perm = [0, 2, 1, 3]> (qh)
        kh = Reshape(k, apart) kt = Transpose <perm = [0, 2, 3, 1]> (kh)
        vh = Reshape(vb, apart) vt = Transpose <perm = [0, 2, 1, 3]> (vh)
        s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)
        ot = Transpose <perm = [0, 2, 1, 3]> (o) oj = Reshape(ot, joined) y = MatMul(oj, wo) }"""
    channels = trace(body, gain=(8,), shift=(8,), b=(8,), **dict.fromkeys(["wq", "wk", "wv", "wo"], (8, 8)))
    norm, value = channels.groups()
    assert described(norm) == ([], ["wq", "wk", "wv"], 8)
    assert described(value) == (["wv"], ["wo"], 8)
    assert [each.constant.name for each in norm.factors] == ["gain", "shift"]
    assert [each.constant.name for each in value.factors] == ["b"]


def test_a_gain_makes_channels_where_there_were_none() -> None:
    body = """g (float[N, 6] x) => (float[N, 2] y) {
        e = Erf(x) m = Mul(e, gain) n = Add(m, shift) y = MatMul(n, v) }"""
    (group,) = trace(body, gain=(6,), shift=(6,), v=(6, 2)).groups()
    assert described(group) == ([], ["v"], 6)
    assert [(each.constant.name, each.power) for each in group.factors] == [("gain", -1), ("shift", -1)]


def test_a_recurrent_node_reads_channels() -> None:
    body = """g (float[L, N, 3] x) => (float[L, 2, N, 4] y) {
        a = MatMul(x, w) y = LSTM <hidden_size = 4, direction = "bidirectional"> (a, i, r) }"""
    group = trace(body, w=(3, 5), i=(2, 16, 5), r=(2, 16, 4)).groups()[0]
    assert described(group) == (["w"], ["i"], 5)


BLOCKED = [
    ("y = Softmax(a)", "", "Softmax"),
    ("h = Relu(a) y = Conv(h, v) z = Identity(a)", ", float[N, 4, 4, 4] z", "is an output"),
    ("c = Clip(a, zero, six) y = Conv(c, v)", "", "one bound for all"),
    ("c = Add(a, x) y = Conv(c, v)", "", "joins it with what cannot be scaled"),
    ("y = Conv(a, w)", "", "w is shared"),
    ("c = Max(a, six) y = Conv(c, v)", "", "joins it with"),
    ("c = Concat <axis = 3> (a, x) y = Conv(c, v)", "", "Concat) joins it with what cannot be scaled"),
    ("c = Pad(a, pads, six) y = Conv(c, v)", "", "Pad"),
    ("c = Mul(a, a) y = Conv(c, v)", "", "Mul"),
    ("c = Conv(a, v) s = Sigmoid(c) y = Conv(a, s)", "", "reads its channels"),
]


@pytest.mark.parametrize(("body", "more", "reason"), BLOCKED)
def test_says_what_is_in_the_way(body: str, more: str, reason: str) -> None:
    text = f"""g (float[N, 4, 4, 4] x) => (float[N, 4, H, W] y{more})
        <float zero = {{0}}, float six = {{6}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{
        a = Conv(x, w) {body} }}"""
    channels = trace(text, w=(4, 4, 1, 1), v=(4, 4, 1, 1))
    assert not any(each.name == "a" for each in channels.groups())
    assert reason in channels.reason(channels.sources[0])


def test_a_tensor_that_a_branch_reads_stays() -> None:
    body = """g (bool c, float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) { a = Conv(x, w) y = If (c) <
        then_branch = t () => (float[N, 4, 4, 4] p) { p = Conv(a, v) },
        else_branch = e () => (float[N, 4, 4, 4] q) { q = Relu(x) }> }"""
    channels = trace(body, w=(4, 4, 1, 1), v=(4, 4, 1, 1))
    assert not channels.groups()
    assert "subgraph" in channels.reason(channels.sources[0])


def test_a_bound_can_become_one_for_each_channel() -> None:
    body = """g (float[N, 4, 4, 4] x) => (float[N, 2, 4, 4] y) <float zero = {0}, float six = {6}> {
        a = Conv(x, w) c = Clip(a, zero, six) y = Conv(c, v) }"""
    channels = trace(body, through_bounds=True, w=(4, 4, 1, 1), v=(2, 4, 1, 1))
    assert described(channels.groups()[0]) == (["w"], ["v"], 4)
    assert [each.high for each in channels.groups()[0].bounds] == [6.0]


# --- numbers -----------------------------------------------------------------------------------------------


def test_joined_sets_share_what_fixes_them() -> None:
    sets = ChannelSets()
    first, second = sets.fresh((3,)), sets.fresh((3, 1))
    sets.fix(first[1], "because")
    sets.join(first[:, None], second, "never")
    assert sets.is_fixed(second).tolist() == [[False], [True], [False]]
    assert sets.reason(second) == "because"


def test_reshaping_keeps_blocks_of_trailing_axes() -> None:
    numbers = np.arange(1, 7)
    np.testing.assert_array_equal(reformed(numbers, (None, 6), (None, 2, 3)), numbers.reshape(2, 3))
    np.testing.assert_array_equal(reformed(numbers[:, None], (None, 6, 2), (None, 12)), numbers.repeat(2))
    np.testing.assert_array_equal(reformed(numbers.repeat(2), (None, 12), (None, 6, 2)), numbers[:, None])
    assert reformed(numbers, (None, 6), (None, 4)) is None
    assert reformed(numbers[:, None], (None, 6, None), (None, 12)) is None


def test_channels_along_an_axis() -> None:
    assert along(np.array([[1], [2]]), -2, 2).tolist() == [1, 2]
    assert along(np.array([[1], [2]]), -1, 2) is None
    assert along(np.array(7), -1, 3).tolist() == [7, 7, 7]
    assert condensed(np.array([[1, 1], [2, 2]])).tolist() == [[1], [2]]
