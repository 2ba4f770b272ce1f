"""fuse-batch-norm: outputs stay within float rounding, in every geometry; what cannot be fused says why."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from onnxcomp.contract import Context
from tests.passes.exactly import Rewrite, check_same, floats, model, rewrite

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums of at most 100 products of size 1


def filled(body: str, *, opset: int = 17, more: str = "", **constants: tuple[int, ...]) -> ModelProto:
    """The model with normally distributed initializers of these shapes; those called v are positive."""
    proto = model(body, opset=opset, more=more)
    for seed, (name, shape) in enumerate(constants.items()):
        values = floats(*shape, seed=seed + 1)
        values = np.abs(values) + 0.5 if name.startswith("v") else values
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def fuse(proto: ModelProto, **feeds: np.ndarray) -> Rewrite:
    done = rewrite(proto, "fuse-batch-norm")
    check_same(done, feeds, **ROUNDING)
    return done


@pytest.mark.parametrize(
    ("groups", "bias", "rank", "opset"),
    [*itertools.product([1, 2, 4], [True, False], [3, 4], [17]), (1, True, 5, 7), (2, False, 4, 14)],
)
def test_fuses_into_convolutions(groups: int, bias: bool, rank: int, opset: int) -> None:
    dims = ", ".join(["N", "4", *["6"] * (rank - 2)])
    out = ", ".join(["N", "8", *["4"] * (rank - 2)])
    body = f"""g (float[{dims}] x) => (float[{out}] y) {{
        h = Conv <group = {groups}> (x, w{", b" if bias else ""}) y = BatchNormalization (h, s, o, m, v) }}"""
    constants = {"w": (8, 4 // groups, *[3] * (rank - 2)), "s": (8,), "o": (8,), "m": (8,), "v": (8,)}
    if bias:
        constants["b"] = (8,)
    done = fuse(filled(body, opset=opset, **constants), x=floats(2, 4, *[6] * (rank - 2)))
    assert done.ops == ["Conv"] and len(done.graph.initializer) == 2


def test_says_that_a_bias_is_another_one_now() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) {
        h = Conv (x, w, b) y = BatchNormalization (h, s, o, m, v) }"""
    constants = {"w": (8, 4, 3, 3), "s": (8,), "o": (8,), "m": (8,), "v": (8,), "b": (8,)}
    done = fuse(filled(body, **constants), x=floats(2, 4, 6, 6))
    assert done.outcome.origins["b"].tensor is None


