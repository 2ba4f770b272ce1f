"""Nodes by themselves: the same geometry is the same excerpt, and ONNX Runtime runs one of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcomp.contract import Context
from onnxcomp.contract.timed_shapes import timed_shapes
from onnxcomp.graph.excerpts import Excerpt, excerpt
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.model import load
from onnxcomp.runtime import Session
from onnxcomp.target.node_times import NodeTimes

LSTM = "z = LSTM <hidden_size = 5> (x, w, r, b)"
KINDS: list[tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]]] = [
    ("z = Conv <pads = [1, 1]> (x, w)", (1, 4, 9), {"w": (6, 4, 3)}),
    ("z = Conv <strides = [2, 2]> (x, w, b)", (1, 4, 9, 8), {"w": (6, 4, 3, 3), "b": (6,)}),
    ("z = Conv (x, w)", (1, 4, 6, 6, 6), {"w": (6, 4, 3, 3, 3)}),
    ("z = Conv <group = 2> (x, w)", (1, 4, 9, 8), {"w": (6, 2, 3, 3)}),
    ("z = Conv <group = 4> (x, w)", (1, 4, 9, 8), {"w": (4, 1, 3, 3)}),
    ("z = ConvTranspose (x, w)", (1, 4, 9, 8), {"w": (4, 6, 2, 2)}),
    ("z = Gemm <transB = 1> (x, w, b)", (3, 20), {"w": (10, 20), "b": (10,)}),
    ("z = MatMul(x, w)", (2, 3, 5, 20), {"w": (20, 10)}),
    ("z = MatMul(x, w)", (2, 3, 5, 20), {"w": (3, 20, 10)}),
    ("z = MatMul(w, x)", (20, 5), {"w": (10, 20)}),
    (LSTM, (4, 2, 9), {"w": (1, 20, 9), "r": (1, 20, 5), "b": (1, 40)}),
    ("t = Transpose <perm = [1, 0]> (w) z = MatMul(x, t)", (5, 20), {"w": (10, 20)}),
]  # fmt: skip


def graph_of(body: str, shape: tuple[int, ...], constants: dict[str, tuple[int, ...]], seed: int = 0) -> Graph:
    dims = ", ".join(map(str, shape))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{dims}] x) => (float z) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    random = np.random.default_rng(seed)
    for name, size in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.standard_normal(size).astype(np.float32), name))
    return open_graph(load(proto))


def last_of(graph: Graph) -> Excerpt:
    [*_, node] = graph.main.graph.nodes
    found = excerpt(graph, node, timed_shapes(graph, Context()))
    assert found is not None
    return found


@pytest.mark.parametrize(("body", "shape", "constants"), KINDS)
def test_every_kind_of_node_runs_by_itself_at_the_shapes_it_has(
    body: str, shape: tuple[int, ...], constants: dict[str, tuple[int, ...]]
) -> None:
    graph = graph_of(body, shape, constants)
    found, feeds = last_of(graph), {"x": np.ones(shape, np.float32)}
    made = Session(found.filled().SerializeToString()).run(found.feeds())
    wanted: dict[str, Any] = Session(graph.model.to_bytes()).run(feeds)
    assert made["y0"].shape == wanted["z"].shape
    [took] = NodeTimes().milliseconds([found], None)
    assert took is not None


def test_values_and_names_are_no_part_of_it_but_sizes_and_attributes_are() -> None:
    body, shape, constants = KINDS[1]
    first = last_of(graph_of(body, shape, constants))
    assert first == last_of(graph_of(body, shape, constants, seed=1))
    assert first != last_of(graph_of(body.replace("2, 2", "1, 1"), shape, constants))
    assert first != last_of(graph_of(body, shape, {**constants, "w": (6, 4, 1, 1)}))
    assert first != last_of(graph_of(body, (1, 4, 9, 9), constants))


def test_rows_that_are_looked_up_are_rows_of_the_table() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (int64[7] x) => (float[7, 3] z) { z = Gather(w, x) }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((50, 3), np.float32), "w"))
    rows = last_of(open_graph(load(proto))).feeds()
    [ids] = rows.values()
    assert ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < 50 and len(set(ids.tolist())) > 1


def test_a_node_whose_shapes_are_open_has_none() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, L] x) => (float[N, L] z) { z = MatMul(x, x) }"""
    graph = open_graph(load(parser.parse_model(text)))
    [node] = graph.main.graph.nodes
    assert excerpt(graph, node, timed_shapes(graph, Context())) is None
