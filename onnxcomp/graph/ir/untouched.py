"""Whether a graph is as it was before, so that it need not be opened, or looked at, again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.scopes import Graph, Scope

PLAIN = (int, float, str, bytes, list)


@dataclass(frozen=True)
class GraphState:
    """What edits change. Two equal ones of one graph: nothing has changed between them.

    held: what ``content`` knows by its id; as long as it lives nothing else gets that.
    """

    content: tuple[Any, ...]
    held: list[Any] = field(compare=False, repr=False)


def state_of(graph: Graph) -> GraphState:
    """The state of an open graph."""
    held: list[Any] = []
    encodings = tuple((key, _known(each, held)) for key, each in graph.encodings.items())
    settings = (graph.opset_imports.copy(), graph.ir_version, len(graph._names), graph._counts.copy())
    scopes = tuple(_scope(each, held) for each in graph.scopes)
    return GraphState((scopes, encodings, settings, _known(graph.stored, held), _known(graph.model, held)), held)


def _scope(scope: Scope, held: list[Any]) -> tuple[Any, ...]:
    return (
        (_known(scope.graph, held), _known(scope.origin, held), scope.kind, scope.path, scope.opset, scope.parent),
        tuple((each, each.name, *_type(each, held)) for each in (*scope.graph.inputs, *scope.graph.outputs)),
        scope.trailing,
        tuple(_known(each, held) for each in scope.overridable),
        tuple(_constant(each, held) for each in scope.constants),
        tuple(_node(each, held) for each in scope.graph.nodes),
    )


def _constant(constant: Constant, held: list[Any]) -> tuple[Any, ...]:
    own = (constant._values, constant.origin, constant.node_origin, constant.node_values)
    return (constant, constant.name, constant.as_node, constant.was_used, *(_known(each, held) for each in own))


def _node(node: Node, held: list[Any]) -> tuple[Any, ...]:
    return (
        (node, node.op, node.name, node.domain, node.was_dead, node.leading, _known(node.origin, held)),
        tuple(node.inputs),
        tuple((out, out.name, *_type(out, held)) for out in node.outputs),
        tuple((name, _value(each, held)) for name, each in node.attrs.items()) if node.attrs else (),
    )


def _type(tensor: Any, held: list[Any]) -> tuple[Any, ...]:
    if isinstance(tensor, Constant):
        return ()
    return tensor.dtype, None if tensor.shape is None else tuple(tensor.shape), _known(tensor.origin, held)


def _value(value: Any, held: list[Any]) -> Any:
    if not isinstance(value, PLAIN):
        return _known(value, held)
    return tuple(_value(each, held) for each in value) if isinstance(value, list) else value


def _known(value: Any, held: list[Any]) -> int:
    held.append(value)
    return id(value)
