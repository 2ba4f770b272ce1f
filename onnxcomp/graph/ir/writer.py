"""Write an edited graph as a ModelProto: unchanged parts from their origin, new ones from the IR."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Set
from pathlib import Path
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
    helper,
    numpy_helper,
)  # fmt: skip

from onnxcomp.graph.ir.nodes import Constant, Node, ProtoValues
from onnxcomp.graph.ir.scopes import Graph, Scope, attribute_value, inner_reads
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.value_infos import info_of, required_info, retyped
from onnxcomp.model import Model
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.tensors import (
    HeldFile,
    held_file,
    is_external,
    is_mapped,
    is_packed,
    make_tensor,
    reference_of,
    reference_to,
)

REBUILT_GRAPH_FIELDS = frozenset({"node", "initializer", "sparse_initializer", "input", "output", "value_info"})
REBUILT_FUNCTION_FIELDS = frozenset({"node"})


def write(graph: Graph) -> Model:
    """The edited graph as a new Model that shares the scratch folder of the old one; it may be edited further."""
    if graph.stored is None:
        return _written(graph)
    sweep(graph)
    graph.stored.put_back(graph)
    try:
        return _written(graph)
    finally:
        graph.stored.take_out(graph)


def _written(graph: Graph) -> Model:
    proto = whole_proto(graph, ProtoWriter(graph))
    names = {scope.key(each.name) for scope in graph.scopes for each in scope.constants}
    encodings = {name: each for name, each in graph.encodings.items() if name in names}
    made = graph.model.with_proto(proto, encodings)
    made.files = {each.path: each for scope in graph.scopes for each in map(_file_of, scope.constants) if each}
    return made


def _file_of(constant: Constant) -> HeldFile | None:
    """What holds the file in which the constant's values lie, where that is to go with those who refer to it."""
    held = constant._values
    if not isinstance(held, ProtoValues):
        return held_file(held)
    if not isinstance(held.tensor, TensorProto) or not is_external(held.tensor):
        return None
    return held.model.files.get(reference_of(held.tensor).get("location", ""))


def whole_proto(graph: Graph, writer: ProtoWriter) -> ModelProto:
    """The edited graph as a message, each scope by ``writer``."""
    sweep(graph)
    source = graph.model.proto
    proto = ModelProto()
    copy_fields(source, proto, {"graph", "functions", "opset_import", "ir_version"})
    proto.ir_version = graph.ir_version
    write_opsets(graph, proto)
    writer.write_graph(graph.main, proto.graph)
    if source.ir_version < 4 and (proto.ir_version >= 4 or _needs_ir4(proto.graph)):
        _lift_ir4(proto)
    for scope in graph.scopes:
        if scope.kind == "function":
            writer.write_function(scope, proto.functions.add())
    return proto


def node_proto(graph: Graph, node: Node) -> NodeProto:
    """A node as it would be written now."""
    return ProtoWriter(graph)._node(node)


def attributes_of(node: Node) -> list[AttributeProto]:
    """A node's attributes as they would be written now, without those that hold graphs."""
    origin = getattr(node, "origin", None)
    kept = {} if origin is None else {each.name: each for each in origin.attribute}
    plain = {name: value for name, value in node.attrs.items() if not isinstance(value, gs.Graph)}
    return [_attribute(name, value, kept.get(name)) for name, value in plain.items() if not _are_graphs(value)]


def tensor_proto(graph: Graph, constant: Constant, name: str) -> TensorProto:
    """A constant as one message under another name, its data included wherever it lies."""
    held = constant._values
    if isinstance(held, ProtoValues) and isinstance(held.tensor, TensorProto) and not is_external(held.tensor):
        return ProtoWriter(graph)._tensor(constant, name)
    return make_tensor(name, constant.values)


def write_opsets(graph: Graph, proto: ModelProto) -> None:
    imports = dict(graph.opset_imports)
    for entry in graph.model.proto.opset_import:
        if entry.domain in imports:
            kept = proto.opset_import.add()
            kept.CopyFrom(entry)
            kept.version = imports.pop(entry.domain)
    for domain, version in imports.items():
        proto.opset_import.add(domain=domain, version=version)


