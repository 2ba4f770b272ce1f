"""Weights are found wherever they are kept, with the role and axes that the operator's specification gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import Weight, compose, weights, with_true_encodings
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import GridEncoding

Array = NDArray[np.floating]


def opened(text: str) -> list[Weight]:
    return weights(open_graph(load(parser.parse_model(text))))


def model_of(body: str, inputs: str = "float[n,4] x", outputs: str = "float[n,3] y") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {body}'


def only(text: str) -> Weight:
    found = opened(text)
    assert len(found) == 1
    return found[0]


WIDE = "{1,2,3,4,5,6,7,8,9,10,11,12}"


@pytest.mark.parametrize(
    ("body", "kind", "channel", "summed"),
    [
        (f"<float[4,3] w = {WIDE}> {{ y = MatMul(x, w) }}", "linear", 1, 0),
        (f"<float[4,3] w = {WIDE}> {{ y = Gemm(x, w) }}", "linear", 1, 0),
        (f"<float[3,4] w = {WIDE}> {{ y = Gemm<transB=1>(x, w) }}", "linear", 0, 1),
        (f"<float[3,4] w = {WIDE}> {{ t = Transpose(w) y = MatMul(x, t) }}", "linear", 0, 1),
        (f"<float[4,3] w = {WIDE}> {{ i = Identity(w) y = MatMul(x, i) }}", "linear", 1, 0),
        (
            f"<float[12,1] w = {WIDE}, int64[2] s = {{4,3}}> {{ r = Reshape(w, s) y = MatMul(x, r) }}",
            "linear",
            None,
            None,
        ),
        (f"{{ w = Constant<value = float[4,3] {WIDE}>() y = MatMul(x, w) }}", "linear", 1, 0),
    ],
)
def test_linear_weights(body: str, kind: str, channel: int | None, summed: int | None) -> None:
    weight = only(model_of(body))
    assert (weight.kinds, weight.channel_axis, weight.input_axis) == (frozenset({kind}), channel, summed)


@pytest.mark.parametrize(
    ("body", "shapes", "kind", "channel", "summed"),
    [
        (f"<float[3,4] w = {WIDE}> {{ y = MatMul(w, x) }}", ("float[4,n] x", "float[3,n] y"), "linear", 0, 1),
        (f"<float[1,3,4] w = {WIDE}> {{ y = MatMul(w, x) }}", ("float[b,4,n] x", "float[b,3,n] y"), "linear", 1, 2),
        (f"<float[1,4,3] w = {WIDE}> {{ y = MatMul(x, w) }}", ("float[b,n,4] x", "float[b,n,3] y"), "linear", 2, 1),
        (f"<float[4,3] w = {WIDE}> {{ t = Transpose(w) y = MatMul(t, x) }}", ("float[4,n] x", "float[3,n] y"),
         "linear", 1, 0),
        (f"<float[3,4] w = {WIDE}> {{ y = Gemm(w, x) }}", ("float[4,n] x", "float[3,n] y"), "linear", 0, 1),
        (f"<float[4,3] w = {WIDE}> {{ y = Gemm<transA=1>(w, x) }}", ("float[4,n] x", "float[3,n] y"), "linear", 1, 0),
        ("<float[2,1,1,1] w = {1,2}> { y = Conv(x, w) }", ("float[1,1,4,4] x", "float[1,2,4,4] y"), "conv", 0, 1),
        ("<float[1,2,1,1] w = {1,2}> { y = ConvTranspose(x, w) }", ("float[1,1,4,4] x", "float[1,2,4,4] y"),
         "conv_transpose", 1, 0),
        ("<float[2,1,1,1] w = {1,2}> { y = ConvTranspose<group=2>(x, w) }", ("float[1,2,4,4] x", "float[1,2,4,4] y"),
         "conv_transpose", 0, 0),
        ("<float[3,2] w = {1,2,3,4,5,6}> { y = Gather(w, x) }", ("int64[n] x", "float[n,2] y"), "embedding", 0, None),
        ("<float[3,2] w = {1,2,3,4,5,6}> { y = Gather<axis=-1>(w, x) }", ("int64[n] x", "float[3,n] y"),
         "embedding", 1, None),
        (f"<float[3,4] w = {WIDE}> {{ y = Mul(x, w) }}", ("float[3,4] x", "float[3,4] y"), "other", None, None),
    ],
)  # fmt: skip
def test_roles_by_each_operators_specification(
    body: str, shapes: tuple[str, str], kind: str, channel: int, summed: int | None
) -> None:
    weight = only(model_of(body, *shapes))
    assert (weight.kinds, weight.channel_axis, weight.input_axis) == (frozenset({kind}), channel, summed)


def test_a_shared_weight_has_all_its_roles_and_no_disputed_axis() -> None:
    text = model_of(
        "<float[3,3] w = {1,2,3,4,5,6,7,8,9}> { a = MatMul(x, w) y = Gemm<transB=1>(a, w) }",
        "float[n,3] x",
    )
    weight = only(text)
    assert len(weight.roles) == 2
    assert weight.channel_axis is None


def test_weights_in_branches_are_named_apart() -> None:
    def branch(name: str) -> str:
        return f"{name} () => (float[n,3] {name}) <float[4,3] w = {WIDE}> {{ {name} = MatMul(x, w) }}"

    body = f"{{ y = If (c) <then_branch = {branch('a')}, else_branch = {branch('b')}> }}"
    found = opened(model_of(body, "float[n,4] x, bool c"))
    assert sorted(each.name for each in found) == ["y/else_branch/w", "y/then_branch/w"]


def test_a_bias_is_no_weight() -> None:
    text = model_of(f"<float[4,3] w = {WIDE}, float[1,3] b = {{1,2,3}}> {{ y = Gemm(x, w, b) }}")
    assert only(text).tensor.name == "w"


def test_a_constant_that_is_an_output_is_no_weight() -> None:
    text = model_of(f"<float[4,3] w = {WIDE}> {{ y = MatMul(x, w) }}", outputs="float[n,3] y, float[4,3] w")
    assert opened(text) == []


def test_setting_values_leaves_the_old_model_as_it_was() -> None:
    model = load(parser.parse_model(model_of(f"<float[4,3] w = {WIDE}> {{ y = MatMul(x, w) }}")))
    before = model.proto.SerializeToString()
    graph = open_graph(model)
    weights(graph)[0].set(np.zeros((4, 3), np.float32))
    after = close_graph(graph)
    assert model.proto.SerializeToString() == before
    assert not onnx.numpy_helper.to_array(after.proto.graph.initializer[0]).any()


def test_composing_reaches_weights_in_constant_nodes() -> None:
    base = load(parser.parse_model(model_of(f"{{ w = Constant<value = float[4,3] {WIDE}>() y = MatMul(x, w) }}")))
    graph = open_graph(base)
    weights(graph)[0].set(np.zeros((4, 3), np.float32))
    mixed = compose(base, {"w": close_graph(graph)})
    assert not onnx.numpy_helper.to_array(mixed.proto.graph.node[0].attribute[0].t).any()


def test_composing_takes_each_weight_from_its_source() -> None:
    text = model_of(
        f"<float[4,3] w = {WIDE}, float[3,3] v = {{1,2,3,4,5,6,7,8,9}}> {{ a = MatMul(x, w) y = MatMul(a, v) }}"
    )
    base = load(parser.parse_model(text))
    graph = open_graph(base)
    for each in weights(graph):
        each.set(np.zeros(each.shape, np.float32))
    zeros = close_graph(graph)
    mixed = compose(base, {"v": zeros})
    values = {each.name: onnx.numpy_helper.to_array(each).any() for each in mixed.proto.graph.initializer}
    assert values == {"w": True, "v": False}
    assert isinstance(mixed, Model)


def noted(values: Array, *, weight: Array) -> Model:
    """x @ weight, with a note that says how ``values`` are made: one scale a column."""
    proto = parser.parse_model(model_of("<float[2,3] w = {0,0,0,0,0,0}> { y = MatMul(x, w) }", "float[n,2] x"))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    scale = np.array([[1, 2, 4]], np.float32)
    grid = GridEncoding(dtype="float32", levels=4, scale=scale, zero_point=np.zeros((1, 3), np.uint8), axis=1)
    assert grid.encode(values) is not None
    return Model(proto, encodings={"w": grid})


ROUNDED = np.array([[1, 4, 8], [2, 6, 0]], np.float32)


def test_the_note_of_a_weight_that_was_turned_is_dropped_when_the_model_is_opened() -> None:
    assert list(open_graph(noted(ROUNDED, weight=ROUNDED)).encodings) == ["w"]
    for other in (ROUNDED.T.copy(), ROUNDED.reshape(-1, 2), ROUNDED.astype(np.float16)):
        assert not open_graph(noted(ROUNDED, weight=other)).encodings


def test_the_note_of_a_weight_of_other_values_is_not_true() -> None:
    model = noted(ROUNDED, weight=ROUNDED)
    assert with_true_encodings(model) is model
    assert not with_true_encodings(noted(ROUNDED, weight=ROUNDED + 0.5)).encodings