@pytest.mark.parametrize(("groups", "bias"), [*itertools.product([1, 2, 4], [True, False])])
def test_fuses_into_transposed_convolutions(groups: int, bias: bool) -> None:
    body = f"""g (float[N, 4, 5, 5] x) => (float[N, c, a, b] y) {{
        h = ConvTranspose <group = {groups}, strides = [2, 2]> (x, w{", b" if bias else ""})
        y = BatchNormalization <epsilon = 0.01> (h, s, o, m, v) }}"""
    constants = {"w": (4, 8 // groups, 3, 3), "s": (8,), "o": (8,), "m": (8,), "v": (8,)}
    if bias:
        constants["b"] = (8,)
    done = fuse(filled(body, **constants), x=floats(2, 4, 5, 5))
    assert done.ops == ["ConvTranspose"]


@pytest.mark.parametrize(
    ("transposed", "bias", "attributes"),
    [
        *itertools.product([0, 1], [None, (), (1,), (7,), (1, 7), (3, 1), (3, 7)], [""]),
        (0, (7,), ", alpha = 0.5, beta = 2.0"),
        (1, None, ", alpha = 2.0, beta = 0.0, transA = 1"),
        (0, (7,), ", beta = 0.0"),
    ],
)
def test_fuses_into_gemm(transposed: int, bias: tuple[int, ...] | None, attributes: str) -> None:
    body = f"""g (float[A, B] x) => (float[3, 7] y) {{
        h = Gemm <transB = {transposed} {attributes}> (x, w{"" if bias is None else ", b"})
        y = BatchNormalization (h, s, o, m, v) }}"""
    constants = {"w": (7, 5) if transposed else (5, 7), "s": (7,), "o": (7,), "m": (7,), "v": (7,)}
    if bias is not None:
        constants["b"] = bias
    x = floats(5, 3) if "transA" in attributes else floats(3, 5)
    done = fuse(filled(body, **constants), x=x)
    assert done.ops == ["Gemm"]


def test_fuses_into_matmul_and_its_bias() -> None:
    body = """g (float[N, 5] x) => (float[N, 7] y, float[N, 7] z) {
        h = MatMul(x, w) y = BatchNormalization (h, s, o, m, v)
        k = MatMul(x, u) l = Add(b, k) z = BatchNormalization (l, s, o, m, v) }"""
    vectors = dict.fromkeys("somvb", (7,))
    done = fuse(filled(body, w=(5, 7), u=(5, 7), **vectors), x=floats(3, 5))
    assert done.ops == ["MatMul", "Add", "MatMul", "Add"]


def test_leaves_matmul_whose_columns_are_no_channels() -> None:
    body = """g (float[N, 7, 5] x) => (float[N, 7, 7] y) {
        h = MatMul(x, w) y = BatchNormalization (h, s, o, m, v) }"""
    done = fuse(filled(body, w=(5, 7), **dict.fromkeys("somv", (7,))), x=floats(2, 7, 5))
    assert "not the columns" in done.skipped("y")


def test_fuses_scales_and_shifts_by_constants() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {
        h = Conv(x, w) i = Mul(s, h) j = Add(i, o) k = Sub(j, m) y = Div(k, v) }"""
    done = fuse(filled(body, w=(8, 4, 1, 1), s=(1, 8, 1, 1), o=(8, 1, 1), m=(), v=(1,)), x=floats(2, 4, 6, 6))
    assert done.ops == ["Conv"]


@pytest.mark.parametrize("shape", [(6,), (8, 6, 1), (2, 8, 1, 1), (1, 1, 8, 1, 1)])
def test_leaves_constants_that_are_not_one_value_a_channel(shape: tuple[int, ...]) -> None:
    outer = "a, N" if len(shape) == 5 else "N"
    body = f"""g (float[N, 4, 6, 6] x) => (float[{outer}, 8, 6, 6] y) {{ h = Conv(x, w) y = Mul(h, s) }}"""
    assert not fuse(filled(body, w=(8, 4, 1, 1), s=shape), x=floats(2, 4, 6, 6)).outcome.changed


def test_leaves_reciprocals_and_differences_from_constants() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) { h = Conv(x, w) i = Sub(s, h) y = Div(s, i) }"""
    assert not fuse(filled(body, w=(8, 4, 1, 1), s=()), x=floats(2, 4, 6, 6)).outcome.changed


CONV_BN = """g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y{more}) {{
    h = Conv(x, w) {between} y = BatchNormalization (h, s, o, m, v) {after} }}"""
VECTORS = dict.fromkeys("somv", (8,))


def test_leaves_what_is_read_in_between() -> None:
    body = CONV_BN.format(more=", float[N, 8, 6, 6] z", between="", after="z = Relu(h)")
    done = fuse(filled(body, w=(8, 4, 1, 1), **VECTORS), x=floats(2, 4, 6, 6))
    assert "other readers" in done.skipped("y")


def test_leaves_shared_weights() -> None:
    body = CONV_BN.format(more=", float[N, 8, 6, 6] z", between="", after="z = Conv(x, w)")
    done = fuse(filled(body, w=(8, 4, 1, 1), **VECTORS), x=floats(2, 4, 6, 6))
    assert "weight has other readers" in done.skipped("y")


def test_keeps_a_shared_bias_for_its_other_reader() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y, float[8] z) {
        h = Conv(x, w, b) y = BatchNormalization (h, s, o, m, v) z = Neg(b) }"""
    done = fuse(filled(body, w=(8, 4, 1, 1), b=(8,), **VECTORS), x=floats(2, 4, 6, 6))
    assert done.ops == ["Conv", "Neg"]


def test_leaves_batch_norm_that_stands_alone_or_before() -> None:
    body = """g (float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) {
        h = BatchNormalization (x, s, o, m, v) r = Relu(h) y = Conv(r, w) }"""
    done = fuse(filled(body, w=(4, 8, 1, 1), **VECTORS), x=floats(2, 8, 6, 6))
    assert "no node" in done.skipped("h")


def test_leaves_weights_that_would_not_be_finite() -> None:
    proto = filled(CONV_BN.format(more="", between="", after=""), w=(8, 4, 1, 1), **VECTORS)
    scale = next(each for each in proto.graph.initializer if each.name == "s")
    scale.raw_data = np.full(8, 3e38, np.float32).tobytes()
    done = rewrite(proto, "fuse-batch-norm")
    assert "not finite" in done.skipped("y") and done.ops == ["Conv", "BatchNormalization"]


def test_leaves_weights_that_are_inputs() -> None:
    body = """g (float[N, 4, 6, 6] x, float[8, 4, 1, 1] w) => (float[N, 8, 6, 6] y) {
        h = Conv(x, w) y = BatchNormalization (h, s, o, m, v) }"""
    done = fuse(filled(body, **VECTORS), x=floats(2, 4, 6, 6), w=floats(8, 4, 1, 1))
    assert "not a constant" in done.skipped("y")


def test_leaves_training_mode() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y, float[8] a, float[8] b) {
        h = Conv(x, w) y, a, b = BatchNormalization <training_mode = 1> (h, s, o, m, v) }"""
    done = rewrite(filled(body, w=(8, 4, 1, 1), **VECTORS), "fuse-batch-norm")
    assert "training" in done.skipped("y")


def test_fuses_in_subgraphs_and_functions() -> None:
    body = """g (bool c, float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) { y = If (c) <
        then_branch = t () => (float[N, 8, 6, 6] a) { h = Conv(x, w) a = BatchNormalization (h, s, o, m, v) },
        else_branch = e () => (float[N, 8, 6, 6] b) { b = local.f(x, k) }> }
        <domain: "local", opset_import: ["" : 17]> f (i, j) => (q)
        { l = Conv(i, j) two = Constant <value_float = 2.0> () q = Mul(l, two) }"""
    proto = filled(body, more=', "local" : 1', w=(8, 4, 1, 1), k=(8, 4, 1, 1), **VECTORS)
    done = rewrite(proto, "fuse-batch-norm")
    assert done.counts == {"If": 1, "Conv": 2, "f": 1, "Mul": 1, "Constant": 1}  # j is not a constant
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(2, 4, 6, 6)}, **ROUNDING)


