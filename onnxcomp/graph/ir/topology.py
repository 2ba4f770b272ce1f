"""How far down the graph nodes stand."""

from __future__ import annotations

from collections.abc import Mapping, Set

from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.ir.writer import ordered


def depths(graph: Graph, counted: Set[int]) -> Mapping[int, int]:
    """For each node of the main graph (by id) how many of the ``counted`` ones (ids) stand on the longest way to it,
    itself not among them."""
    depth: dict[int, int] = {}
    after: dict[int, int] = {}  # of a tensor: what a reader starts from
    for node in ordered(graph.main.graph.nodes):
        assert isinstance(node, Node)
        own = max((after.get(id(each), 0) for each in (*node.inputs, *inner_reads(node))), default=0)
        depth[id(node)] = own
        for out in node.outputs:
            after[id(out)] = own + (id(node) in counted)
    return depth