def sweep(graph: Graph) -> None:
    """Drop nodes and constants that lost their last reader; those that never had one stay."""
    homes = {node: scope for scope, node in graph.nodes()}
    outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}
    drop_unread(graph, list(homes), homes, outputs)
    for scope in graph.scopes:
        scope.constants = [each for each in scope.constants if not each.was_used or each.outputs or id(each) in outputs]


def drop_unread(graph: Graph, nodes: Iterable[Node], homes: dict[Node, Scope], outputs: Set[int]) -> None:
    """Drop those of the nodes whose outputs lost their last reader, then those that only these read from, and so on.

    homes: the scope of each node that may go; it loses those that do. outputs: ids of all graphs' outputs.
    """
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if node not in homes or node.was_dead or not node.outputs:
            continue
        if any(out.outputs or id(out) in outputs for out in node.outputs):
            continue
        makers = {maker: None for each in (*node.inputs, *inner_reads(node)) for maker in each.inputs}
        graph.remove_node(homes.pop(node), node)
        waiting.extend(makers)


def _needs_ir4(graph: GraphProto) -> bool:
    """Before IR version 4 every initializer had to be an input too, in subgraphs as well."""
    inputs = {each.name for each in graph.input}
    if any(each.name not in inputs for each in graph.initializer):
        return True
    attributes = [each for node in graph.node for each in node.attribute]
    return any(_needs_ir4(body) for each in attributes for body in (each.g, *each.graphs))


