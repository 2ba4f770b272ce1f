"""Questions about a graph: who alone reads a tensor, which constant stands behind a node, what a Clip leaves."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.query import (
    clip_bounds,
    constant_behind,
    constant_operand,
    has_one_reader,
    is_fixed,
    other_operand,
    sole_reader,
    tensor_behind,
)
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.ir.rewire import set_constant, set_input
from onnxcomp.model import Model

CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def opened(text: str, *, opset: int = 17, **constants: np.ndarray) -> Graph:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return open_graph(Model(proto))


def test_a_tensor_has_one_reader_where_one_node_reads_it_once_and_no_output_is_it() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] c) { a = Neg(x) b = Abs(a) c = Mul(b, b) y = Neg(c) }"
    graph = opened(text)
    made = {out.name: out for node in graph.main.graph.nodes for out in node.outputs}
    assert [name for name in "abc" if has_one_reader(graph, made[name])] == ["a"]
    reader = sole_reader(graph, graph.main, made["a"])
    assert reader is not None and reader.op == "Abs"
    assert sole_reader(graph, graph.main, made["a"], "Relu") is None
    assert other_operand(made["c"].inputs[0], made["b"]) is made["b"]


def test_a_reader_in_a_subgraph_is_not_one_of_the_scope() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        a = Neg(x)
        y = If(c) <then_branch = t () => (float[2] p) { p = Abs(a) },
                   else_branch = e () => (float[2] q) { q = Abs(x) }>
    }"""
    graph = opened(text)
    made = graph.main.graph.nodes[0].outputs[0]
    assert has_one_reader(graph, made)
    assert sole_reader(graph, graph.main, made) is None
    assert sole_reader(graph, graph.scopes[1], made) is not None


@pytest.mark.parametrize(
    ("chain", "axes"),
    [
        ("v = Identity(w)", (0, 1, 2)),
        ("v = Transpose(w)", (2, 1, 0)),
        ("a = Transpose<perm=[1, 2, 0]>(w) v = Transpose<perm=[2, 1, 0]>(a)", (0, 2, 1)),
        ("a = Transpose<perm=[1, 2, 0]>(w) b = Identity(a) v = Transpose(b)", (0, 2, 1)),
    ],
)
def test_the_axes_behind_turns_are_those_that_numpy_gives(chain: str, axes: tuple[int, ...]) -> None:
    graph = opened(f"g (float[1] x) => (float[a, b, c] y) {{ {chain} y = Add(v, x) }}", w=CUBE)
    found = constant_behind(graph.main.graph.nodes[-1].inputs[0])
    assert found is not None and found.constant.name == "w" and found.perm == axes and found.cast is None


def test_one_cast_is_seen_through_where_asked_for() -> None:
    text = "g (float16[1] x) => (float16[a, b, c] y) { a = Cast<to=10>(w) v = Transpose(a) y = Add(v, x) }"
    tensor = opened(text, w=CUBE).main.graph.nodes[-1].inputs[0]
    assert constant_behind(tensor) is None
    found = constant_behind(tensor, casts=True)
    assert found is not None and found.cast == 10 and found.perm == (2, 1, 0)
    twice = "g (float[1] x) => (float[a, b, c] y) { a = Cast<to=10>(w) v = Cast<to=1>(a) y = Add(v, x) }"
    assert constant_behind(opened(twice, w=CUBE).main.graph.nodes[-1].inputs[0], casts=True) is None


def test_a_constant_operand_is_one_beside_what_is_computed() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Add(x, w) b = Mul(w, a) c = Sub(w, w) d = Add(b, c) y = Neg(d) }"
    nodes = opened(text, w=np.ones(2, np.float32)).main.graph.nodes
    assert [constant_operand(node) for node in nodes] == [1, 0, None, None, None]


def test_what_is_behind_nodes_is_what_they_hand_on() -> None:
    text = "g (float[2] x, int64[1] s) => (float[2] y) { a = Neg(x) b = Identity(a) y = Reshape(b, s) }"
    graph = opened(text)
    made = {out.name: out for node in graph.main.graph.nodes for out in node.outputs}
    assert tensor_behind(made["y"], "Reshape", "Identity") is made["a"]
    assert tensor_behind(made["y"], "Identity") is made["y"]


def test_what_random_nodes_make_is_not_fixed() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg(w) r = RandomUniformLike(w) b = Add(a, x) y = Add(b, r) }"
    graph = opened(text, w=np.ones(2, np.float32))
    made = {out.name: out for node in graph.main.graph.nodes for out in node.outputs}
    assert [name for name in "arb" if is_fixed(made[name])] == ["a"]


@pytest.mark.parametrize(
    ("opset", "clip", "bounds"),
    [
        (6, "Clip<min = 0.0, max = 6.0>(x)", (0.0, 6.0)),
        (6, "Clip<min = 0.0>(x)", (0.0, None)),
        (6, "Clip<min = -3.4028235e38, max = 3.4028235e38>(x)", (None, None)),
        (11, "Clip(x, zero, six)", (0.0, 6.0)),
        (13, "Clip(x, , six)", (None, 6.0)),
        (13, "Clip(x, zero, infinite)", (0.0, None)),
        (13, "Clip(x, zero, nan)", None),
        (13, "Clip(x, zero, s)", None),
    ],
)
def test_bounds_of_a_clip_of_any_opset(opset: int, clip: str, bounds: tuple[float | None, ...] | None) -> None:
    numbers = {"zero": 0, "six": 6, "infinite": np.inf, "nan": np.nan}
    constants = {name: np.array(value, np.float32) for name, value in numbers.items() if name in clip}
    graph = opened(f"g (float[2] x, float s) => (float[2] y) {{ y = {clip} }}", opset=opset, **constants)
    assert clip_bounds(graph.main.graph.nodes[0]) == bounds


def test_values_go_into_the_constant_unless_another_node_reads_it() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Add(x, own) b = Add(a, shared) y = Add(b, shared) }"
    ones = np.ones(2, np.float32)
    graph = opened(text, own=ones, shared=ones)
    first, second, third = graph.main.graph.nodes
    own, shared = first.inputs[1], second.inputs[1]
    set_constant(graph, graph.main, first, 1, ones * 2)
    set_constant(graph, graph.main, second, 1, ones * 3)
    assert first.inputs[1] is own and own.values.tolist() == [2, 2]
    assert third.inputs[1] is shared and shared.values.tolist() == [1, 1]
    made = second.inputs[1]
    assert isinstance(made, Constant) and made is not shared and made.values.tolist() == [3, 3]


def test_an_input_after_the_last_is_added() -> None:
    graph = opened("g (float[2, 2] x) => (float[2, 2] y) { y = Gemm(x, w) }", w=np.ones((2, 2), np.float32))
    (gemm,) = graph.main.graph.nodes
    made = graph.constant(graph.main, "b", np.ones(2, np.float32))
    set_input(gemm, 2, made)
    set_input(gemm, 2, made)
    assert [each.name for each in gemm.inputs] == ["x", "w", "b"]
