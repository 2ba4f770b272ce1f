"""The order of nodes, and how far down the graph they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import onnx_graphsurgeon as gs

from onnxcomp.errors import PassError
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.scopes import Graph, inner_reads, subgraphs_of
from onnxcomp.regular_form import CircleError, in_order


def ordered(nodes: Iterable[Node]) -> list[Node]:
    """The nodes so that each comes after those it reads from, moving as few as needed.

    Raises PassError when the nodes form a circle.
    """
    pending = list(nodes)
    makers = {id(out): index for index, node in enumerate(pending) for out in node.outputs}
    needs = [_needed(node, makers) for node in pending]
    if all(each < index for index, several in enumerate(needs) for each in several):
        return pending
    try:
        return [pending[index] for index in in_order(len(pending), needs.__getitem__)]
    except CircleError as error:
        node = pending[error.index]
        raise PassError(f"{node.name or node.op}: the node depends on its own output.") from error


def _needed(node: gs.Node, makers: dict[int, int]) -> list[int]:
    found = [makers[id(each)] for each in node.inputs if id(each) in makers]
    for body in subgraphs_of(node):
        for inner in body.nodes:
            found.extend(_needed(inner, makers))
        found.extend(makers[id(each)] for each in body.outputs if id(each) in makers)
    return found


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