def _lift_ir4(proto: ModelProto) -> None:
    """Let initializers be constants without being inputs: they stay fixed, and names are not asked for."""
    proto.ir_version = max(4, proto.ir_version)
    constants = {each.name for each in proto.graph.initializer}
    kept = [each for each in proto.graph.input if each.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


class ProtoWriter:
    """Writes one scope of a graph, with the subgraphs of its nodes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @functools.cached_property
    def scopes(self) -> dict[int, Scope]:
        """The scopes by the ids of their bodies."""
        return {id(scope.graph): scope for scope in self.graph.scopes}

    def write_graph(self, scope: Scope, proto: GraphProto) -> None:
        origin = scope.origin
        assert isinstance(origin, GraphProto)
        copy_fields(origin, proto, REBUILT_GRAPH_FIELDS)
        proto.node.extend(self._nodes(scope))
        for tensor in self._initializers(scope, origin):
            if isinstance(tensor, SparseTensorProto):
                proto.sparse_initializer.add().CopyFrom(tensor)
            else:
                proto.initializer.add().CopyFrom(tensor)
        self._write_interface(scope, proto, origin)
        self._write_value_info(scope, proto, origin)

    def _initializers(self, scope: Scope, origin: GraphProto) -> list[TensorProto | SparseTensorProto]:
        """Dense and sparse ones, in the original order, new ones last."""
        held: dict[str, TensorProto | SparseTensorProto] = {}
        for constant in scope.constants:
            if isinstance(constant.origin, SparseTensorProto) and not constant.as_node:
                held[constant.name] = _named(constant.origin, constant.name)
            elif not constant.as_node:
                held[constant.name] = self._tensor(constant, constant.name)
        for tensor in scope.overridable:
            held[tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name] = tensor
        names = [each.name for each in origin.initializer]
        names += [each.values.name for each in origin.sparse_initializer]
        kept = [held.pop(name) for name in dict.fromkeys(names) if name in held]
        return [*kept, *held.values()]

    def write_function(self, scope: Scope, proto: FunctionProto) -> None:
        copy_fields(scope.origin, proto, REBUILT_FUNCTION_FIELDS)
        proto.node.extend(self._nodes(scope))
        imported = {each.domain for each in proto.opset_import}
        for domain in sorted(_domains(proto.node) - imported - ONNX_DOMAINS):
            # What a pass added; a function states its own imports.
            proto.opset_import.add(domain=domain, version=self.graph.opset_imports.get(domain, 1))

    def _write_interface(self, scope: Scope, proto: GraphProto, origin: GraphProto) -> None:
        waiting = list({id(each): each for each in scope.graph.inputs}.values())
        held = {each.name: each for each in scope.constants}
        initializers = {each.name for each in proto.initializer} | {
            each.values.name for each in proto.sparse_initializer
        }
        for info in origin.input:  # in the original order, with the inputs that are constants before IR 4
            if any(each.name == info.name for each in waiting):
                while waiting[0].name != info.name:  # new ones keep their place, too
                    proto.input.add().CopyFrom(required_info(waiting.pop(0)))
                proto.input.add().CopyFrom(info_of(waiting.pop(0)) or info)
            elif info.name in initializers:
                proto.input.add().CopyFrom(retyped(info, held.get(info.name)))
        for variable in waiting:
            proto.input.add().CopyFrom(required_info(variable))
        infos = {each.name: each for each in origin.output}
        for tensor in scope.graph.outputs:
            stated = infos.get(tensor.name)
            proto.output.add().CopyFrom(required_info(tensor) if stated is None else retyped(stated, tensor))

    def _write_value_info(self, scope: Scope, proto: GraphProto, origin: GraphProto) -> None:
        """Keep what is known of tensors that still exist, in the original order; add nothing."""
        produced = {out.name: out for node in scope.graph.nodes for out in node.outputs if out.name}
        constants = {each.name: each for each in scope.constants}
        known = produced.keys() | constants.keys() | {each.name for each in proto.input}
        outer = {name: each for name, each in _read_tensors(scope).items() if name not in known}
        for info in origin.value_info:
            if info.name in produced:
                proto.value_info.add().CopyFrom(info_of(produced[info.name]) or info)
            elif info.name in known or info.name in outer:
                held = constants.get(info.name) or outer.get(info.name)
                proto.value_info.add().CopyFrom(retyped(info, held))

    def _nodes(self, scope: Scope) -> list[NodeProto]:
        """The scope's nodes in a valid order, each Constant node where it stood, new ones first."""
        constants = {id(each): each for each in scope.constants if each.as_node}
        body: list[NodeProto] = []
        for node in ordered(scope.graph.nodes):
            for constant in node.leading:
                if constants.pop(id(constant), None) is not None:
                    body.append(self._constant_node(constant))
            body.append(self._node(node))
        body.extend(self._constant_node(each) for each in scope.trailing if constants.pop(id(each), None))
        return [*(self._constant_node(each) for each in constants.values()), *body]

    def _constant_node(self, constant: Constant) -> NodeProto:
        origin = constant.node_origin
        if origin is not None and origin.output[0] == constant.name and _untouched(constant, origin):
            return origin
        proto = NodeProto(op_type="Constant", output=[constant.name])
        if origin is not None:
            copy_fields(origin, proto, {"attribute", "output", "op_type"})
        attribute = proto.attribute.add(name="value", type=AttributeProto.TENSOR)
        attribute.t.CopyFrom(self._tensor(constant, _inner_name(constant)))
        return proto

    def _tensor(self, constant: Constant, name: str) -> TensorProto:
        held = constant._values
        if isinstance(held, ProtoValues) and isinstance(held.tensor, TensorProto):
            if held.tensor.name == name:
                return held.tensor
            tensor = TensorProto()
            tensor.CopyFrom(held.tensor)
            tensor.name = name
            return tensor
        if isinstance(held, ProtoValues):
            return make_tensor(name, held.load(), self.graph.model.scratch)
        if is_packed(held.dtype):
            return make_tensor(name, held, self.graph.model.scratch)
        if is_mapped(held) and held.flags.c_contiguous and _is_spilled(held, self.graph.model):
            return reference_to(name, held)
        return make_tensor(name, held)

    def _node(self, node: gs.Node) -> NodeProto:
        proto = NodeProto()
        origin = getattr(node, "origin", None)
        if origin is not None:
            copy_fields(origin, proto, {"input", "output", "attribute"})
            kept = {each.name: each for each in origin.attribute}
        else:
            kept = {}
        for field, value in (("op_type", node.op), ("name", node.name or ""), ("domain", node.domain or "")):
            if getattr(proto, field) != value:  # an empty text that is stated stays stated
                setattr(proto, field, value)
        proto.input.extend(each.name for each in node.inputs)
        proto.output.extend(each.name for each in node.outputs)
        for name, value in node.attrs.items():
            self._write_attribute(proto.attribute.add(), name, value, kept.get(name))
        return proto

    def _write_attribute(self, proto: AttributeProto, name: str, value: Any, kept: AttributeProto | None) -> None:
        bodies = [value] if isinstance(value, gs.Graph) else value if _are_graphs(value) else None
        if bodies is None:
            proto.CopyFrom(_attribute(name, value, kept))
            return
        if kept is not None:
            copy_fields(kept, proto, {"g", "graphs"})
        proto.name = name
        single = isinstance(value, gs.Graph)
        proto.type = AttributeProto.GRAPH if single else AttributeProto.GRAPHS
        for body in bodies:
            self.write_graph(self.scopes[id(body)], proto.g if single else proto.graphs.add())


def _domains(nodes: Iterable[NodeProto]) -> set[str]:
    """The domains of some nodes and of those in their subgraphs."""
    found = set()
    for node in nodes:
        found.add(node.domain)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                found |= _domains(body.node)
    return found


def _read_tensors(scope: Scope) -> dict[str, Any]:
    return {each.name: each for node in scope.graph.nodes for each in node.inputs if each.name}


def _are_graphs(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, gs.Graph) for each in value)


