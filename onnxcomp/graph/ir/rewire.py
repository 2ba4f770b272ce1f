"""Small edits and questions that many passes share: bypass a node, sort, name and look up what stands where.

x -> node -> y -> readers        becomes        x -> readers
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.scopes import separate_keys
from onnxcomp.noise import ONNX_DOMAINS as WRITTEN_DOMAINS
from onnxcomp.noise import RANDOM_OPS

ONNX_DOMAINS = frozenset({None, *WRITTEN_DOMAINS})


def is_onnx(node: Node, *ops: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node.domain in ONNX_DOMAINS and (not ops or node.op in ops)


def node_key(scope: Scope, node: Node) -> str:
    """The name by which the model knows a node: its own, or that of its first output."""
    named = next((out.name for out in node.outputs if out.name), node.op)
    return scope.key(node.name or named)


def given(node: Node, index: int) -> Any | None:
    """The input at a position, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) and node.inputs[index].name else None


def constant_value(tensor: Any | None) -> Array | None:
    """The values of a constant tensor, None for one that is computed or left out."""
    return tensor.values if isinstance(tensor, Constant) else None


def ints(tensor: Any | None) -> list[int] | None:
    """The values of a constant whole-number tensor as a flat list, None for anything else."""
    values = constant_value(tensor)
    if values is None or not np.issubdtype(values.dtype, np.integer):
        return None
    return [int(each) for each in values.reshape(-1)]


def producer(tensor: Any) -> Node | None:
    """The node that computes a tensor, None for constants, graph inputs and what comes from outside."""
    return tensor.inputs[0] if isinstance(tensor, Variable) and tensor.inputs else None


def is_random(node: Node) -> bool:
    """Whether the node may give other values each time: the random operators, and Dropout in training."""
    return is_onnx(node) and (node.op in RANDOM_OPS or (node.op == "Dropout" and trains(node)))


def trains(node: Node) -> bool:
    """Whether a Dropout or BatchNormalization may be in training mode."""
    if node.op == "BatchNormalization":
        return node.attrs.get("training_mode", 0) != 0 or len([out for out in node.outputs if out.name]) > 1
    mode = given(node, 2)
    values = constant_value(mode)
    return mode is not None and (values is None or bool(np.any(values)))


def has_references(node: Node) -> bool:
    """Whether an attribute is a parameter of the function around the node, so that its value is not known."""
    from onnx_graphsurgeon import Node as SurgeonNode

    return any(isinstance(value, SurgeonNode.AttributeRef) for value in node.attrs.values())


def takes_constant(tensor: Any, rank: int) -> bool:
    """Whether the tensor's readers accept a constant of this rank in its place.

    Range is specified for scalars; a vector of one element passes while it is computed, but not as a constant.
    """
    return rank == 0 or not any(is_onnx(reader, "Range") for reader in tensor.outputs)


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
