"""A call of a model-local function gives way to the function's nodes.

    y = local.F(x)    F(a) -> b: {h = Neg(a), b = Relu(h)}        becomes        h = Neg(x), y = Relu(h)

ONNX Runtime does the same when it opens a model. Passes that watch tensors or look for neighbours see only what
is written out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.functions import FunctionId, Inliner, called, drop_function, functions_of, misfit, used_functions
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import key_holders, renew_keys


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Write model-local functions out where they are called.

    A function that is called more than once costs its bytes each time. One whose operators are of a version that
    means something else in the model stays as it is, and so does one that takes a subgraph as an attribute.
    """

    effect = Effect(shrinks=("load",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        functions = functions_of(graph)
        before = used_functions(graph)
        if not before:
            return outcome
        holders = key_holders(graph)
        run = _Run(graph, context, outcome, functions)
        for scope in [each for each in graph.scopes if not each.is_in_function]:
            run.expand(scope)
        renew_keys(graph, holders)
        keys = {constant: key for key, constant in key_holders(graph).items()}
        graph.encodings.update({keys[each]: encoding for each, encoding in run.inliner.encodings.items()})
        for name in before - used_functions(graph):
            drop_function(graph, functions[name])
        return outcome


@dataclass
class _Run:
    """One application of the pass."""

    graph: Graph
    context: Context
    outcome: Outcome
    functions: dict[FunctionId, Scope]
    inliner: Inliner = field(init=False)
    faults: dict[FunctionId, str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.inliner = Inliner(self.graph)
        self.faults = {name: misfit(self.graph, each) for name, each in self.functions.items()}

    def expand(self, scope: Scope, outer: tuple[FunctionId, ...] = ()) -> None:
        """Write out the calls in a scope."""
        nodes: list[Node] = []
        for node in list(scope.graph.nodes):
            nodes.extend(self._written_out(scope, node, outer))
        scope.graph.nodes = nodes

    def _written_out(self, scope: Scope, node: Node, outer: tuple[FunctionId, ...]) -> list[Node]:
        """The node, or what it calls, with all that is called in turn; ``outer``: the calls that this one is in."""
        name = called(node)
        if name not in self.functions:
            return [node]
        key = node_key(scope, node)
        if not self.context.selects(key):
            return [node]
        fault = self._fault(node, name, outer)
        if fault:
            self.outcome.skip(key, fault)
            return [node]
        scopes = len(self.graph.scopes)
        nodes = self.inliner.write_out(scope, node, self.functions[name])
        self.outcome.change(key, f"wrote out {name[0]}:{name[1]}")
        for body in self.graph.scopes[scopes:]:
            self.expand(body, (*outer, name))
        return [inner for each in nodes for inner in self._written_out(scope, each, (*outer, name))]

    def _fault(self, node: Node, name: FunctionId, outer: tuple[FunctionId, ...]) -> str | None:
        if name in outer:
            return "it calls itself"
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return "it takes a subgraph as an attribute"
        return self.faults[name]