def test_leaves_excluded_weights() -> None:
    proto = filled(CONV_BN.format(more="", between="", after=""), w=(8, 4, 1, 1), **VECTORS)
    assert not rewrite(proto, "fuse-batch-norm", context=Context(exclude=("w",))).outcome.changed


@pytest.mark.parametrize(("number", "dtype", "tolerance"), [(10, np.float16, 1e-2), (11, np.float64, 1e-12)])
def test_rounds_once_to_the_type_of_the_weight(number: int, dtype: type, tolerance: float) -> None:
    proto = filled(CONV_BN.format(more="", between="", after=""), w=(8, 4, 1, 1), **VECTORS)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = number
    done = rewrite(proto, "fuse-batch-norm")
    assert done.ops == ["Conv"]
    feeds = {"x": floats(2, 4, 6, 6).astype(dtype)}  # ONNX Runtime has no such Conv on CPU
    expected, got = (ReferenceEvaluator(each.proto).run(None, feeds)[0] for each in (done.before, done.after))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_a_sparse_weight_stays_sparse() -> None:
    body = """g (float[N,2,3,3] x) => (float[N,2,2,2] y) { k = Conv(x, w)
        y = BatchNormalization(k, s, b, m, v) }"""
    proto = filled(body, s=(2,), b=(2,), m=(2,), v=(2,))
    values = onnx.numpy_helper.from_array(np.float32([3.0]), "w")
    indices = onnx.numpy_helper.from_array(np.int64([5]), "")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2, 2, 2, 2]))
    done = rewrite(proto, "fuse-batch-norm")
    assert not done.outcome.changed and "sparse" in done.outcome.skipped[0].reason


def test_leaves_a_bias_that_is_not_one_value_a_channel() -> None:
    body = """g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) {
        h = Conv (x, w, b) y = BatchNormalization (h, s, o, m, v) }"""
    proto = filled(body, w=(8, 4, 3, 3), b=(24,), s=(8,), o=(8,), m=(8,), v=(8,))
    done = rewrite(proto, "fuse-batch-norm")
    assert not done.outcome.changed and "not one value a channel" in done.outcome.skipped[0].reason
