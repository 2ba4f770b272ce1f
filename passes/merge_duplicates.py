"""Equal constants and equal computations are kept once.

    a = [1, 2]  b = [1, 2]        becomes        a = [1, 2], read in b's place too
    Relu(x), Relu(x)              becomes        one Relu(x) with the readers of both

Constants are equal by type, shape and every bit, within a graph or against the graphs around it. Nodes are
equal by operator, attributes and inputs, within one graph; random ones never, nor quantization, whose nodes
ONNX Runtime wants one for each reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import has_references, is_onnx, is_random, node_key
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import sweep

ONE_PER_READER = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, kw_only=True)
class MergeDuplicates(Pass):
    """Keep equal constants and equal computations once."""

    effect = Effect(shrinks=("bytes", "load", "memory"), exact=Exact.TENSORS)
    as_stored = True

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        _merge_constants(graph, context, outcome)
        for scope in graph.scopes:
            _merge_nodes(graph, scope, context, outcome)
        sweep(graph)
        return outcome


# --- constants -----------------------------------------------------------------------------------------


def _merge_constants(graph: Graph, context: Context, outcome: Outcome) -> None:
    repeated = _repeated_forms(graph)
    leading = {each: node for _, node in graph.nodes() for each in node.leading}
    for first, scope, second, inner in _equal_pairs(graph, repeated):
        key, kept_key = inner.key(second.name), scope.key(first.name)
        if not context.selects(key) or not context.selects(kept_key) or not second.outputs:
            continue
        if graph.is_output(second):
            outcome.skip(key, "it is a graph output")
            continue
        encodings = [graph.encodings[each] for each in (kept_key, key) if each in graph.encodings]
        if first in leading:  # its new readers may stand before it
            node = leading.pop(first)
            node.leading = tuple(each for each in node.leading if each is not first)
        scope.trailing = tuple(each for each in scope.trailing if each is not first)
        graph.replace_reads(second, first)
        if encodings:
            graph.encodings[kept_key] = encodings[0]
        graph.encodings.pop(key, None)
        outcome.change(key, "merged with its equal", kept=kept_key)


def _repeated_forms(graph: Graph) -> set[Hashable]:
    """Types and shapes that more than one constant has: only these are read and compared."""
    seen: set[Hashable] = set()
    repeated: set[Hashable] = set()
    for scope in graph.scopes:
        for constant in scope.constants:
            (repeated if _form(constant) in seen else seen).add(_form(constant))
    return repeated


def _form(constant: Constant) -> Hashable:
    return constant.data_type, tuple(constant.shape)


def _equal_pairs(graph: Graph, repeated: set[Hashable]) -> Iterator[tuple[Constant, Scope, Constant, Scope]]:
    """Pairs of a constant to keep and an equal one of the same scope or of one inside it."""
    kept: dict[int, dict[Hashable, Constant]] = {}
    for scope in graph.scopes:  # outer ones come before the ones inside
        own = kept.setdefault(id(scope), {})
        for constant in scope.constants:
            if _form(constant) not in repeated or constant.dtype == object:
                continue
            content = (_form(constant), _digest(constant))
            around: Scope | None = scope
            while around is not None and content not in kept[id(around)]:
                around = around.parent
            if around is None:
                own[content] = constant
            else:
                yield kept[id(around)][content], around, constant, scope


def _digest(constant: Constant) -> bytes:
    values = np.ascontiguousarray(constant.values)
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).digest()


# --- nodes ---------------------------------------------------------------------------------------------


def _merge_nodes(graph: Graph, scope: Scope, context: Context, outcome: Outcome) -> None:
    seen: dict[Hashable, Node] = {}
    for node in ordered(scope.graph.nodes):
        content = _content(node)
        if content is None or not context.selects(node_key(scope, node)):
            continue
        first = seen.setdefault(content, node)
        if first is node:
            continue
        if any(graph.is_output(out) for out in node.outputs):
            if any(graph.is_output(out) for out in first.outputs):
                outcome.skip(node_key(scope, node), "both are graph outputs")
                continue
            _move_outputs(first, node)
        for kept, dropped in zip(first.outputs, node.outputs, strict=True):
            graph.replace_reads(dropped, kept)
        key, kept_key = node_key(scope, node), node_key(scope, first)
        graph.remove_node(scope, node)
        outcome.change(key, f"merged with its equal {node.op}", kept=kept_key)


def _move_outputs(first: Node, second: Node) -> None:
    """Exchange the outputs of two equal nodes, so that the one that stays gives the graph output its name."""
    mine, theirs = list(first.outputs), list(second.outputs)
    first.outputs.clear()
    second.outputs.clear()
    first.outputs.extend(theirs)
    second.outputs.extend(mine)


def _content(node: Node) -> Hashable | None:
    """What makes two nodes equal; None for those that are never merged."""
    if not is_onnx(node) or is_random(node) or node.op in ONE_PER_READER or node.was_dead:
        return None
    if subgraphs_of(node) or has_references(node) or not node.inputs:
        return None
    inputs = tuple(id(each) if each.name else 0 for each in node.inputs)
    used = tuple(bool(each.name) for each in node.outputs)
    attributes = tuple(sorted((name, _frozen(value)) for name, value in node.attrs.items()))
    return node.op, inputs, used, attributes


def _frozen(value: Any) -> str:
    if isinstance(value, AttributeProto):
        return value.SerializeToString(deterministic=True).hex()
    return repr(value)
