"""Graphs cut in segments: which nodes are in which, what is kept between them, and that they make the whole."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from onnxcomp.graph.dataflow.segments import Stage, cut, segment_model
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.ir.value_infos import required_info
from onnxcomp.model import load
from tests.graphs.running import run

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) <float[4,4] w0, float[4,4] w1, float[4,4] w2> {
  a = MatMul(x, w0)
  b = Relu(a)
  c = MatMul(b, w1)
  d = Add(c, x)
  e = Add(d, b)
  f = Tanh(b)
  turned = Transpose(w2)
  h = MatMul(e, turned)
  y = Add(h, f)
}"""
INNER = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x, bool t) => (float[N,4] y) <float[4,4] w0, float[4,4] w1> {
  a = MatMul(x, w0)
  b = Relu(a)
  c = If (t) <
    then_branch = one () => (float[N,4] u) { u = Add(a, b) },
    else_branch = other () => (float[N,4] v) { v = Neg(b) }>
  y = MatMul(c, w1)
}"""


def graph_of(text: str, **shapes: tuple[int, ...]) -> Graph:
    proto = parser.parse_model(text)
    del proto.graph.initializer[:]
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return open_graph(load(proto))


def branches() -> Graph:
    return graph_of(BRANCHES, w0=(4, 4), w1=(4, 4), w2=(4, 4))


def names_of(stage: Stage) -> list[str]:
    return [node.outputs[0].name for node in stage.advance.nodes]


def composed(graph: Graph, stages: list[Stage], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the segments give, each fed with nothing but inputs and what the stage before kept."""
    infos = {each.name: required_info(each) for each in graph.main.graph.inputs}
    live: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for stage in stages:
        beyond: dict[str, np.ndarray] = {}
        for segment in (stage.advance, stage.ahead):
            if segment.outputs:
                held = {name: (feeds | live | beyond)[name] for name in segment.feeds}
                types = infos | {
                    name: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
                    for name, value in held.items()
                }
                beyond |= run(segment_model(graph, segment, types).to_bytes(), held)
        found |= {name: (feeds | live | beyond)[name] for name in stage.wanted}
        live = {name: value for name, value in (live | beyond).items() if name in stage.kept}
        assert live.keys() == set(stage.kept)
    return found


def test_each_node_is_computed_once_and_only_where_it_is_wanted() -> None:
    stages = cut(branches(), [["x"], ["b"], ["e"]], {"w0": 0, "w1": 1, "w2": 2})
    assert [names_of(each) for each in stages] == [[], ["a", "b"], ["c", "d", "e"]]
    assert not any(each.ahead.outputs for each in stages)


def test_what_later_stages_read_is_kept_and_no_more() -> None:
    stages = cut(branches(), [["x"], ["b"], ["e"], ["y"]], {})
    assert [set(each.kept) for each in stages] == [set(), {"b"}, {"b", "e"}, set()]
    assert stages[2].advance.feeds == ("b", "x")
    assert stages[3].advance.feeds == ("b", "e")


def test_what_comes_from_constants_alone_is_computed_where_it_is_read() -> None:
    stages = cut(branches(), [["e"], ["h"], ["y"]], {"w2": 0})
    assert sorted(names_of(stages[1])) == ["h", "turned"]
    assert [each.name for each in stages[1].advance.constants] == ["w2"]
    assert stages[0].kept == ("b", "e") and stages[1].kept == ("b", "h")


def test_what_depends_on_weights_that_still_change_is_computed_ahead_and_again() -> None:
    """w0 changes in the second stage: what is seen behind it before is not kept."""
    stages = cut(branches(), [["x", "c"], ["b"], ["e"]], {"w0": 1, "w1": 1})
    assert stages[0].advance.nodes == () and stages[0].kept == ()
    assert [node.outputs[0].name for node in stages[0].ahead.nodes] == ["a", "b", "c"]
    assert names_of(stages[1]) == [] and [node.outputs[0].name for node in stages[1].ahead.nodes] == ["a", "b"]
    assert names_of(stages[2]) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("wanted", [[["x"], ["b"], ["e"]], [["c"], ["e", "f"], ["y"]], [["a"], ["a", "turned"], ["d"]]])
@pytest.mark.parametrize("changes", [{}, {"w0": 0, "w1": 1, "w2": 2}, {"w0": 2}])
def test_segments_give_what_the_whole_model_gives(wanted: list[list[str]], changes: dict[str, int]) -> None:
    graph = branches()
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    shown = graph.model.proto
    names = sorted({name for each in wanted for name in each if name != "x"})
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    whole = run(shown, {"x": x}, optimized=False) | {"x": x}
    found = composed(graph, cut(graph, wanted, changes), {"x": x})
    assert found.keys() == {name for each in wanted for name in each}
    for name, values in found.items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taken", [True, False])
def test_tensors_that_branches_read_are_kept(taken: bool) -> None:
    graph = graph_of(INNER, w0=(4, 4), w1=(4, 4))
    stages = cut(graph, [["x"], ["b"], ["c"]], {"w0": 0, "w1": 2})
    assert set(stages[1].kept) == {"a", "b"}
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    found = composed(graph, stages, {"x": x, "t": np.array(taken)})
    a = x @ np.asarray(graph.main.constants[0].values)
    b = np.maximum(a, 0)
    np.testing.assert_allclose(found["c"], a + b if taken else -b, rtol=1e-5, atol=1e-6)


def test_a_segment_is_no_larger_than_its_own_weights() -> None:
    graph = graph_of(BRANCHES.replace("4,4", "400,400").replace("N,400", "N,4"), w0=(4, 4), w1=(4, 4), w2=(400, 400))
    first = cut(graph, [["e"]], {})[0].advance
    infos = {each.name: required_info(each) for each in graph.main.graph.inputs}
    assert segment_model(graph, first, infos).size_bytes < 2000 < graph.model.size_bytes
