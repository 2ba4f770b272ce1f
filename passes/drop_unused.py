"""What nothing reads goes away.

    x -> Relu -> y        z -> Neg -> (nobody)        becomes        x -> Relu -> y

Nodes, initializers, functions and imports of operator sets, in the main graph, in subgraphs and in functions.
The graph's inputs and outputs stay, with the defaults of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract import Context, Effect, Outcome, Pass
from onnxcomp.graph.edit import node_key
from onnxcomp.graph.surgery import Graph, Scope, subgraphs_of
from onnxcomp.graph.writer import sweep

FunctionId = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class DropUnused(Pass):
    """Drop nodes, initializers, functions and opset imports that nothing uses."""

    effect = Effect(shrinks=("bytes", "load", "memory"), exact=True)

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
    functions = {_identity(scope): scope for scope in graph.scopes if scope.kind == "function"}
    used: set[FunctionId] = set()
    waiting = [graph.main]
    while waiting:
        for called in _calls(graph, waiting.pop()):
            if called in functions and called not in used:
                used.add(called)
                waiting.append(functions[called])
    for identity, scope in functions.items():
        name = f"{identity[0]}:{identity[1]}"
        if identity in used or not context.selects(scope.path, name):
            continue
        for node in list(scope.graph.nodes):
            graph.remove_node(scope, node)
        graph.scopes.remove(scope)
        outcome.change(scope.path, "dropped unused function")


def _identity(scope: Scope) -> FunctionId:
    origin = scope.origin
    return origin.domain, origin.name, getattr(origin, "overload", "")  # type: ignore[union-attr]


def _calls(graph: Graph, scope: Scope) -> set[FunctionId]:
    """The operators that a scope and its subgraphs name."""
    bodies = {id(each.graph): each for each in graph.scopes}
    found: set[FunctionId] = set()
    for node in scope.graph.nodes:
        found.add((node.domain or "", node.op, node.origin.overload if node.origin is not None else ""))
        for body in subgraphs_of(node):
            found |= _calls(graph, bodies[id(body)])
    return found


def _drop_imports(graph: Graph, context: Context, outcome: Outcome) -> None:
    """Drop imports of domains that no node names; the default domain stays."""
    used = {"", "ai.onnx"}
    used |= {node.domain or "" for _, node in graph.nodes()}
    used |= {_identity(scope)[0] for scope in graph.scopes if scope.kind == "function"}
    for domain in [each for each in graph.opset_imports if each not in used and context.selects(each)]:
        del graph.opset_imports[domain]
        outcome.change(domain, "dropped unused opset import")
