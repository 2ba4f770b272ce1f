"""Open a model for editing with onnx-graphsurgeon's IR, and close it again without losing anything.

    graph = open_graph(model)      # graphsurgeon nodes and tensors over lazily read values
    ...                            # edits
    smaller = close_graph(graph)   # a new Model; the old one is as it was

graphsurgeon's own importer and exporter drop metadata, doc strings, annotations, unused and overridable
initializers, several kinds of attributes, and copy outer-scope initializers into branches. So the IR is
filled and written here; every object remembers the proto that it came from, and what is unchanged is
written from that. After an edit, nodes and constants that lost their last reader are dropped; what
nothing read from the start stays.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from onnxcomp.graph.ir.nodes import Body, Constant, Node, ProtoValues, Variable
from onnxcomp.graph.ir.scopes import Graph, Scope, attribute_value, separate_keys, subgraphs_of, type_of
from onnxcomp.graph.ir.writer import write
from onnxcomp.memory import uncollected
from onnxcomp.model import Model, opset_of
from onnxcomp.operators import ONNX_DOMAINS

__all__ = ["Graph", "Scope", "attribute_value", "close_graph", "open_graph", "shown", "subgraphs_of"]

Names = MutableMapping[str, Any]

PLAIN_CONSTANTS = frozenset({"value", "value_float", "value_floats", "value_int", "value_ints"})


def open_graph(model: Model) -> Graph:
    """Open a model for editing; nothing is read but its structure."""
    with uncollected():
        return _opened(model)


def shown(model: Model) -> Graph:
    """The model opened for questions alone, once for all who ask: nobody edits what this gives."""
    if shown not in model.memo:
        model.memo[shown] = open_graph(model)
    graph: Graph = model.memo[shown]
    return graph


def _opened(model: Model) -> Graph:
    graph = Graph(model)
    _collect_names(model.proto, graph._names)
    _Reader(graph, "main", opset_of(model.proto.opset_import)).read(model.proto.graph, ChainMap(), "", None)
    for function in model.proto.functions:
        _read_function(graph, function)
    _note_use(graph.scopes)
    separate_keys(graph)
    _drop_misfits(graph)
    return graph


def _drop_misfits(graph: Graph) -> None:
    """Forget encodings of what another tool removed, turned, reshaped or cast."""
    held = {scope.key(each.name): each for scope in graph.scopes for each in scope.constants} if graph.encodings else {}
    graph.encodings = {
        key: encoding
        for key, encoding in graph.encodings.items()
        if key in held and encoding.dtype == str(held[key].dtype) and encoding.fits(tuple(held[key].shape))
    }


def read_function(graph: Graph, function: FunctionProto) -> list[Scope]:
    """Read the body of a local function once more, for a place where it is called: its scope, then its subgraphs'."""
    before = len(graph.scopes)
    _read_function(graph, function)
    made = graph.scopes[before:]
    _note_use(made)
    return made


def _read_function(graph: Graph, function: FunctionProto) -> None:
    overload = f":{function.overload}" if function.overload else ""
    reader = _Reader(graph, "function", opset_of(function.opset_import))
    reader.read(function, ChainMap(), f"function {function.domain}:{function.name}{overload}", None)


def _note_use(scopes: Iterable[Scope]) -> None:
    """Remember what nothing read from the start."""
    outputs = {id(out) for scope in scopes for out in scope.graph.outputs}
    for scope in scopes:
        for node in scope.graph.nodes:
            node.was_dead = not any(out.outputs or id(out) in outputs for out in node.outputs)
        for constant in scope.constants:
            constant.was_used = bool(constant.outputs) or id(constant) in outputs


