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

from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
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

from onnxcomp.graph.ir import Array, Constant, Node, ProtoValues, Variable
from onnxcomp.model import Model, opset_of

Names = MutableMapping[str, Any]

PLAIN_CONSTANTS = frozenset({"value", "value_float", "value_floats", "value_int", "value_ints"})


@dataclass(eq=False)
class Scope:
    """One graph of the model: the main graph, a subgraph of a node, or the body of a local function.

    path: "" for the main graph, "node/branch" for a subgraph, "function domain:name" for a function.
    """

    graph: gs.Graph
    kind: str
    path: str
    opset: int
    origin: GraphProto | FunctionProto
    parent: Scope | None = None
    constants: list[Constant] = field(default_factory=list)
    trailing: tuple[Constant, ...] = ()
    overridable: list[Any] = field(default_factory=list)  # initializers of graph inputs, from IR version 4 on

    def key(self, name: str) -> str:
        """The name by which the whole model knows a tensor or node of this scope."""
        return f"{self.path}/{name}" if self.path else name


class Graph:
    """A model opened for editing."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self.encodings = dict(model.encodings)
        self.opset_imports: dict[str, int] = {each.domain: each.version for each in model.proto.opset_import}
        self.ir_version = model.proto.ir_version
        self._names: set[str] = set()

    @property
    def main(self) -> Scope:
        """The main graph."""
        return self.scopes[0]

    @property
    def opset(self) -> int:
        """The default domain's version in the main graph and its subgraphs."""
        return self.opset_imports.get("", self.opset_imports.get("ai.onnx", 0))

    def nodes(self) -> Iterator[tuple[Scope, Node]]:
        """Every node of every scope."""
        for scope in self.scopes:
            for node in list(scope.graph.nodes):
                yield scope, node

    def unique_name(self, base: str) -> str:
        """A tensor or node name that nothing in the model has; ``base`` itself if it is free."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def rename(self, names: Mapping[Any, str]) -> None:
        """Give tensors other names, all at once; they must differ from each other and from those that stay."""
        self._names.difference_update(tensor.name for tensor in names)
        for tensor, name in names.items():
            tensor.name = name
        self._names.update(names.values())

    def is_free(self, name: str) -> bool:
        """Whether nothing in the model has this name yet."""
        return name not in self._names

    def constant(self, scope: Scope, base: str, values: Array) -> Constant:
        """A new constant of the scope under a free name that starts with ``base``."""
        made = Constant(self.unique_name(base), np.asarray(values), self.model)
        made.as_node = scope.kind == "function"
        made.was_used = True
        scope.constants.append(made)
        return made

    def variable(self, base: str, dtype: Any = None, shape: Sequence[int | str] | None = None) -> Variable:
        """A new run-time tensor under a free name."""
        return Variable(self.unique_name(base), dtype=dtype, shape=shape)

    def node(
        self,
        scope: Scope,
        op: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        domain: str = "",
        before: Node | None = None,
    ) -> Node:
        """Add a node to the scope, before another one or at the end; closing sorts what is out of order."""
        made = Node(op, name, OrderedDict(attrs or {}), list(inputs), list(outputs), domain or None)
        nodes = scope.graph.nodes
        position = next((i for i, each in enumerate(nodes) if each is before), len(nodes))
        nodes.insert(position, made)
        return made

    def remove_node(self, scope: Scope, node: Node) -> None:
        """Take a node away, with its subgraphs' reads of outer tensors; its outputs keep their readers."""
        for body in subgraphs_of(node):
            inner = next(each for each in self.scopes if each.graph is body)
            for each in list(body.nodes):
                self.remove_node(inner, each)
            self.scopes.remove(inner)
        node.inputs.clear()
        node.outputs.clear()
        scope.graph.nodes = [each for each in scope.graph.nodes if each is not node]

    def replace_reads(self, old: Any, new: Any) -> None:
        """Let every reader of ``old`` read ``new``; graph outputs are left (see ``is_output``)."""
        for reader in list(old.outputs):
            for index, tensor in enumerate(list(reader.inputs)):
                if tensor is old:
                    reader.inputs[index] = new

    def to_variable(self, constant: Constant) -> Variable:
        """Put a run-time tensor of the same name, type and shape in a constant's place; a node must then produce it."""
        scope = self.scope_of(constant)
        made = Variable(constant.name, dtype=constant.dtype, shape=list(constant.shape))
        self.replace_reads(constant, made)
        for each in self.scopes:
            each.graph.outputs = [made if out is constant else out for out in each.graph.outputs]
        self.forget(scope, constant)
        return made

    def forget(self, scope: Scope, constant: Constant) -> None:
        """Remove a constant that nothing reads."""
        scope.constants = [each for each in scope.constants if each is not constant]

    def scope_of(self, constant: Constant) -> Scope:
        """The scope in which a constant is defined."""
        return next(scope for scope in self.scopes if any(each is constant for each in scope.constants))

    def is_output(self, tensor: Any) -> bool:
        """Whether the tensor is an output of the graph that it belongs to."""
        return any(tensor is out for scope in self.scopes for out in scope.graph.outputs)

    def is_read(self, tensor: Any) -> bool:
        """Whether a node or a graph output uses the tensor."""
        return bool(tensor.outputs) or self.is_output(tensor)


