"""dependencies, remove_units: what is cut together, what is left alone and why, and that the rest computes the same."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup, dependencies
from onnxcomp.graph.channels.removal import add_units, remove_units
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.testing.comparing import Feeds, rounding_of, run
from onnxcomp.testing.models import draw_models, feeds_for
from tests.conformance.cases import Case, node_cases, not_sampled, sampled, weight_cases
from tests.graph.channels.cutting import check_cut, dependencies_of, picks, prepared
from tests.graph.channels.drawn import networks
from tests.graph.channels.wrapping import wrapped
from tests.passes.exactly import floats, model
from tests.test_real_models import MODELS, real

THOROUGH = "ONNXCOMP_THOROUGH" in os.environ  # `make test-thorough`
GROUPS_OF_REAL_MODELS = 4  # cut alone; all are cut at once as well
ANY_NETWORK = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def built(body: str, *, opset: int = 17, more: str = "", **shapes: tuple[int, ...]) -> Model:
    proto = model(body, opset=opset, more=more)
    for seed, (name, shape) in enumerate(shapes.items()):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(*shape, seed=seed), name))
    return load(proto)


def described(found: Dependencies) -> dict[str, tuple[int, list[str], list[str]]]:
    """For each group its units, what is cut, and which of that reads its channels."""
    return {each.name: (each.units.size, constants(each, is_read=False), constants(each, is_read=True))
            for each in found.groups}  # fmt: skip


def constants(group: DependencyGroup, *, is_read: bool) -> list[str]:
    return sorted({each.constant.name for each in group.slices if each.is_read == is_read})


def check_all(
    source: Model,
    feeds: Feeds,
    *,
    seed: int = 0,
    tolerance: float = 1e-4,
    most: int | None = None,
    thorough: bool = THOROUGH,
) -> None:
    """Hold a cut of every group, or of so many groups, to the oracle, and one of all groups at once."""
    tried = list(picks(dependencies_of(source), seed=seed, thorough=thorough).values())
    if most is not None and not thorough:
        tried = [*tried[: -1 : max(1, len(tried) // most)], *tried[-1:]]
    for pick in tried:
        check_cut(source, pick, feeds, tolerance=tolerance)


# --- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", MODELS)
def test_real_models_without_channels_are_blind_to_them(file: str) -> None:
    found = real(file)
    check_all(prepared(found.model), found.feeds, most=GROUPS_OF_REAL_MODELS)


@settings(ANY_NETWORK, max_examples=60)
@given(networks(), st.booleans())
def test_networks_without_channels_are_blind_to_them(drawn: tuple[onnx.ModelProto, Feeds], is_prepared: bool) -> None:
    proto, feeds = drawn
    check_all(prepared(load(proto)) if is_prepared else load(proto), feeds)


@pytest.mark.slow
@settings(ANY_NETWORK, max_examples=1500 if THOROUGH else 100)
@given(networks(max_blocks=12), st.booleans(), st.integers(0, 100))
def test_many_networks_without_channels_are_blind_to_them(
    drawn: tuple[onnx.ModelProto, Feeds], is_prepared: bool, seed: int
) -> None:
    proto, feeds = drawn
    check_all(prepared(load(proto)) if is_prepared else load(proto), feeds, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_exported_forms_without_channels_are_blind_to_them(seed: int) -> None:
    for proto in draw_models(10, seed):
        check_all(prepared(load(proto)), feeds_for(proto), tolerance=max(1e-4, rounding_of(proto)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 40 if THOROUGH else 6))
def test_more_exported_forms_without_channels_are_blind_to_them(seed: int) -> None:
    for proto in draw_models(20, seed):
        for source in load(proto), prepared(load(proto)):
            check_all(source, feeds_for(proto), tolerance=max(1e-4, rounding_of(proto)))


SHARDS = 8


@pytest.mark.parametrize("shard", range(SHARDS))
def test_channels_go_through_every_operator_or_stop_there(shard: int) -> None:
    cases = [*sampled(weight_cases().cases), *sampled(node_cases().cases)]
    check_wrapped(cases[shard::SHARDS])


@pytest.mark.slow
@pytest.mark.skipif(not THOROUGH, reason="takes long: make test-thorough")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_channels_go_through_every_node_test_or_stop_there(shard: int) -> None:
    cases = [*not_sampled(weight_cases().cases), *not_sampled(node_cases().cases)]
    check_wrapped(cases[shard::SHARDS])


def check_wrapped(cases: list[Case]) -> None:
    for case in cases:
        for proto in wrapped(case) if case.repeats else ():
            source = load(proto)
            if dependencies_of(source).groups and runs(proto, case.feeds):
                check_all(source, case.feeds, tolerance=max(1e-4, rounding_of(proto)))


def runs(proto: onnx.ModelProto, feeds: Feeds) -> bool:
    """Whether ONNX Runtime has the operators in these types."""
    try:
        run(proto, feeds)
    except OnnxcompError:
        return False
    return True


# --- what goes together ----------------------------------------------------------------------------------------------

CONV = "g (float[N, 3, 4, 4] x) => (float[N, 5, H, W] y)"
ROWS = "g (float[N, 6] x) => (float[N, 5] y)"
WORDS = "g (float[N, L, 6] x) => (float[N, L, 5] y)"
FEEDS = {CONV: floats(2, 3, 4, 4), ROWS: floats(2, 6), WORDS: floats(2, 4, 6)}

TOGETHER = {
    "a bias and a batch normalization": (
        CONV, "a = Conv(x, w, b) n = BatchNormalization(a, s, c, m, v) h = Relu(n) y = Conv(h, u)",
        {"w": (4, 3, 3, 3), "b": (4,), "s": (4,), "c": (4,), "m": (4,), "u": (5, 4, 1, 1)},
        {"a": (4, ["b", "c", "m", "s", "v", "w"], ["u"])},
    ),
    "a residual": (
        CONV, "a = Conv(x, w) b = Conv(a, v) r = Add(a, b) y = Conv(r, u)",
        {"w": (4, 3, 1, 1), "v": (4, 4, 1, 1), "u": (5, 4, 1, 1)},
        {"a": (4, ["v", "w"], ["u", "v"])},
    ),
    "a depthwise kernel": (
        CONV, "a = Conv(x, w) d = Conv<group = 4>(a, v) y = Conv(d, u)",
        {"w": (4, 3, 1, 1), "v": (4, 1, 3, 3), "u": (5, 4, 1, 1)},
        {"a": (4, ["v", "w"], ["u"])},
    ),
    "whole groups, of as many channels as there are groups at most": (
        CONV, "a = Conv(x, w) d = Conv<group = 4>(a, v) y = Conv(d, u)",
        {"w": (8, 3, 1, 1), "v": (12, 2, 3, 3), "u": (5, 12, 1, 1)},
        {"a": (4, ["v", "w"], ["u"])},
    ),
    "the same channel of each group": (
        CONV, "a = Conv(x, w) d = Conv<group = 2>(a, v) y = Conv(d, u)",
        {"w": (8, 3, 1, 1), "v": (6, 4, 3, 3), "u": (5, 6, 1, 1)},
        {"a": (4, ["w"], ["v"]), "d": (3, ["v"], ["u"])},
    ),
    "transposed convolutions": (
        CONV, "a = Conv(x, w) b = ConvTranspose(a, t) d = ConvTranspose<group = 4>(b, v, c) y = ConvTranspose(d, u)",
        {"w": (4, 3, 1, 1), "t": (4, 4, 3, 3), "v": (4, 2, 3, 3), "c": (8,), "u": (8, 5, 1, 1)},
        {"a": (4, ["w"], ["t"]), "b": (4, ["c", "t", "v"], ["u"])},
    ),
    "a squeeze and excitation": (
        CONV, """a = Conv(x, w) p = GlobalAveragePool(a) q = Conv(p, s) r = Relu(q) e = Conv(r, t) h = Sigmoid(e)
                 m = Mul(a, h) y = Conv(m, u)""",
        {"w": (4, 3, 1, 1), "s": (2, 4, 1, 1), "t": (4, 2, 1, 1), "u": (5, 4, 1, 1)},
        {"a": (4, ["t", "w"], ["s", "u"]), "q": (2, ["s"], ["t"])},
    ),
    "a flattened picture": (
        "g (float[N, 3, 4, 4] x) => (float[N, 5] y)", "a = Conv(x, w) f = Flatten(a) y = MatMul(f, u)",
        {"w": (4, 3, 3, 3), "u": (16, 5)}, {"a": (4, ["w"], ["u"])},
    ),
    "a concatenation": (
        CONV, "a = Conv(x, w) b = Conv(x, v) c = Concat<axis = 1>(a, b) y = Conv(c, u)",
        {"w": (4, 3, 1, 1), "v": (2, 3, 1, 1), "u": (5, 6, 1, 1)},
        {"a": (4, ["w"], ["u"]), "b": (2, ["v"], ["u"])},
    ),
    "two halves that are multiplied": (
        WORDS, "a = MatMul(x, w) p, q = Split<axis = 2>(a, s) h = Mul(p, q) y = MatMul(h, u)",
        {"w": (6, 8), "u": (4, 5)}, {"a": (4, ["w"], ["u"])},
    ),
    "hidden units of a block": (
        WORDS, "a = MatMul(x, w) c = Add(a, b) h = Gelu(c) y = MatMul(h, u)",
        {"w": (6, 8), "b": (8,), "u": (8, 5)}, {"a": (8, ["b", "w"], ["u"])},
    ),
    "a bias that two nodes get through Identity": (
        WORDS, """d = Identity(b) a = MatMul(x, w) c = Add(a, d) e = Identity(b) h = MatMul(c, v) k = Add(h, e)
        y = MatMul(k, u)""",
        {"w": (6, 8), "b": (8,), "v": (8, 8), "u": (8, 5)}, {"a": (8, ["b", "w"], ["v"]), "h": (8, ["b", "v"], ["u"])},
    ),
    "hidden units of both directions": (
        "g (float[L, N, 6] x) => (float[L, 2, N, D] y)",
        'h, z = GRU<hidden_size = 3, direction = "bidirectional">(x, w, r, b) y = MatMul(h, u)',
        {"w": (2, 9, 6), "r": (2, 9, 3), "b": (2, 18), "u": (3, 5)}, {"h": (3, ["b", "r", "w"], ["r", "u"])},
    ),
    "columns of a table": (
        "g (int64[N, L] x) => (float[N, L, 5] y)", "a = Gather(w, x) y = MatMul(a, u)",
        {"w": (7, 6), "u": (6, 5)}, {"a": (6, ["w"], ["u"])},
    ),
    "the addend of a product": (
        ROWS, "a = Gemm(x, w) b = Gemm(x, v, a) y = Gemm(b, u)", {"w": (6, 4), "v": (6, 4), "u": (4, 5)},
        {"a": (4, ["v", "w"], ["u"])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOGETHER)
def test_channels_that_go_together(kind: str) -> None:
    head, body, shapes, expected = TOGETHER[kind]
    sizes = ", int64[2] s = {4, 4}" if "Split" in body else ""
    variance = ", float[4] v = {1, 2, 3, 0.5}" if "BatchNormalization" in body else ""
    more = f"{sizes}{variance}".removeprefix(", ")
    source = built(f"{head} {f'<{more}>' if more else ''} {{ {body} }}", opset=20, **shapes)
    found = dependencies_of(source)
    assert described(found) == expected
    feed = {"g (int64[N, L] x)": np.array([[1, 2, 3], [0, 6, 1]])}.get(head.split(" =>")[0], FEEDS.get(head))
    first = source.proto.graph.input[0].type.tensor_type.shape.dim
    check_all(source, {"x": floats(*[each.dim_value or 2 for each in first]) if feed is None else feed}, thorough=True)


def attention(shape: str, opset: int = 17) -> Model:
    """Two heads of three; shape: of the Reshape that puts them apart."""
    body = f"""g (float[N, L, 6] x) => (float[N, L, 5] y)
        <int64[4] apart = {{{shape}}}, int64[3] joined = {{0, 0, -1}}> {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        q4 = Reshape(q, apart) k4 = Reshape(k, apart) v4 = Reshape(v, apart)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        vt = Transpose<perm = [0, 2, 1, 3]>(v4) s = MatMul(qt, kt) p = Softmax<axis = -1>(s) o = MatMul(p, vt)
        t = Transpose<perm = [0, 2, 1, 3]>(o) z = Reshape(t, joined) y = MatMul(z, u) }}"""
    return built(body, opset=opset, wq=(6, 6), wk=(6, 6), wv=(6, 6), u=(6, 5))


@pytest.mark.parametrize("shape", ["0, 0, 2, 3", "0, 0, -1, 3", "0, 0, 2, -1"])
def test_heads_go_whole(shape: str) -> None:
    source = attention(shape)
    found = dependencies_of(source)
    assert described(found) == {"q": (2, ["wk", "wq", "wv"], ["u"])}
    cut = check_cut(source, lambda now: now.groups[0].units[:1], {"x": floats(2, 4, 6)})
    shapes = {each.name: list(each.dims) for each in cut.proto.graph.initializer}
    assert shapes["wq"] == [6, 3] and shapes["u"] == [3, 5]


MICROSOFT = ', "com.microsoft" : 1'
PROJECTED = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
THREE = {"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "u": (6, 5)}
HEADS = {
    "of ONNX, along": (
        f"{PROJECTED} z = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) y = MatMul(z, u)", THREE, 23,
    ),
    "of ONNX, apart": (
        f"""{PROJECTED} q4 = Reshape(q, s) k4 = Reshape(k, s) v4 = Reshape(v, s) qt = Transpose<perm = [0, 2, 1, 3]>(q4)
        kt = Transpose<perm = [0, 2, 1, 3]>(k4) vt = Transpose<perm = [0, 2, 1, 3]>(v4) a = Attention(qt, kt, vt)
        t = Transpose<perm = [0, 2, 1, 3]>(a) z = Reshape(t, r) y = MatMul(z, u)""", THREE, 23,
    ),
    "of ONNX Runtime, with a bias": (
        f"{PROJECTED} z = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v, b) y = MatMul(z, u)",
        {**THREE, "b": (18,)}, 17,
    ),
    "of ONNX Runtime, with weights": (
        "z = com.microsoft.Attention<num_heads = 2>(x, w, b) y = MatMul(z, u)",
        {"w": (6, 18), "b": (18,), "u": (6, 5)}, 17,
    ),
    "of ONNX Runtime, with weights of other sizes": (
        "z = com.microsoft.Attention<num_heads = 2, qkv_hidden_sizes = [4, 4, 8]>(x, w, b) y = MatMul(z, u)",
        {"w": (6, 16), "b": (16,), "u": (8, 5)}, 17,
    ),
    "by Einsum": (
        """q = Einsum<equation = "abc,cde->abde">(x, w3) k = Einsum<equation = "abc,cde->abde">(x, v3)
        v = Einsum<equation = "abc,cde->abde">(x, u3) s0 = Einsum<equation = "abde,afde->adbf">(q, k)
        p = Softmax<axis = -1>(s0) o = Einsum<equation = "adbf,afde->abde">(p, v)
        y = Einsum<equation = "abde,dec->abc">(o, o3)""",
        {"w3": (6, 2, 3), "v3": (6, 2, 3), "u3": (6, 2, 3), "o3": (2, 3, 5)}, 17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_fused_attentions_go_whole(kind: str) -> None:
    body, shapes, opset = HEADS[kind]
    head = f"{WORDS} <int64[4] s = {{0, 0, 2, 3}}, int64[3] r = {{0, 0, -1}}>"
    source = built(f"{head} {{ {body} }}", opset=opset, more=MICROSOFT, **shapes)
    found = dependencies_of(source)
    assert [(each.units.size, each.kind) for each in found.groups] == [(2, "heads")]
    assert {each.constant.name for each in found.groups[0].slices} == set(shapes)
    check_all(source, {"x": floats(2, 4, 6)}, thorough=True)


FUSED = {
    "a convolution with an addend": (
        CONV, """a = Conv(x, w) b = com.microsoft.FusedConv<activation = "Relu">(x, v, c, a)
        y = Conv(b, u)""", {"w": (4, 3, 1, 1), "v": (4, 3, 1, 1), "c": (4,), "u": (5, 4, 1, 1)},
        {"a": (4, ["c", "v", "w"], ["u"])},
    ),
    "a product with turned operands": (
        WORDS, """a = MatMul(x, w) b = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(a, v)
        y = com.microsoft.FusedMatMul<transB = 1>(b, u)""", {"w": (6, 4), "v": (3, 4), "u": (5, 3)},
        {"a": (4, ["w"], ["v"]), "b": (3, ["v"], ["u"])},
    ),
    "an Einsum with a matrix": (
        WORDS, """a = Einsum<equation = "abc,cd->abd">(x, w) b = Relu(a) y = Einsum<equation = "abc,dc->abd">(b, u)""",
        {"w": (6, 4), "u": (5, 4)}, {"a": (4, ["w"], ["u"])},
    ),
    "an Einsum element by element": (
        WORDS, """a = MatMul(x, w) b = Einsum<equation = "abc,c->abc">(a, s) y = MatMul(b, u)""",
        {"w": (6, 4), "s": (4,), "u": (4, 5)}, {"a": (4, ["s", "w"], ["u"])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED)
def test_channels_of_fused_operators_go_together(kind: str) -> None:
    head, body, shapes, expected = FUSED[kind]
    source = built(f"{head} {{ {body} }}", more=MICROSOFT, **shapes)
    assert described(dependencies_of(source)) == expected
    first = source.proto.graph.input[0].type.tensor_type.shape.dim
    check_all(source, {"x": floats(*[each.dim_value or 2 for each in first])}, thorough=True)


def test_channels_behind_a_scaler_are_found() -> None:
    body = """s = ai.onnx.ml.Scaler<offset = [0.5, 1.0, 1.5, 0.0, 0.0, 0.0], scale = [2.0, 1.0, 0.5, 1.0, 3.0, 1.0]>(x)
        f = Cast<to = 1>(s) a = MatMul(f, w) c = Add(a, b) h = Relu(c) y = MatMul(h, u)"""
    source = built(f"{ROWS} {{ {body} }}", more=', "ai.onnx.ml" : 1', w=(6, 8), b=(8,), u=(8, 5))
    assert described(dependencies_of(source)) == {"a": (8, ["b", "w"], ["u"])}
    check_all(source, {"x": floats(2, 6)}, thorough=True)


def test_a_cut_of_one_unit_is_as_by_hand() -> None:
    source = built(f"{CONV} {{ a = Conv(x, w, b) h = Relu(a) y = Conv(h, u) }}", w=(4, 3, 1, 1), b=(4,), u=(5, 4, 1, 1))
    cut = check_cut(source, lambda now: now.groups[0].units[[1, 2]], {"x": floats(2, 3, 4, 4)})
    after = {each.name: onnx.numpy_helper.to_array(each) for each in cut.proto.graph.initializer}
    before = {each.name: onnx.numpy_helper.to_array(each) for each in source.proto.graph.initializer}
    np.testing.assert_array_equal(after["w"], before["w"][[0, 3]])
    np.testing.assert_array_equal(after["b"], before["b"][[0, 3]])
    np.testing.assert_array_equal(after["u"], before["u"][:, [0, 3]])


def test_shared_vectors_are_cut_for_each_reader() -> None:
    body = f"{CONV} {{ a = Conv(x, w, b) h = Conv(a, v, b) y = Conv(h, u) }}"
    source = built(body, w=(4, 3, 1, 1), v=(4, 4, 1, 1), b=(4,), u=(5, 4, 1, 1))
    cut = check_cut(source, lambda now: now.groups[0].units[:2], {"x": floats(2, 3, 4, 4)})
    assert sorted(list(each.dims) for each in cut.proto.graph.initializer if len(each.dims) == 1) == [[2], [4]]


# --- what has to stay ------------------------------------------------------------------------------------------------

STAYS = {
    "an output of the graph": (CONV, "y = Conv(x, w)", {"w": (5, 3, 1, 1)}, "y", "it is an output of its graph"),
    "a softmax over channels": (
        CONV, "a = Conv(x, w) s = Softmax<axis = 1>(a) y = Conv(s, u)", {"w": (4, 3, 1, 1), "u": (5, 4, 1, 1)},
        "a", "s (Softmax) reads its channels and cannot be cut",
    ),
    "a layer normalization over channels": (
        WORDS, "a = MatMul(x, w) n = LayerNormalization(a, s) y = MatMul(n, u)", {"w": (6, 4), "s": (4,), "u": (4, 5)},
        "a", "n (LayerNormalization) reads its channels and cannot be cut",
    ),
    "a mean over channels": (
        WORDS, "a = MatMul(x, w) m = ReduceMax<keepdims = 1>(a) n = Sub(a, m) y = MatMul(n, u)",
        {"w": (6, 4), "u": (4, 5)},
        "a", "m (ReduceMax) reads its channels and cannot be cut",
    ),
    "a matrix that another node needs": (
        WORDS, "a = MatMul(x, w) b = MatMul(x, w) n = Softmax(b) h = MatMul(n, u) k = MatMul(a, v) y = Add(h, k)",
        {"w": (6, 4), "u": (4, 5), "v": (4, 5)}, "a", "n (Softmax) reads its channels and cannot be cut",
    ),
    "a residual with an input": (
        WORDS, "a = MatMul(x, w) h = Add(a, x) y = MatMul(h, u)", {"w": (6, 6), "u": (6, 5)},
        "a", "h (Add) joins it with what cannot be cut",
    ),
    "what a fused normalization adds": (
        WORDS, "a = MatMul(x, w) n = com.microsoft.SkipLayerNormalization(a, x, s) y = MatMul(n, u)",
        {"w": (6, 6), "s": (6,), "u": (6, 5)}, "a", "n (SkipLayerNormalization) reads its channels and cannot be cut",
    ),
    "a group normalization": (
        CONV, "a = Conv(x, w) n = GroupNormalization<num_groups = 2>(a, s, c) y = Conv(n, u)",
        {"w": (4, 3, 1, 1), "s": (4,), "c": (4,), "u": (5, 4, 1, 1)},
        "a", "n (GroupNormalization) reads its channels and cannot be cut",
    ),
    "heads that share keys": (
        WORDS, "q = MatMul(x, w) z = Attention<q_num_heads = 4, kv_num_heads = 2>(q, x, x) y = MatMul(z, u)",
        {"w": (6, 12), "u": (12, 5)}, "q", "z (Attention) reads its channels and cannot be cut",
    ),
    "a sum of an Einsum": (
        WORDS, """a = MatMul(x, w) b = Einsum<equation = "abc,ab->ab">(a, s)
        y = Einsum<equation = "ab,cd->abd">(b, u)""",
        {"w": (6, 4), "s": (1, 1), "u": (4, 5)}, "a", "b (Einsum) reads its channels and cannot be cut",
    ),
    "a single channel": (
        WORDS, "a = MatMul(x, w) y = MatMul(a, u)", {"w": (6, 1), "u": (1, 5)}, "a", "a has no other channel",
    ),
    "a product of two sequences": (
        WORDS, "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) s = MatMul(a, t) h = MatMul(s, a) y = MatMul(h, u)",
        {"w": (6, 4), "u": (4, 5)}, "a", "s has no other channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STAYS)
def test_channels_that_have_to_stay(kind: str) -> None:
    head, body, shapes, name, reason = STAYS[kind]
    found = dependencies_of(built(f"{head} {{ {body} }}", opset=21, more=MICROSOFT, **shapes))
    assert found.declined[name] == reason
    assert name not in {source.key for group in found.groups for source in group.sources}


LOST = {
    "an operator that is not known": ("s = mine.Unlike(x) a = MatMul(s, w)", "shapes behind s (Unlike) are unknown"),
    "one further back": (
        "s = mine.Unlike(x) r = Relu(s) t = Add(r, x) a = MatMul(t, w)", "shapes behind s (Unlike) are unknown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_products_of_unknown_shapes_are_declined_with_what_hides_them(kind: str) -> None:
    body, reason = LOST[kind]
    source = built(f"{ROWS} {{ {body} h = Relu(a) y = MatMul(h, u) }}", more=', "mine" : 1', w=(6, 8), u=(8, 5))
    found = dependencies_of(source)
    assert not found.groups
    assert found.declined == {"a": reason, "y": reason}


def test_products_of_an_input_without_a_shape_are_declined() -> None:
    source = built("g (float x) => (float y) { a = MatMul(x, w) y = MatMul(a, u) }", w=(6, 8), u=(8, 5))
    source.proto.graph.input[0].type.tensor_type.ClearField("shape")
    found = dependencies_of(load(source.proto))
    assert found.declined == {"a": "the shape of x is unknown", "y": "the shape of x is unknown"}


def test_something_of_every_axis_has_to_stay() -> None:
    source = built(f"{WORDS} {{ a = MatMul(x, w) y = MatMul(a, u) }}", w=(6, 4), u=(4, 5))
    found = dependencies_of(source)
    with pytest.raises(ValueError, match="all channels of a tensor would go"):
        remove_units(found, found.groups[0].units)
    assert found.slices[0].constant.shape == (6, 4)


def test_channels_that_have_to_stay_are_not_cut() -> None:
    found = dependencies_of(built(f"{WORDS} {{ y = MatMul(x, w) }}", w=(6, 5)))
    with pytest.raises(ValueError, match="have to stay"):
        remove_units(found, found.sources[0].numbers[:1])


# --- channels of zeros -----------------------------------------------------------------------------------------------


@settings(ANY_NETWORK, max_examples=40)
@given(networks(), st.integers(0, 20))
def test_nothing_sees_channels_that_are_added(drawn: tuple[onnx.ModelProto, Feeds], which: int) -> None:
    proto, feeds = drawn
    source = prepared(load(proto))
    groups = dependencies_of(source).groups
    if not groups:
        return
    graph = open_graph(source)
    found = dependencies(graph)
    units = found.groups[which % len(groups)].units
    add_units(found, int(units[which % units.size]), 3)
    wider = close_graph(graph)
    expected, got = (Session(each.to_bytes(), optimization="none").run(feeds) for each in (source, wider))
    for name, value in got.items():
        if np.isfinite(value).all():  # 0 / 0 is seen by all
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4 * max(1.0, float(np.abs(value).max())))
