"""An edit of any kind shows in a graph's state, and looking at a graph does not; what was left alone is opened once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.untouched import state_of
from onnxcomp.model import Model, load
from onnxcomp.pipeline import apply as apply_module
from onnxcomp.pipeline.apply import apply_pass

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 4] x, bool c) => (float[n, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> {
  i = Identity (x)
  s = Softmax <axis = 1> (i)
  b = If (c) <
    then_branch = then () => (float[4, 4] t) { t = Relu (w) },
    else_branch = other () => (float[4, 4] e) { e = Abs (w) }
  >
  y = MatMul (s, b)
}
"""


def model() -> Model:
    return load(onnx.parser.parse_model(TEXT))


def nodes(graph: Graph) -> list[Any]:
    return graph.main.graph.nodes


EDITS: dict[str, Callable[[Graph], object]] = {
    "an operator": lambda graph: setattr(nodes(graph)[0], "op", "Relu"),
    "a node's name": lambda graph: setattr(nodes(graph)[0], "name", "renamed"),
    "an input": lambda graph: nodes(graph)[1].inputs.__setitem__(0, graph.main.graph.inputs[0]),
    "a number": lambda graph: nodes(graph)[1].attrs.update(axis=0),
    "another attribute": lambda graph: nodes(graph)[1].attrs.update(other=1.0),
    "a tensor's name": lambda graph: graph.rename({nodes(graph)[0].outputs[0]: "other"}),
    "a type": lambda graph: setattr(nodes(graph)[0].outputs[0], "dtype", np.dtype(np.float16)),
    "values": lambda graph: setattr(graph.main.constants[0], "values", np.ones((4, 4), np.float32)),
    "a constant": lambda graph: graph.constant(graph.main, "k", np.ones(1, np.float32)),
    "a name": lambda graph: graph.unique_name("k"),
    "a node": lambda graph: graph.remove_node(graph.main, nodes(graph)[0]),
    "a node in a branch": lambda graph: graph.remove_node(graph.scopes[1], graph.scopes[1].graph.nodes[0]),
    "a branch's output": lambda graph: graph.scopes[1].graph.outputs.clear(),
    "the order": lambda graph: setattr(graph.main.graph, "nodes", nodes(graph)[::-1]),
    "an opset": lambda graph: graph.opset_imports.update({"": 18}),
    "the model": lambda graph: setattr(graph, "model", graph.model.with_proto(graph.model.proto)),
    "what a node came from": lambda graph: setattr(nodes(graph)[1], "origin", None),
    "what a scope came from": lambda graph: setattr(graph.main, "origin", onnx.GraphProto()),
    "what a type came from": lambda graph: setattr(graph.main.graph.inputs[0], "origin", None),
    "an input's name": lambda graph: graph.rename({graph.main.graph.inputs[0]: "other"}),
    "a weight's kind": lambda graph: setattr(graph.main.constants[0], "as_node", True),
    "the IR version": lambda graph: setattr(graph, "ir_version", 9),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_shows(name: str) -> None:
    graph = open_graph(model())
    before = state_of(graph)
    EDITS[name](graph)
    assert state_of(graph) != before


def test_looking_does_not_show() -> None:
    graph = open_graph(model())
    before = state_of(graph)
    infer_shapes(graph)
    close_graph(graph)
    assert [graph.scope_of(each).path for each in graph.main.constants] == [""] and state_of(graph) == before


def test_shapes_are_inferred_again_after_an_edit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = open_graph(model())
    first = infer_shapes(graph)
    out = nodes(graph)[1].outputs[0]
    first.note(out, onnx.TensorProto.DOUBLE, (1,))  # a pass's own, which the next does not see
    assert infer_shapes(graph).shape(out) == (None, 4)
    nodes(graph)[3].inputs[0] = graph.main.constants[0]
    assert infer_shapes(graph).shape(nodes(graph)[3].outputs[0]) == (4, 4)
    assert infer_shapes(graph, batch=1).shape(out) == (1, 4)


@dataclass(frozen=True, kw_only=True)
class Probe(Pass):
    """Do what the test says."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)
    as_stored = True

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        EDIT[0](graph, outcome)
        return outcome


EDIT: list[Callable[[Graph, Outcome], object]] = []


def quiet_edit(graph: Graph, outcome: Outcome) -> None:
    nodes(graph)[1].attrs["axis"] = 0


def told_edit(graph: Graph, outcome: Outcome) -> None:
    quiet_edit(graph, outcome)
    outcome.change("s", "turned")


@pytest.mark.parametrize(("edit", "opened"), [(lambda graph, outcome: None, 1), (quiet_edit, 3), (told_edit, 3)])
def test_a_graph_that_a_pass_left_alone_serves_the_next(
    edit: Callable[[Graph, Outcome], object], opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Model] = []

    def counted(each: Model) -> Graph:
        calls.append(each)
        return open_graph(each)

    monkeypatch.setattr(apply_module, "open_graph", counted)
    EDIT[:] = [edit]
    source = model()
    for _ in range(3):
        after, _ = apply_pass(source, Probe(), Context())
    assert len(calls) == opened
    axis = next(each for each in after.proto.graph.node if each.op_type == "Softmax").attribute[0].i
    assert axis == (0 if edit is told_edit else 1)
