"""Small edits that many passes share: bypass a node, move a constant, renew the keys of what was moved.

x -> node -> y -> readers        becomes        x -> readers
"""

from __future__ import annotations

from typing import Any

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import has_one_reader, producer, takes_constant
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.scopes import separate_keys


def bypass(graph: Graph, scope: Scope, node: Node, source: Any) -> bool:
    """Remove a node whose first output equals ``source``; False, and nothing done, if a name would be lost.

    A graph output keeps its name: the node that makes ``source`` then makes the output instead. That needs
    a node of the same scope, and ``source`` not to be an output itself. False too where a reader takes no
    constant of that rank.
    """
    output = node.outputs[0]
    if isinstance(source, Constant) and not takes_constant(output, len(source.shape)):
        return False
    if not graph.is_output(output):
        graph.remove_node(scope, node)
        graph.replace_reads(output, source)
        return True
    maker = producer(source)
    if maker is None or graph.is_output(source) or not scope.graph.holds(maker):
        return False
    graph.remove_node(scope, node)
    position = next(index for index, out in enumerate(maker.outputs) if out is source)
    maker.outputs[position] = output
    graph.replace_reads(source, output)
    return True


def set_input(node: Node, index: int, tensor: Any) -> None:
    """Let a node read a tensor at a position, which may be the one after its last."""
    if index < len(node.inputs):
        node.inputs[index] = tensor
    else:
        node.inputs.append(tensor)


def set_constant(graph: Graph, scope: Scope, node: Node, index: int, values: Array) -> None:
    """Let a node read other values than those of its constant: in that one where nothing else reads it and shape and
    type stay, else in a new one of the scope."""
    old = node.inputs[index]
    if tuple(old.shape) == values.shape and old.dtype == values.dtype and has_one_reader(graph, old):
        old.values = values
        graph.encodings.pop(graph.scope_of(old).key(old.name), None)
    else:
        node.inputs[index] = graph.constant(scope, old.name, values)


def move_up(scope: Scope, constant: Constant) -> None:
    """Let a Constant node stand before all other nodes, so that any of them may read it."""
    for node in scope.graph.nodes:
        if any(each is constant for each in node.leading):
            node.leading = tuple(each for each in node.leading if each is not constant)
    scope.trailing = tuple(each for each in scope.trailing if each is not constant)


def key_holders(graph: Graph) -> dict[str, Constant]:
    """Which constant each key names now; for ``renew_keys`` after an edit that renames or moves."""
    return {scope.key(each.name): each for scope in graph.scopes for each in scope.constants}


def renew_keys(graph: Graph, holders: dict[str, Constant]) -> None:
    """Make the paths of subgraphs and the keys of encodings what they will be when the model is opened again.

    The path of a subgraph is made of the names of the nodes around it, or of their first outputs.
    """
    scopes = {id(scope.graph): scope for scope in graph.scopes}
    for scope in graph.scopes:  # outer ones first
        for node in scope.graph.nodes:
            label = node.name or next((out.name for out in node.outputs[:1]), "")
            for name, value in node.attrs.items():
                bodies = value if isinstance(value, list) else [value]
                for index, body in enumerate(bodies):
                    if label and id(body) in scopes:
                        suffix = str(index) if isinstance(value, list) else ""
                        scopes[id(body)].path = scope.key(f"{label}/{name}{suffix}")
    separate_keys(graph)
    keys = {constant: key for key, constant in key_holders(graph).items()}
    held = {holders[key]: each for key, each in graph.encodings.items() if key in holders}
    graph.encodings = {keys[constant]: each for constant, each in held.items() if constant in keys}
