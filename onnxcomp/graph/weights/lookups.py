"""Nodes that look rows of a constant matrix up: Gather(W, ids), y = W[ids], W: (rows, width)."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import has_references, is_onnx
from onnxcomp.graph.ir.reader import Scope


@dataclass(frozen=True, eq=False)
class Lookup:
    """A Gather of rows of a constant matrix."""

    scope: Scope
    node: Node
    weight: Constant


def lookup_of(scope: Scope, node: Node) -> Lookup | None:
    """The Gather of rows that the node is, or None."""
    if not is_onnx(node, "Gather") or has_references(node):
        return None
    table = node.inputs[0]
    if not isinstance(table, Constant) or len(table.shape) != 2 or node.inputs[1] is table:
        return None
    return Lookup(scope, node, table) if node.attrs.get("axis", 0) in (0, -2) else None
