"""An If whose condition is known gives way to the branch that is taken.

    y = If(true, then: {a = Relu(x)}, else: {b = Neg(x)})        becomes        y = Relu(x)

Exporters leave such nodes where a condition was a setting, or a question about a shape that is fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.functions import hand_out
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_value, constants_by_key, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.graph.ir.rewire import renew_keys


@dataclass(frozen=True, kw_only=True)
class InlineBranches(Pass):
    """Replace an If of known condition by the branch that is taken."""

    effect = Effect(shrinks=("bytes", "latency", "load"), exact=Exact.TENSORS)
    as_stored = True

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome, inlining = Outcome(), _Inlining(graph)
        waiting = list(graph.scopes)
        while waiting:
            scope = waiting.pop(0)
            if not inlining.is_there(scope):
                continue
            for node in list(scope.graph.nodes):
                if _is_decided(node) and context.selects(key := node_key(scope, node)):
                    outcome.change(key, f"inlined {inlining.inline(scope, node)}")
                    if scope not in waiting:  # an If of the branch may be next
                        waiting.append(scope)
        inlining.finish()
        return outcome


def _is_decided(node: Node) -> bool:
    if not is_onnx(node, "If") or not all(isinstance(each, gs.Graph) for each in node.attrs.values()):
        return False
    condition = constant_value(node.inputs[0])
    return condition is not None and condition.size == 1 and len(node.attrs) == 2


class _Inlining:
    """Puts branches in the place of their Ifs, and knows the names and scopes that are left."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._scopes = {id(scope.graph): scope for scope in graph.scopes}
        self._names: Counter[str] = Counter()
        self._has_old_keys = False
        for scope in graph.scopes:
            self._names.update(_names(scope))

    def is_there(self, scope: Scope) -> bool:
        """Whether the scope is still one of the graph."""
        return id(scope.graph) in self._scopes

    def inline(self, scope: Scope, node: Node) -> str:
        """Let the branch that is taken stand in the place of an If; gives the attribute that holds it."""
        graph = self._graph
        holders = constants_by_key(graph) if graph.encodings else {}
        taken, left = ("then_branch", "else_branch")
        if not np.all(constant_value(node.inputs[0])):
            taken, left = left, taken
        self._drop(self._scopes[id(node.attrs[left])])
        inner = self._scopes[id(node.attrs[taken])]
        self._forget(inner)
        self._rename_moved(inner)
        outputs = list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        nodes = list(inner.graph.nodes)
        nodes += hand_out(graph, inner, outputs)
        self._names.subtract(each.name for each in outputs)
        self._names.update(each.name for each in inner.constants)
        self._names.update(out.name for each in nodes for out in each.outputs)
        around = scope.graph.nodes
        position = around.index(node)
        scope.graph.nodes = [*around[:position], *nodes, *around[position + 1 :]]
        for constant in inner.constants:
            constant.as_node = constant.as_node or scope.kind == "function"
        scope.constants.extend(inner.constants)
        nested = [each for each in graph.scopes if each.parent is inner]
        for each in nested:
            each.parent = scope
        self._has_old_keys = not nested and not holders  # then no key is asked for before all is done
        if not self._has_old_keys:
            renew_keys(graph, holders)
        return taken

    def finish(self) -> None:
        """Renew the keys that were not needed before."""
        if self._has_old_keys:
            renew_keys(self._graph, {})

    def _drop(self, scope: Scope) -> None:
        """Remove a branch that is not taken, with all that is inside."""
        for inside in self._all_in(scope):
            self._names.subtract(_names(inside))
            del self._scopes[id(inside.graph)]
        for each in list(scope.graph.nodes):
            self._graph.remove_node(scope, each)
        self._graph.scopes.remove(scope)

    def _all_in(self, scope: Scope) -> Iterator[Scope]:
        yield scope
        for node in scope.graph.nodes:
            for body in subgraphs_of(node):
                yield from self._all_in(self._scopes[id(body)])

    def _forget(self, scope: Scope) -> None:
        self._names.subtract(_names(scope))
        del self._scopes[id(scope.graph)]
        self._graph.scopes.remove(scope)

    def _rename_moved(self, inner: Scope) -> None:
        """Siblings may use the same names in their own graphs; in one graph names have to differ."""
        outputs = [out for node in inner.graph.nodes for out in node.outputs]
        for tensor in (*inner.constants, *(out for out in outputs if out.name)):
            if self._names[tensor.name] > 0:
                tensor.name = self._graph.unique_name(tensor.name)


def _names(scope: Scope) -> Iterator[str]:
    """What is defined in a scope, but for what its subgraphs define."""
    yield from (each.name for each in (*scope.graph.inputs, *scope.constants))
    yield from (out.name for node in scope.graph.nodes for out in node.outputs)