def _collect_names(proto: ModelProto, names: set[str]) -> None:
    def visit(nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            names.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    visit_graph(body)

    def visit_graph(graph: GraphProto) -> None:
        names.update(each.name for each in (*graph.input, *graph.output))
        names.update(each.name for each in graph.initializer)
        names.update(each.values.name for each in graph.sparse_initializer)
        visit(graph.node)

    visit_graph(proto.graph)
    for function in proto.functions:
        names.update((*function.input, *function.output))
        visit(function.node)


class _Reader:
    """Fills the IR of one scope and, through its nodes, of the scopes inside it."""

    def __init__(self, graph: Graph, kind: str, opset: int) -> None:
        self.graph = graph
        self.kind = kind
        self.opset = opset

    def read(
        self, proto: GraphProto | FunctionProto, outer: ChainMap[str, Any], path: str, parent: Scope | None
    ) -> gs.Graph:
        body = Body(name=proto.name, opset=self.opset)
        scope = Scope(body, self.kind if parent is None else "subgraph", path, self.opset, proto, parent)
        self.graph.scopes.append(scope)
        names: ChainMap[str, Any] = outer.new_child()
        if isinstance(proto, FunctionProto):
            body.inputs = [self._define(names, name) for name in proto.input]
        else:
            self._read_constants(scope, names)
            body.inputs = [
                self._define(names, each.name, each) for each in proto.input if each.name not in names.maps[0]
            ]
        infos = {each.name: each for each in proto.value_info}
        if isinstance(proto, GraphProto):
            infos.update((each.name, each) for each in proto.output)
        self._declare(proto, names, infos)
        self._read_nodes(scope, names)
        outputs = proto.output if isinstance(proto, FunctionProto) else [each.name for each in proto.output]
        body.outputs = [self._look_up(names, name) for name in outputs]
        return body

    def _read_constants(self, scope: Scope, names: ChainMap[str, Any]) -> None:
        proto = scope.origin
        assert isinstance(proto, GraphProto)
        inputs = {each.name for each in proto.input} if self.graph.ir_version >= 4 else set()
        tensors: list[TensorProto | SparseTensorProto] = [*proto.initializer, *proto.sparse_initializer]
        for tensor in tensors:
            name = tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name
            if name in inputs:
                scope.overridable.append(tensor)
                continue
            constant = Constant(name, ProtoValues(tensor, self.graph.model), self.graph.model)
            scope.constants.append(constant)
            names[name] = constant

    def _declare(
        self, proto: GraphProto | FunctionProto, names: ChainMap[str, Any], infos: dict[str, ValueInfoProto]
    ) -> None:
        """Make the variables that this scope's nodes produce, so that they hide equal names outside."""
        for node in proto.node:
            if _plain_constant(node) is not None:
                continue
            for name in node.output:
                if name:
                    self._define(names, name, infos.get(name))

    def _define(self, names: ChainMap[str, Any], name: str, info: ValueInfoProto | None = None) -> Variable:
        made = Variable(name)
        if info is not None:
            made.origin = info
            made.dtype, made.shape = type_of(info)
        names[name] = made
        return made

    def _look_up(self, names: ChainMap[str, Any], name: str) -> Any:
        if not name:
            return Variable("")
        found = names.maps[0].get(name)
        if found is None:
            found = next((each[name] for each in names.maps[1:] if name in each), None)
        return self._define(names, name) if found is None else found

    def _read_nodes(self, scope: Scope, names: ChainMap[str, Any]) -> None:
        waiting: list[Constant] = []
        for index, proto in enumerate(scope.origin.node):
            values = _plain_constant(proto)
            if values is not None:
                waiting.append(self._read_constant_node(scope, names, proto, values))
                continue
            inputs = [self._look_up(names, name) for name in proto.input]
            outputs = [self._look_up(names, name) for name in proto.output]
            node = Node(proto.op_type, proto.name, None, inputs, outputs, proto.domain or None)
            node.origin, node.leading = proto, tuple(waiting)
            waiting = []
            scope.graph.put(node)
            label = proto.name or (proto.output[0] if proto.output else f"{proto.op_type}_{index}")
            for attribute in proto.attribute:
                node.attrs[attribute.name] = self._read_attribute(attribute, scope, names, label)
        scope.trailing = tuple(waiting)

    def _read_constant_node(
        self, scope: Scope, names: ChainMap[str, Any], proto: NodeProto, values: AttributeProto
    ) -> Constant:
        held: Any
        if values.name == "value":
            held = ProtoValues(values.t, self.graph.model)
        else:
            kind = np.float32 if "float" in values.name else np.int64
            held = np.array(helper.get_attribute_value(values), kind)
        constant = Constant(proto.output[0], held, self.graph.model)
        constant.node_origin, constant.as_node = proto, True
        constant.node_values = held if isinstance(held, ProtoValues) else None
        scope.constants.append(constant)
        names[constant.name] = constant
        return constant

    def _read_attribute(self, attribute: AttributeProto, scope: Scope, names: ChainMap[str, Any], label: str) -> Any:
        if attribute.ref_attr_name:
            return gs.Node.AttributeRef(attribute.ref_attr_name, attribute.type)
        if attribute.type == AttributeProto.GRAPH:
            return self.read(attribute.g, names, scope.key(f"{label}/{attribute.name}"), scope)
        if attribute.type == AttributeProto.GRAPHS and attribute.graphs:
            return [
                self.read(each, names, scope.key(f"{label}/{attribute.name}{i}"), scope)
                for i, each in enumerate(attribute.graphs)
            ]
        return attribute_value(attribute)


def _plain_constant(node: NodeProto) -> AttributeProto | None:
    """The attribute that holds a Constant node's dense numeric value, or None for any other node."""
    if node.op_type != "Constant" or node.domain not in ONNX_DOMAINS or len(node.output) != 1:
        return None
    values = node.attribute[0] if len(node.attribute) == 1 else None
    if values is None or values.name not in PLAIN_CONSTANTS or values.ref_attr_name:
        return None
    return values


def close_graph(graph: Graph) -> Model:
    """Write the edited graph as a new Model; the one it was opened from is not touched."""
    with uncollected():
        return write(graph)
