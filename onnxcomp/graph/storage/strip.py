"""Have a graph written without what inference does not read: texts, metadata, restorable value infos, names.

An opened graph is written from the protos that it was read from. ``Trimmer`` puts copies of these, without
their data, in their place and takes out of the copies what is not wanted.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from onnxcomp.graph.infer.inference_model import skeleton
from onnxcomp.graph.infer.shapes import bodies_of, infer, inner_graphs, tensor_type
from onnxcomp.graph.ir.nodes import Constant, Node, ProtoValues, Variable
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.graph.ir.rewire import key_holders, renew_keys
from onnxcomp.graph.ir.writer import copy_fields
from onnxcomp.graph.storage.decoders import WRITTEN_NAME
from onnxcomp.graph.weights.roles import weights
from onnxcomp.operators import ONNX_DOMAINS

Keep = Callable[[str], bool]
"""Says of a metadata key whether it stays."""
Selects = Callable[..., bool]
"""Says of the names of one thing whether it may be touched."""


class Trimmer:
    """Takes things out of a graph, each kind by its own method; what was taken is counted in ``removed``.

    selects: whether a kind may be taken, by the name under which it is counted.
    """

    def __init__(self, graph: Graph, selects: Selects) -> None:
        self.graph = graph
        self.selects = selects
        self.removed: Counter[str] = Counter()
        proto = ModelProto()
        proto.CopyFrom(_without(graph.model.proto, "graph", "functions"))
        proto.graph.name = graph.model.proto.graph.name
        graph.model = graph.model.with_proto(proto)
        self.variables = [each for scope in graph.scopes for each in _variables(scope)]
        for scope in graph.scopes:
            scope.origin = _own_scope(scope.origin)
            _share_statements(scope)
            for node in scope.graph.nodes:
                node.origin = None if node.origin is None else _own_node(node.origin)

    # --- texts and metadata ----------------------------------------------------------------------------

    def strip_texts(self, keep: Keep, keep_of_model: Keep) -> None:
        """Remove doc strings, and metadata that is not kept, everywhere."""
        self._strip(self.graph.model.proto, keep_of_model)
        for message in self._messages():
            self._strip(message, keep)
        for scope in self.graph.scopes:
            for constant in scope.constants:
                self._strip_constant(constant, keep)
            for node in scope.graph.nodes:
                for name, value in node.attrs.items():
                    if isinstance(value, AttributeProto):
                        node.attrs[name] = self._stripped_attribute(value, keep)

    def _messages(self) -> Iterator[Any]:
        for scope in self.graph.scopes:
            yield scope.origin
            if isinstance(scope.origin, GraphProto):
                yield from (*scope.origin.input, *scope.origin.output)
            yield from scope.origin.value_info
            for node in scope.graph.nodes:
                if node.origin is not None:
                    self._strip_empty(node.origin)
                    yield node.origin
                    yield from node.origin.attribute

    def _strip(self, message: Any, keep: Keep) -> None:
        if message.HasField("doc_string") and self.selects("doc strings"):
            self.removed["doc strings"] += bool(message.doc_string)
            message.ClearField("doc_string")
        if "metadata_props" in message.DESCRIPTOR.fields_by_name and self.selects("metadata entries"):
            kept = [each for each in message.metadata_props if keep(each.key)]
            if len(kept) < len(message.metadata_props):
                self.removed["metadata entries"] += len(message.metadata_props) - len(kept)
                entries = [(each.key, each.value) for each in kept]
                del message.metadata_props[:]
                for key, value in entries:
                    message.metadata_props.add(key=key, value=value)

    def _strip_empty(self, node: NodeProto) -> None:
        """An empty text that is written out costs two bytes and says what its absence says."""
        for name in ("name", "domain", "overload"):
            if node.HasField(name) and not getattr(node, name) and self.selects("empty texts"):
                node.ClearField(name)
                self.removed["empty texts"] += 1

    def _strip_constant(self, constant: Constant, keep: Keep) -> None:
        held = constant._values
        if isinstance(held, ProtoValues) and isinstance(held.tensor, TensorProto) and _has_texts(held.tensor, keep):
            tensor = _without(held.tensor)
            self._strip(tensor, keep)
            constant.values = ProtoValues(tensor, held.model)
        node = constant.node_origin
        if node is None or not (_has_texts(node, keep) or any(_has_texts(each, keep) for each in node.attribute)):
            return
        if node.attribute[0].name == "value":  # written anew around the tensor
            constant.node_origin, constant.node_values = _own_node(node), None
        else:
            constant.node_origin = _without(node)
        for message in (constant.node_origin, *constant.node_origin.attribute):
            self._strip(message, keep)

    def _stripped_attribute(self, attribute: AttributeProto, keep: Keep) -> AttributeProto:
        tensors = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        if not any(_has_texts(each, keep) for each in (attribute, *tensors)):
            return attribute
        made: AttributeProto = _without(attribute)
        for each in (made, *([made.t] if made.HasField("t") else []), *made.tensors):
            self._strip(each, keep)
        return made

    # --- value infos -----------------------------------------------------------------------------------

    def strip_value_info(self) -> None:
        """Remove statements on inner tensors that shape inference makes by itself.

        What an unknown operator makes stays stated, and so does what is more exact than inference can tell.
        """
        stated = sum(len(scope.origin.value_info) for scope in self.graph.scopes)
        if not stated or not self.selects("value infos"):
            return
        proto = skeleton(self.graph)
        for body in (proto.graph, *inner_graphs(proto.graph)):
            known = {name for node in body.node if _has_schema(node.op_type, node.domain) for name in node.output}
            _keep_infos(body, partial(_is_unlisted, known))
        inferred = {id(scope): body for body, scope in bodies_of(self.graph, infer(proto).graph)}
        for scope in self.graph.scopes:
            found = inferred.get(id(scope))
            restored = {each.name: each for each in found.value_info} if found is not None else {}
            makers = {out.name: node for node in scope.graph.nodes for out in node.outputs}
            _keep_infos(scope.origin, partial(_is_needed, restored, makers))
        left = sum(len(scope.origin.value_info) for scope in self.graph.scopes)
        self.removed["value infos"] += stated - left

    # --- names -----------------------------------------------------------------------------------------

    def shorten_names(self, selects: Selects) -> None:
        """Give inner tensors short names, the shortest to those used most, and inner nodes none.

        The names of the main graph's inputs and outputs stay, and those of functions' parameters. So do the
        names of weights and nodes that ``selects`` leaves out: by these, later steps leave them alone too. And so do
        those in decoders, by which ``expand`` knows them.
        """
        spared = self._spared(selects)
        names = self._short_names(spared) if self.selects("long names") else {}
        maps = {id(scope): self._names_of(scope, names) for scope in self.graph.scopes}
        for scope in self.graph.scopes:
            _rename_statements(scope, maps)
        holders = key_holders(self.graph)
        self.removed["long names"] += len(names)
        self.graph.rename(names)
        for variable in self.variables:
            if variable.origin is not None:
                variable.origin.name = variable.name
        if self.selects("node names"):
            self._drop_node_names(spared)
        renew_keys(self.graph, holders)

    def _spared(self, selects: Selects) -> frozenset[int]:
        """The ``id`` of each tensor and node whose name stays: left out, or part of the key of what is."""
        spared = {id(node) for _, node in self.graph.nodes() if node.name and not selects(node.name)}
        for weight in weights(self.graph):
            if not selects(weight.name, *weight.node_names):
                spared |= {id(weight.tensor), *(id(role.node) for role in weight.roles)}
        for _, node in self.graph.nodes():
            if spared and subgraphs_of(node):
                spared |= {id(node), *(id(out) for out in node.outputs)}
        return frozenset(spared)

    def _short_names(self, spared: frozenset[int]) -> dict[Any, str]:
        """Tensor -> new name, for those that get a shorter one."""
        fixed = {each.name for each in (*self.graph.main.graph.inputs, *self.graph.main.graph.outputs)}
        inner: list[Any] = []
        for scope in self.graph.scopes:
            interface: list[Any] = []
            if scope.kind != "subgraph":
                interface = [*scope.graph.inputs, *scope.graph.outputs]
                fixed |= {each.name for each in interface}
            if isinstance(scope.origin, GraphProto) and scope is self.graph.main:
                fixed |= {each.name for each in scope.origin.input}
            fixed |= {_name_of(each) for each in scope.overridable}
            tensors: tuple[Any, ...] = (*_variables(scope), *scope.constants)
            inner += [each for each in tensors if each not in interface and each.name]
        fixed |= {each.name for each in inner if id(each) in spared or WRITTEN_NAME.fullmatch(each.name)}
        inner = [each for each in dict.fromkeys(inner) if each.name not in fixed]
        inner.sort(key=lambda each: -len(each.outputs))
        free = (name for name in _names_by_length() if name not in fixed)
        return {each: name for each, name in zip(inner, free, strict=False) if each.name != name}

    def _names_of(self, scope: Scope, names: dict[Any, str]) -> dict[str, str]:
        tensors: tuple[Any, ...] = (*_variables(scope), *scope.constants)
        return {each.name: names.get(each, each.name) for each in tensors if each.name}

    def _drop_node_names(self, spared: frozenset[int]) -> None:
        for _, node in self.graph.nodes():
            if id(node) in spared:
                continue
            if subgraphs_of(node) and not any(out.name for out in node.outputs[:1]):
                continue  # its name is part of the names of what is inside
            self.removed["node names"] += bool(node.name)
            node.name = ""
            if node.origin is not None:
                node.origin.ClearField("name")
        for scope in self.graph.scopes:
            for constant in scope.constants:
                self._drop_constant_name(constant)

    def _drop_constant_name(self, constant: Constant) -> None:
        node = constant.node_origin
        if node is None or not node.name:
            return
        if node.attribute[0].name == "value":
            constant.node_origin, constant.node_values = _own_node(node), None
        else:
            constant.node_origin = _without(node)
        constant.node_origin.ClearField("name")
        constant.node_origin.output[0] = constant.name
        self.removed["node names"] += 1


def _name_of(tensor: TensorProto | SparseTensorProto) -> str:
    return tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name


def _is_unlisted(known: set[str], info: ValueInfoProto) -> bool:
    return info.name not in known


def _is_needed(restored: dict[str, ValueInfoProto], makers: dict[str, Any], info: ValueInfoProto) -> bool:
    return not _is_restored(info, restored.get(info.name), makers.get(info.name))


def _names_by_length() -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ...: a letter first, digits after it."""
    more = string.ascii_letters + string.digits
    for length in count(0):
        for first in string.ascii_letters:
            yield from (first + "".join(rest) for rest in product(more, repeat=length))


