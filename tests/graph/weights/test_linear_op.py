"""Axes and flags of linear operators say what ONNX Runtime computes; replaced ones give the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op, replaceable_op, summed_data_axis
from onnxcomp.model import load
from tests.graphs.running import run

Array = np.ndarray
RIGHT = [  # body, shapes of x and w
    ("y = MatMul(x, w)", (5, 4), (4, 3)),
    ("y = MatMul(x, w)", (2, 5, 4), (2, 4, 3)),
    ("y = Gemm <alpha = 0.5> (x, w)", (5, 4), (4, 3)),
    ("y = Gemm <transB = 1> (x, w)", (5, 4), (3, 4)),
    ("y = Gemm <transA = 1> (x, w)", (4, 5), (4, 3)),
    ("t = Transpose (w) y = Gemm <transA = 1, transB = 1> (x, t)", (4, 5), (4, 3)),
    ("t = Transpose <perm = [2, 0, 1]> (w) y = MatMul(x, t)", (2, 5, 4), (4, 6, 2)),
]
LEFT = [
    ("y = MatMul(w, x)", (4, 5), (3, 4)),
    ("y = MatMul(w, x)", (2, 4, 5), (3, 4)),
    ("t = Transpose (w) y = MatMul(t, x)", (4, 5), (4, 3)),
    ("y = Gemm <transA = 1> (w, x)", (4, 5), (4, 3)),
    ("y = Gemm <transB = 1> (w, x)", (5, 4), (3, 4)),
]
CONVOLUTIONS = [
    ("y = Conv(x, w)", (1, 4, 6, 6), (3, 4, 3, 3)),
    ("y = Conv <group = 2> (x, w)", (1, 4, 6), (6, 2, 3)),
    ("y = ConvTranspose(x, w)", (1, 4, 6), (4, 3, 3)),
    ("y = ConvTranspose <group = 2> (x, w)", (1, 4, 6, 6), (4, 3, 2, 2)),
]
REPLACED = [  # body, shapes of x, w and b
    ("y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", (5, 4), (4, 3), (3,)),
    ("y = Gemm <transA = 1, transB = 1, beta = 0.5> (x, w, b)", (4, 5), (3, 4), (5, 1)),
    ("c = Neg(b) y = Gemm <beta = 0.5> (x, w, c)", (5, 4), (4, 3), (5, 3)),
    ("y = MatMul(x, w)", (2, 5, 4), (4, 3), (3,)),
    ("y = MatMul(w, x)", (2, 4, 5), (3, 4), (3,)),
    ("y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)", (1, 4, 6, 6), (6, 2, 3, 3), (6,)),
    ("c = Neg(b) y = ConvTranspose(x, w, c)", (1, 4, 6), (4, 3, 3), (3,)),
]


def built(body: str, x: tuple[int, ...], **arrays: Array) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{", ".join(map(str, x))}] x) => (float[] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def floats(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def opened(proto: onnx.ModelProto, *, index: int | None = None) -> tuple[Graph, LinearOp]:
    graph = open_graph(load(proto))
    node = graph.main.graph.nodes[-1]
    found = linear_op(graph.main, node, index=index)
    assert isinstance(found, LinearOp), found
    return graph, found


@pytest.mark.parametrize(("body", "x", "w"), [*RIGHT, *LEFT, *CONVOLUTIONS])
def test_channels_of_the_weight_are_those_of_the_output(body: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    feeds, weight = {"x": floats(*x)}, floats(*w)
    before = run(built(body, x, w=weight), feeds)["y"]
    _, op = opened(built(body, x, w=weight))
    assert before.shape[op.output_axis] == op.channels
    factors = 2.0 ** np.arange(op.channels, dtype=np.float32)
    own = op.perm[op.channel_axis]
    spread = factors.reshape([-1 if axis == own else 1 for axis in range(len(w))]) if op.groups == 1 else None
    if spread is None:
        assert op.form is not None
        packed = op.form.pack(weight)
        scaled = op.form.unpack(packed * factors.reshape(op.groups, -1, 1))
    else:
        scaled = weight * spread
    after = run(built(body, x, w=scaled), feeds)["y"]
    shape = [1] * before.ndim
    shape[op.output_axis] = -1
    np.testing.assert_array_equal(after, before * factors.reshape(shape))


@pytest.mark.parametrize(("body", "x", "w"), [*RIGHT, *LEFT])
def test_products_sum_over_the_axes_that_are_said(body: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    data, weight = floats(*x), floats(*w)
    _, op = opened(built(body, x, w=weight))
    columns = weight.transpose(op.matrix_axes)  # (.., K, N)
    assert op.index == (0 if "(w, x)" in body or "(t, x)" in body else 1)
    summed = np.moveaxis(data, summed_data_axis(op.node, op.index), -1)
    product = op.alpha * (summed @ columns)
    expected = product if op.index else product.swapaxes(-1, -2)
    np.testing.assert_allclose(run(built(body, x, w=weight), {"x": data})["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("body", "x", "w", "b"), REPLACED)
def test_what_takes_its_place_computes_the_same(body: str, x: tuple[int, ...], w: Any, b: Any) -> None:
    proto = built(body, x, w=floats(*w), **({"b": floats(*b)} if "b)" in body or "(b" in body else {}))
    graph = open_graph(load(proto))
    node = graph.main.graph.nodes[-1]
    op = replaceable_op(graph.main, node, infer_shapes(graph))
    assert isinstance(op, LinearOp), op
    _replace(graph, op)
    feeds = {"x": floats(*x)}
    after = close_graph(graph).proto
    assert "Gemm" not in {each.op_type for each in after.graph.node}
    np.testing.assert_allclose(run(after, feeds)["y"], run(proto, feeds)["y"], rtol=1e-5, atol=1e-5)


def _replace(graph: Graph, op: LinearOp) -> None:
    """By the plain operator that multiplies with a copy of the weight."""
    attrs, weight = dict(op.node.attrs), np.asarray(op.weight.values)

    def multiply(source: Any, result: Any) -> None:
        values = weight if op.is_convolution else weight.transpose(op.matrix_axes) * np.float32(op.alpha)
        copy = graph.constant(op.scope, "copy", np.ascontiguousarray(values))
        if op.is_convolution:
            graph.node(op.scope, op.node.op, [source, copy], [result], attrs=attrs)
        else:
            graph.node(op.scope, "MatMul", [source, copy], [result])

    op.replace_with(graph, multiply)


@pytest.mark.parametrize(
    ("body", "w", "reason"),
    [
        ("y = Relu(x)", (4, 3), "Relu is no convolution"),
        ("v = Abs(x) y = MatMul(x, v)", (4, 3), "none of its operands"),
        ("y = MatMul(x, w)", (4,), "1 dimensions"),
    ],
)
def test_says_why_a_node_is_no_linear_operator(body: str, w: tuple[int, ...], reason: str) -> None:
    graph = open_graph(load(built(body, (4, 4), w=floats(*w))))
    assert reason in str(linear_op(graph.main, graph.main.graph.nodes[-1]))


def test_a_named_operand_is_the_weight_even_beside_a_constant_behind_a_node() -> None:
    body = "t = Transpose(v) y = MatMul(w, t)"
    proto = built(body, (4, 4), w=floats(3, 4), v=floats(5, 4))
    assert opened(proto)[1].weight.name == "v"
    assert opened(proto, index=0)[1].weight.name == "w"


def test_the_left_one_cannot_be_replaced_where_the_ranks_are_open() -> None:
    proto = built("s = Shape(x) n = Size(s) y = MatMul(w, x)", (4, 5), w=floats(3, 4))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    graph = open_graph(load(proto))
    node: Node = next(each for each in graph.main.graph.nodes if each.op == "MatMul")
    assert "not known" in str(replaceable_op(graph.main, node, infer_shapes(graph)))
