"""What is timed, how often, and beyond what: with a clock that reads a table."""

from __future__ import annotations

import pytest
from onnx import NodeProto

from onnxcomp.target.node_times import IDLE_NODE, NodeTimes
from tests.by_table import Table
from tests.graph.test_excerpts import graph_of, last_of

PRODUCT = "z = MatMul(x, w)"


def by_columns(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
    """A run takes half a millisecond whatever it does."""
    return 0.5 if node.op_type == IDLE_NODE else 0.5 + constants[0][-1] / 100


def test_each_geometry_is_timed_once_and_what_a_run_takes_anyhow_is_left_out() -> None:
    table = Table(by_columns)
    times = NodeTimes(table)
    wide, again, narrow = (
        last_of(graph_of(PRODUCT, (4, 20), {"w": (20, columns)}, seed=seed))
        for columns, seed in ((10, 0), (10, 1), (5, 0))
    )
    assert times.milliseconds([wide, narrow, again], None) == pytest.approx([0.1, 0.05, 0.1])
    assert times.milliseconds([again, narrow], None) == pytest.approx([0.1, 0.05])
    assert sorted(table.asked) == [((20, 5),), ((20, 10),)]


def test_what_the_target_does_not_run_is_not_known() -> None:
    times = NodeTimes(lambda models, target, seconds: [0.1, *([None] * (len(models) - 1))])
    assert times.milliseconds([last_of(graph_of(PRODUCT, (4, 20), {"w": (20, 10)}))], None) == [None]


def test_what_onnx_runtime_refuses_is_not_known_either() -> None:
    graph = graph_of(PRODUCT, (4, 20), {"w": (20, 10)})
    graph.main.graph.nodes[0].domain = "nowhere"
    graph.opset_imports["nowhere"] = 1
    assert NodeTimes().milliseconds([last_of(graph)], None) == [None]