def _rename_statements(scope: Scope, maps: dict[int, dict[str, str]]) -> None:
    """Rename what the scope's origin says of tensors: of its own, and of those around it."""

    def renamed(name: str) -> str:
        around: Scope | None = scope
        while around is not None:
            if name in maps[id(around)]:
                return maps[id(around)][name]
            around = around.parent
        return name

    origin = scope.origin
    for info in origin.value_info:
        info.name = renamed(info.name)
    if not isinstance(origin, GraphProto):
        return
    for message in (*origin.input, *origin.output):
        message.name = renamed(message.name)
    for tensor in origin.initializer:
        tensor.name = renamed(tensor.name)
    for sparse in origin.sparse_initializer:
        sparse.values.name = renamed(sparse.values.name)
    for annotation in origin.quantization_annotation:
        annotation.tensor_name = renamed(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = renamed(entry.value)


# --- copies without data -------------------------------------------------------------------------------


def _without(message: Any, *fields: str) -> Any:
    """A copy of a message that lacks some of its fields, which are not copied first."""
    made = type(message)()
    copy_fields(message, made, fields)
    return made


def _own_scope(origin: GraphProto | FunctionProto) -> GraphProto | FunctionProto:
    """All but the nodes; of the initializers the names, which say in which order they are written."""
    made: GraphProto | FunctionProto = _without(origin, "node", "initializer", "sparse_initializer")
    if isinstance(made, GraphProto) and isinstance(origin, GraphProto):
        for tensor in origin.initializer:
            made.initializer.add(name=tensor.name)
        for sparse in origin.sparse_initializer:
            made.sparse_initializer.add().values.name = sparse.values.name
    return made


def _share_statements(scope: Scope) -> None:
    """Let the variables refer to the statements of the new origin, so that each is kept in one place."""
    origin = scope.origin
    infos = {each.name: each for each in origin.value_info}
    if isinstance(origin, GraphProto):
        infos.update((each.name, each) for each in (*origin.input, *origin.output))
    for variable in _variables(scope):
        if variable.origin is not None:
            variable.origin = infos[variable.origin.name]


def _own_node(origin: NodeProto) -> NodeProto:
    """All but the subgraphs and tensors of its attributes."""
    made: NodeProto = _without(origin, "attribute")
    for attribute in origin.attribute:
        made.attribute.append(_without(attribute, "g", "graphs", "t", "tensors", "sparse_tensor", "sparse_tensors"))
    return made


def _variables(scope: Scope) -> list[Variable]:
    """The run-time tensors that a scope defines: its inputs and what its nodes make."""
    found = [*scope.graph.inputs, *(out for node in scope.graph.nodes for out in node.outputs)]
    return [each for each in found if isinstance(each, Variable)]


def _has_texts(message: Any, keep: Keep) -> bool:
    if message.doc_string:
        return True
    has_metadata = "metadata_props" in message.DESCRIPTOR.fields_by_name
    return has_metadata and not all(keep(each.key) for each in message.metadata_props)


# --- what inference restores ---------------------------------------------------------------------------


def _keep_infos(body: GraphProto | FunctionProto, keeps: Callable[[ValueInfoProto], bool]) -> None:
    kept = [info for info in body.value_info if keeps(info)]
    if len(kept) < len(body.value_info):
        del body.value_info[:]
        body.value_info.extend(kept)


def _has_schema(op: str, domain: str | None) -> bool:
    return domain in ONNX_DOMAINS or onnx.defs.has(op, domain=domain or "")


def _is_restored(info: ValueInfoProto, inferred: ValueInfoProto | None, maker: Node | None) -> bool:
    """Whether inference says at least as much: the type, and every dimension that is a number."""
    if maker is None:  # a constant says it itself; of an outer tensor, its own graph does
        return True
    if inferred is None or not _has_schema(maker.op, maker.domain) or not info.type.HasField("tensor_type"):
        return False
    data_type, shape = tensor_type(info)
    inferred_type, inferred_shape = tensor_type(inferred)
    if data_type not in (0, inferred_type):
        return False
    if shape is None:
        return True
    if inferred_shape is None or len(shape) != len(inferred_shape):
        return False
    return all(dim is None or dim == known for dim, known in zip(shape, inferred_shape, strict=True))
