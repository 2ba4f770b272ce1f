"""Digests of what is left after each stage: other values, other digests from there on, and no more work than asked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.graph.dataflow import contents
from onnxcomp.graph.dataflow.contents import Contents
from onnxcomp.graph.dataflow.segments import cut
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.model import load

LAYERS = 12


def chain() -> tuple[Graph, Contents]:
    """A chain of products, a stage for each."""
    nodes = " ".join(f"t{at + 1} = MatMul(t{at}, w{at})" for at in range(LAYERS))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] t0) => (float[N,4] t{LAYERS}) {{ {nodes} }}'
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for at in range(LAYERS):
        values = rng.standard_normal((4, 4)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, f"w{at}"))
    graph = open_graph(load(proto))
    stages = cut(graph, [[f"t{at}"] for at in range(LAYERS)], {f"w{at}": at for at in range(LAYERS)})
    return graph, Contents(graph, stages)


def test_a_changed_weight_changes_what_is_left_from_its_stage_on() -> None:
    graph, found = chain()
    before = list(found.left())
    own = constants_by_key(graph)["w5"]
    own.values = np.asarray(own.values) + np.float32(1)
    after = list(found.left())
    changed = [at for at in range(LAYERS) if before[at] != after[at]]
    assert changed == list(range(changed[0], LAYERS)) and 5 <= changed[0] <= 6
    own.values = np.asarray(own.values) - np.float32(1)
    assert list(found.left()) == list(Contents(graph, found._stages).left())


def test_digests_are_computed_as_far_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found = chain()
    made = 0
    digest = contents.digest_of

    def counting(*parts: bytes) -> bytes:
        nonlocal made
        made += 1
        return digest(*parts)

    monkeypatch.setattr(contents, "digest_of", counting)
    for at in range(LAYERS):  # as a run does that changes one weight after the other
        assert found.left()[at] == found.left()[at]
        own = constants_by_key(graph)[f"w{at}"]
        own.values = np.asarray(own.values) * np.float32(2)
    assert made <= 2 * LAYERS
