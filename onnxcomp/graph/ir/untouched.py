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
    return GraphState((scopes, encodings, settings, _known(graph.stored, held)), held)


def _scope(scope: Scope, held: list[Any]) -> tuple[Any, ...]:
    return (
        (_known(scope.graph, held), scope.path, scope.opset),
        (tuple(scope.graph.inputs), tuple(scope.graph.outputs), scope.trailing),
        tuple(_known(each, held) for each in scope.overridable),
        tuple((each, each.name, _known(each._values, held), each.as_node, each.was_used) for each in scope.constants),
        tuple(_node(each, held) for each in scope.graph.nodes),
    )


def _node(node: Node, held: list[Any]) -> tuple[Any, ...]:
    return (
        (node, node.op, node.name, node.domain, node.was_dead, node.leading),
        tuple(node.inputs),
        tuple((out, out.name, *_type(out)) for out in node.outputs),
        tuple((name, _value(each, held)) for name, each in node.attrs.items()) if node.attrs else (),
    )


def _type(tensor: Any) -> tuple[Any, ...]:
    if isinstance(tensor, Constant):
        return ()
    return tensor.dtype, None if tensor.shape is None else tuple(tensor.shape)


def _value(value: Any, held: list[Any]) -> Any:
    if not isinstance(value, PLAIN):
        return _known(value, held)
    return tuple(_value(each, held) for each in value) if isinstance(value, list) else value


def _known(value: Any, held: list[Any]) -> int:
    held.append(value)
    return id(value)
