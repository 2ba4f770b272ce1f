"""Constant nodes become initializers.

    w = Constant <value = tensor> ()        becomes        an initializer w

An initializer costs some 35 bytes less than the node, keeps its name, and is shared, shown and mapped from
disk by every tool. Functions have no initializers, so their constants stay nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, SparseTensorProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.nodes import Constant, Node, ProtoValues
from onnxcomp.graph.ir.query import is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope


@dataclass(frozen=True, kw_only=True)
class LiftConstants(Pass):
    """Turn Constant nodes into initializers."""

    effect = Effect(shrinks=("bytes", "load"), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for scope in graph.scopes:
            if scope.kind == "function" or _inside_function(scope):
                continue
            for node in list(scope.graph.nodes):
                if is_onnx(node, "Constant") and context.selects(node_key(scope, node)):
                    _lift_other_form(graph, scope, node, outcome)
            for constant in scope.constants:
                if constant.as_node and context.selects(scope.key(constant.name)):
                    _lift(graph, scope, constant, outcome)
        return outcome


def _inside_function(scope: Scope) -> bool:
    return scope.parent is not None and (scope.parent.kind == "function" or _inside_function(scope.parent))


def _lift(graph: Graph, scope: Scope, constant: Constant, outcome: Outcome) -> None:
    key = scope.key(constant.name)
    if graph.is_output(constant):
        outcome.skip(key, "a graph output has to be made by a node")
        return
    constant.as_node = False
    constant.node_origin = None
    outcome.change(key, "lifted to an initializer")


def _lift_other_form(graph: Graph, scope: Scope, node: Node, outcome: Outcome) -> None:
    """Strings and sparse tensors, which are nodes to the editing layer."""
    output = node.outputs[0]
    values = _values_of(graph, node)
    if values is None:
        outcome.skip(node_key(scope, node), f"a Constant of {', '.join(node.attrs)} has no form as an initializer")
        return
    if graph.is_output(output):
        outcome.skip(node_key(scope, node), "a graph output has to be made by a node")
        return
    constant = Constant(output.name, values, graph.model)
    constant.was_used = not node.was_dead
    scope.constants.append(constant)
    graph.replace_reads(output, constant)
    graph.remove_node(scope, node)
    outcome.change(scope.key(constant.name), "lifted to an initializer")


def _values_of(graph: Graph, node: Node) -> np.ndarray[tuple[int, ...], np.dtype[np.object_]] | ProtoValues | None:
    if list(node.attrs) == ["value_string"]:
        return np.array(node.attrs["value_string"], object)
    if list(node.attrs) == ["value_strings"]:
        return np.array(node.attrs["value_strings"], object)
    sparse = node.attrs.get("sparse_value")
    if isinstance(sparse, AttributeProto) and len(node.attrs) == 1:
        tensor = SparseTensorProto()
        tensor.CopyFrom(sparse.sparse_tensor)
        tensor.values.name = node.outputs[0].name
        return ProtoValues(tensor, graph.model)
    return None
