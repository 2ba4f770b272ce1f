"""A model opened for editing: its scopes with graphsurgeon's nodes and tensors, and what edits need to know.

Scopes are the main graph, the subgraphs of nodes and the bodies of local functions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, ValueInfoProto, helper

from onnxcomp.graph.ir.nodes import Array, Body, Constant, Node, Variable
from onnxcomp.model import Model


@dataclass(eq=False)
class Scope:
    """One graph of the model: the main graph, a subgraph of a node, or the body of a local function.

    path: "" for the main graph, "node/branch" for a subgraph, "function domain:name" for a function, with "~2" or the
        like where the keys of what is inside would be those of other things (see ``separate_keys``).
    """

    graph: Body
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

    @property
    def is_in_function(self) -> bool:
        """Whether it is the body of a local function or a subgraph in one."""
        return self.kind == "function" or (self.parent is not None and self.parent.is_in_function)


class OutOfSight(Protocol):
    """What an open graph does not show, and its file has."""

    def take_out(self, graph: Graph) -> None:
        """Take it out of sight again."""

    def put_back(self, graph: Graph) -> None:
        """Put it where it belongs, for the graph to be written."""


class Graph:
    """A model opened for editing."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self.encodings = dict(model.encodings)
        self.opset_imports: dict[str, int] = {each.domain: each.version for each in model.proto.opset_import}
        self.ir_version = model.proto.ir_version
        self.stored: OutOfSight | None = None
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}  # base -> the number in the last name made from it
        self._owners: dict[Constant, Scope] = {}
        self.inferred: dict[Any, Any] = {}  # what was inferred of it, with the state in which it was

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
        name, count = base, self._counts.get(base, 0)
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        self._names.add(name)
        return name

    def rename(self, names: Mapping[Any, str]) -> None:
        """Give tensors other names, all at once; they must differ from each other and from those that stay."""
        self._names.difference_update(tensor.name for tensor in names)
        self._counts.clear()  # lower ones may be free again
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
        self._owners[made] = scope
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
        scope.graph.put(made, before)
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
        scope.graph.take_out(node)

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
        owner = self._owners.get(constant)
        if owner is None or not any(each is owner for each in self.scopes):
            self._owners = {each: scope for scope in self.scopes for each in scope.constants}
        return self._owners[constant]

    def is_output(self, tensor: Any) -> bool:
        """Whether the tensor is an output of the graph that it belongs to."""
        return any(tensor is out for scope in self.scopes for out in scope.graph.outputs)

    def is_read(self, tensor: Any) -> bool:
        """Whether a node or a graph output uses the tensor."""
        return bool(tensor.outputs) or self.is_output(tensor)


def separate_keys(graph: Graph) -> None:
    """Make the keys of all scopes unique, whatever slashes names hold: paths get numbers where others have theirs."""
    if len(graph.scopes) == 1:
        return
    taken: set[str] = set()
    before = {id(scope): scope.path for scope in graph.scopes}
    for scope in graph.scopes:  # outer ones first
        around = "" if scope.parent is None else before[id(scope.parent)]
        if scope.parent is not None and around and scope.path.startswith(f"{around}/"):
            scope.path = scope.parent.key(scope.path[len(around) + 1 :])
        path, count = scope.path, 1
        keys = set(_keys(scope))
        while not taken.isdisjoint(keys):
            count += 1
            scope.path = f"{path}~{count}"
            keys = set(_keys(scope))
        taken |= keys


def _keys(scope: Scope) -> Iterator[str]:
    """The keys of the scope's constants, of its nodes and of what they compute."""
    for constant in scope.constants:
        yield scope.key(constant.name)
    for node in scope.graph.nodes:
        yield from (scope.key(name) for name in (node.name, *(out.name for out in node.outputs)) if name)


def subgraphs_of(node: gs.Node) -> list[gs.Graph]:
    """The bodies that a node carries in its attributes."""
    found: list[gs.Graph] = []
    if not node.attrs:
        return found
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            found.append(value)
        elif isinstance(value, list):
            found.extend(each for each in value if isinstance(each, gs.Graph))
    return found


def inner_reads(node: gs.Node) -> Iterator[Any]:
    """The tensors that the node's subgraphs read or hand out, their own among them."""
    for body in subgraphs_of(node):
        yield from body.outputs
        for inner in body.nodes:
            yield from inner.inputs
            yield from inner_reads(inner)


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


def type_of(info: ValueInfoProto) -> tuple[Any, list[int | str | None] | None]:
    """The numpy dtype and shape that a value info states; None for what it leaves open."""
    if not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim]
