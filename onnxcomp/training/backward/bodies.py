"""Bodies of nodes: new ones, and copies of those that a model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs
from onnx import GraphProto, helper

from onnxcomp.graph.ir.nodes import Body, Node, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.training.backward.values import Symbol, Writer


def new_body(write: Writer, name: str) -> Writer:
    """An empty body inside the scope that ``write`` writes into."""
    graph = write.graph
    body = Body(name=graph.unique_name(name), opset=graph.opset)
    scope = Scope(body, "subgraph", write.scope.key(body.name), graph.opset, GraphProto(name=body.name), write.scope)
    graph.scopes.append(scope)
    return Writer(graph, write.shapes, scope)


def add_input(write: Writer, data_type: int, shape: Any = None) -> Symbol:
    """A further input of a body."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type) if data_type else None
    made = write.graph.variable(f"{write.scope.graph.name}_input", dtype, None if shape is None else list(shape))
    write.shapes.note(made, data_type, shape)
    write.scope.graph.inputs.append(made)
    return Symbol(write, made, data_type)


def add_output(write: Writer, value: Symbol, shape: Any = None) -> None:
    """A further output of a body, under a name of its own; a Scan wants its rank, where that cannot be inferred."""
    dtype = helper.tensor_dtype_to_np_dtype(value.data_type) if value.data_type else None
    made = write.graph.variable(f"{write.scope.graph.name}_output", dtype, None if shape is None else list(shape))
    write.graph.node(write.scope, "Identity", [value.tensor], [made])
    write.scope.graph.outputs.append(made)


def copied_into(write: Writer, body: gs.Graph, known: dict[Any, Any]) -> list[Node]:
    """Write a body's nodes once more, in order; ``known`` says what stands for its inputs and gets what stands for what
    its nodes make."""
    scope = next(each for each in write.graph.scopes if each.graph is body)
    for constant in scope.constants:
        if constant not in known:
            known[constant] = write.graph.constant(write.scope, constant.name, constant.values)
    return [_copied(write, node, known) for node in ordered(body.nodes)]


def _copied(write: Writer, node: Node, known: dict[Any, Any]) -> Node:
    attrs = {name: _attribute(write, value, known) for name, value in node.attrs.items()}
    inputs = [known.get(each, each) if each.name else Variable("") for each in node.inputs]
    outputs = [twin(write, each, known) if each.name else Variable("") for each in node.outputs]
    return write.graph.node(write.scope, node.op, inputs, outputs, attrs=attrs, domain=node.domain or "")


def _attribute(write: Writer, value: Any, known: dict[Any, Any]) -> Any:
    if isinstance(value, list) and any(isinstance(each, gs.Graph) for each in value):
        return [_attribute(write, each, known) for each in value]
    if not isinstance(value, gs.Graph):
        return value
    inner = new_body(write, value.name or "body")
    inner.scope.graph.inputs = [twin(inner, each, known) for each in value.inputs]
    copied_into(inner, value, known)
    inner.scope.graph.outputs = [known.get(each, each) for each in value.outputs]
    return inner.scope.graph


def twin(write: Writer, tensor: Any, known: dict[Any, Any]) -> Variable:
    """A new tensor that stands for another, of the same type and shape."""
    made = write.graph.variable(tensor.name, dtype=tensor.dtype, shape=tensor.shape)
    write.shapes.note(made, write.shapes.data_type(tensor), write.shapes.shape(tensor))
    known[tensor] = made
    return made


def captured(graph: Graph, node: Node) -> list[Any]:
    """The tensors of the scopes around it that a node's bodies read."""
    own = {each for body in _bodies(node) for each in _made(graph, body)}
    return list(dict.fromkeys(each for each in inner_reads(node) if each.name and each not in own))


def _bodies(node: Node) -> Iterator[gs.Graph]:
    for value in node.attrs.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, gs.Graph):
                yield each


def _made(graph: Graph, body: gs.Graph) -> Iterator[Any]:
    yield from body.inputs
    yield from next(each for each in graph.scopes if each.graph is body).constants
    for node in body.nodes:
        yield from node.outputs
        for inner in _bodies(node):
            yield from _made(graph, inner)
