"""What nothing reads goes away.

    x -> Relu -> y        z -> Neg -> (nobody)        becomes        x -> Relu -> y

Nodes, initializers, functions and imports of operator sets, in the main graph, in subgraphs and in functions.
The graph's inputs and outputs stay, with the defaults of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.functions import drop_function, functions_of, used_functions
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.writer import sweep
from onnxcomp.operators import ONNX_DOMAINS


@dataclass(frozen=True, kw_only=True)
class DropUnused(Pass):
    """Drop nodes, initializers, functions and opset imports that nothing uses."""

    effect = Effect(shrinks=("bytes", "load", "memory"), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        _drop_functions(graph, context, outcome)
        _drop_nodes(graph, context, outcome)
        _drop_functions(graph, context, outcome)
        _drop_imports(graph, context, outcome)
        return outcome


def _drop_nodes(graph: Graph, context: Context, outcome: Outcome) -> None:
    """Let the sweep take also what was unread from the start, and note all that is gone after it.

    What is not selected it leaves, even where its only reader goes.
    """
    nodes = {node: node_key(scope, node) for scope, node in graph.nodes()}
    constants = {each: scope.key(each.name) for scope in graph.scopes for each in scope.constants}
    for node, key in nodes.items():
        node.was_dead = not context.selects(key)
    for constant, key in constants.items():
        constant.was_used = context.selects(key)
    sweep(graph)
    left = {node for _, node in graph.nodes()} | {each for scope in graph.scopes for each in scope.constants}
    for node, key in nodes.items():
        if node not in left:
            outcome.change(key, f"dropped unused {node.op}")
    for constant, key in constants.items():
        if constant not in left:
            outcome.change(key, "dropped unused constant")


def _drop_functions(graph: Graph, context: Context, outcome: Outcome) -> None:
    """Drop the functions that no node calls, directly or through another function."""
    used = used_functions(graph)
    for identity, scope in functions_of(graph).items():
        if identity in used or not context.selects(scope.path, f"{identity[0]}:{identity[1]}"):
            continue
        drop_function(graph, scope)
        outcome.change(scope.path, "dropped unused function")


def _drop_imports(graph: Graph, context: Context, outcome: Outcome) -> None:
    """Drop imports of domains that no node names; the default domain stays."""
    used = ONNX_DOMAINS | {node.domain for _, node in graph.nodes()}
    used |= {domain for domain, _, _ in functions_of(graph)}
    for domain in [each for each in graph.opset_imports if each not in used and context.selects(each)]:
        del graph.opset_imports[domain]
        outcome.change(domain, "dropped unused opset import")