def subgraphs_of(node: gs.Node) -> list[gs.Graph]:
    """The bodies that a node carries in its attributes."""
    found = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            found.append(value)
        elif isinstance(value, list):
            found.extend(each for each in value if isinstance(each, gs.Graph))
    return found


# --- opening -------------------------------------------------------------------------------------------


def open_graph(model: Model) -> Graph:
    """Open a model for editing; nothing is read but its structure."""
    graph = Graph(model)
    _collect_names(model.proto, graph._names)
    _Reader(graph, "main", opset_of(model.proto.opset_import)).read(model.proto.graph, ChainMap(), "", None)
    for function in model.proto.functions:
        path = f"function {function.domain}:{function.name}" + (
            f":{function.overload}" if function.overload else ""
        )
        reader = _Reader(graph, "function", opset_of(function.opset_import))
        reader.read(function, ChainMap(), path, None)
    for _, node in graph.nodes():
        node.was_dead = not any(graph.is_read(out) for out in node.outputs)
    outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}
    for scope in graph.scopes:
        for constant in scope.constants:
            constant.was_used = bool(constant.outputs) or id(constant) in outputs
    return graph


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
        body = gs.Graph(name=proto.name, opset=self.opset)
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
            made.dtype, made.shape = _type_of(info)
        names[name] = made
        return made

    def _look_up(self, names: ChainMap[str, Any], name: str) -> Any:
        if not name:
            return Variable("")
        return names[name] if name in names else self._define(names, name)

    def _read_nodes(self, scope: Scope, names: ChainMap[str, Any]) -> None:
        waiting: list[Constant] = []
        for index, proto in enumerate(scope.origin.node):
            values = _plain_constant(proto)
            if values is not None:
                waiting.append(self._read_constant_node(scope, names, proto, values))
                continue
            node = Node(proto.op_type, proto.name, domain=proto.domain or None)
            node.inputs.extend([self._look_up(names, name) for name in proto.input])
            node.outputs.extend(
                [self._look_up(names, name) if name else Variable("") for name in proto.output]
            )
            node.origin, node.leading = proto, tuple(waiting)
            waiting = []
            scope.graph.nodes.append(node)
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

    def _read_attribute(
        self, attribute: AttributeProto, scope: Scope, names: ChainMap[str, Any], label: str
    ) -> Any:
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


def attribute_value(attribute: AttributeProto) -> Any:
    """A number, text or list of them as Python values; any other kind as the AttributeProto itself."""
    match attribute.type:
        case AttributeProto.INT:
            return attribute.i
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.STRING:
            return _text(attribute.s)
        case AttributeProto.INTS:
            return list(attribute.ints)
        case AttributeProto.FLOATS:
            return list(attribute.floats)
        case AttributeProto.STRINGS:
            return [_text(each) for each in attribute.strings]
    return attribute


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _plain_constant(node: NodeProto) -> AttributeProto | None:
    """The attribute that holds a Constant node's dense numeric value, or None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    values = node.attribute[0] if len(node.attribute) == 1 else None
    if values is None or values.name not in PLAIN_CONSTANTS or values.ref_attr_name:
        return None
    return values


def _type_of(info: ValueInfoProto) -> tuple[Any, list[int | str | None] | None]:
    """The numpy dtype and shape that a value info states; None for what it leaves open."""
    if not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
    ]


# --- closing -------------------------------------------------------------------------------------------


def close_graph(graph: Graph) -> Model:
    """Write the edited graph as a new Model; the one it was opened from is not touched."""
    from onnxcomp.graph.writer import write

    return write(graph)