def _attribute(name: str, value: Any, kept: AttributeProto | None) -> AttributeProto:
    """The original attribute where the value is still the same, else a new one."""
    if isinstance(value, AttributeProto):
        return value
    if isinstance(value, gs.Node.AttributeRef):
        return kept if kept is not None else AttributeProto(name=name, ref_attr_name=value.name, type=value.type)
    if kept is not None and not kept.ref_attr_name and _same_attribute(attribute_value(kept), value):
        return kept
    if isinstance(value, np.ndarray):
        return AttributeProto(name=name, type=AttributeProto.TENSOR, t=numpy_helper.from_array(value))
    return helper.make_attribute(name, value)


def _same_attribute(original: Any, value: Any) -> bool:
    if isinstance(original, float) or (isinstance(original, list) and original and isinstance(original[0], float)):
        return bool(np.array_equal(np.asarray(original), np.asarray(value), equal_nan=True))
    return type(original) is type(value) and bool(original == value)


def _untouched(constant: Constant, origin: NodeProto) -> bool:
    held = constant._values
    if isinstance(held, ProtoValues):
        return held is constant.node_values and origin.attribute[0].name == "value"
    name, value = origin.attribute[0].name, helper.get_attribute_value(origin.attribute[0])
    plain = np.float32 if "float" in name else np.int64
    return name != "value" and held.dtype == plain and np.array_equal(np.asarray(value), held, equal_nan=True)


def _named(sparse: SparseTensorProto, name: str) -> SparseTensorProto:
    if sparse.values.name == name:
        return sparse
    renamed = SparseTensorProto()
    renamed.CopyFrom(sparse)
    renamed.values.name = name
    return renamed


def _is_spilled(held: np.memmap[Any, Any], model: Model) -> bool:
    return Path(str(held.filename)).parent == model.scratch.folder


def _inner_name(constant: Constant) -> str:
    """The name that the tensor inside a Constant node has, if any."""
    return constant.origin.name if isinstance(constant.origin, TensorProto) else ""


def copy_fields(source: Any, target: Any, leave: Iterable[str]) -> None:
    """Copy all fields that are set, but those in ``leave``."""
    left = set(leave)
    for descriptor, value in source.ListFields():
        if descriptor.name in left:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)
