"""An If whose condition is known gives way to the branch that is taken.

    y = If(true, then: {a = Relu(x)}, else: {b = Neg(x)})        becomes        y = Relu(x)

Exporters leave such nodes where a condition was a setting, or a question about a shape that is fixed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.functions import hand_out
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_value, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import key_holders, renew_keys


@dataclass(frozen=True, kw_only=True)
class InlineBranches(Pass):
    """Replace an If of known condition by the branch that is taken."""

    effect = Effect(shrinks=("bytes", "latency", "load"), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        waiting = list(graph.scopes)
        while waiting:
            scope = waiting.pop(0)
            for node in list(scope.graph.nodes):
                if any(each is scope for each in graph.scopes) and _is_decided(node):
                    key = node_key(scope, node)
                    if context.selects(key):
                        taken = _inline(graph, scope, node)
                        outcome.change(key, f"inlined {taken}")
                        waiting.append(scope)  # an If of the branch may be next
        return outcome


def _is_decided(node: Node) -> bool:
    if not is_onnx(node, "If") or not all(isinstance(each, gs.Graph) for each in node.attrs.values()):
        return False
    condition = constant_value(node.inputs[0])
    return condition is not None and condition.size == 1 and len(node.attrs) == 2


def _inline(graph: Graph, scope: Scope, node: Node) -> str:
    holders = key_holders(graph)
    condition = constant_value(node.inputs[0])
    taken, left = ("then_branch", "else_branch") if np.all(condition) else ("else_branch", "then_branch")
    _drop_scope(graph, _scope_of(graph, node.attrs[left]))
    inner = _scope_of(graph, node.attrs[taken])
    graph.scopes = [each for each in graph.scopes if each is not inner]
    _rename_moved(graph, inner)
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    nodes = list(inner.graph.nodes)
    nodes += hand_out(graph, inner, outputs)
    around = scope.graph.nodes
    position = next(index for index, each in enumerate(around) if each is node)
    scope.graph.nodes = [*around[:position], *nodes, *around[position + 1 :]]
    for constant in inner.constants:
        constant.as_node = constant.as_node or scope.kind == "function"
    scope.constants.extend(inner.constants)
    for each in graph.scopes:
        if each.parent is inner:
            each.parent = scope
    renew_keys(graph, holders)
    return taken


def _scope_of(graph: Graph, body: gs.Graph) -> Scope:
    return next(scope for scope in graph.scopes if scope.graph is body)


def _drop_scope(graph: Graph, scope: Scope) -> None:
    for each in list(scope.graph.nodes):
        graph.remove_node(scope, each)
    graph.scopes = [each for each in graph.scopes if each is not scope]


def _rename_moved(graph: Graph, inner: Scope) -> None:
    """Siblings may use the same names in their own graphs; in one graph names have to differ."""
    moved = [*inner.constants, *(out for node in inner.graph.nodes for out in node.outputs if out.name)]
    taken: Counter[str] = Counter()
    for scope in graph.scopes:
        taken.update(each.name for each in (*scope.graph.inputs, *scope.constants))
        taken.update(out.name for node in scope.graph.nodes for out in node.outputs)
    for tensor in moved:
        if taken[tensor.name]:
            tensor.name = graph.unique_name(tensor.name)
