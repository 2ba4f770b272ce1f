"""Local functions of a model: who calls which, and a call written out.

y = local.F(x)    F(a) -> b: {h = Neg(a), b = Relu(h)}        becomes        h = Neg(x), y = Relu(h)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx.inliner
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, helper

from onnxcomp.graph.ir.nodes import Node, Variable
from onnxcomp.graph.ir.query import is_onnx, producer
from onnxcomp.graph.ir.reader import read_function
from onnxcomp.graph.ir.scopes import Graph, Scope, subgraphs_of
from onnxcomp.model import PROTOBUF_LIMIT_BYTES, Model
from onnxcomp.operators import ONNX_DOMAINS

FunctionId = tuple[str, str, str]  # domain, name, overload


def written_out(model: Model) -> Model:
    """A copy with all calls of local functions written out, for looking at; the model itself where it has none."""
    if not model.proto.functions or model.proto.ByteSize() >= PROTOBUF_LIMIT_BYTES:
        return model
    if written_out not in model.memo:
        model.memo[written_out] = model.with_proto(onnx.inliner.inline_local_functions(model.proto))
    found: Model = model.memo[written_out]
    return found


def functions_of(graph: Graph) -> dict[FunctionId, Scope]:
    """The bodies of the model's local functions."""
    return {identity(scope): scope for scope in graph.scopes if scope.kind == "function"}


def identity(scope: Scope) -> FunctionId:
    """Which function a scope is the body of."""
    origin = definition(scope)
    return origin.domain, origin.name, getattr(origin, "overload", "")


def definition(scope: Scope) -> FunctionProto:
    """The function that a scope is the body of."""
    assert isinstance(scope.origin, FunctionProto)
    return scope.origin


def called(node: Node) -> FunctionId:
    """The function that a node calls, if the model has one of that name."""
    return node.domain or "", node.op, node.origin.overload if node.origin is not None else ""


def used_functions(graph: Graph) -> set[FunctionId]:
    """The functions that the main graph calls, directly or through another function."""
    functions = functions_of(graph)
    used: set[FunctionId] = set()
    waiting: list[gs.Graph] = [graph.main.graph]
    while waiting:
        for node in waiting.pop().nodes:
            waiting.extend(subgraphs_of(node))
            if (name := called(node)) in functions and name not in used:
                used.add(name)
                waiting.append(functions[name].graph)
    return used


def drop_function(graph: Graph, scope: Scope) -> None:
    """Take a function out of the model."""
    for node in list(scope.graph.nodes):
        graph.remove_node(scope, node)
    graph.scopes = [each for each in graph.scopes if each is not scope]


def misfit(graph: Graph, function: Scope) -> str | None:
    """Why a function's nodes would mean something else outside of it, None where they would not.

    A function states its own operator sets; what has not changed from one version to the other means the same.
    """
    outside = {_plain(domain): version for domain, version in graph.opset_imports.items()}
    inside = {_plain(each.domain): each.version for each in definition(function).opset_import}
    for node in _all_nodes(function.graph):
        domain = _plain(node.domain)
        here, there = inside.get(domain), outside.get(domain)
        if here is None or there is None or here == there:
            continue
        if not is_onnx(node) or _schema(node.op, here) != _schema(node.op, there) or not _schema(node.op, here):
            return f"its {node.op} is of opset {here} of {domain or 'ai.onnx'}, the model's is {there}"
    return None


class Inliner:
    """Writes calls out, each with names of its own."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._tensors: set[str] = set()
        self._nodes: set[str] = set()
        self._encodings: dict[Any, Any] = {}
        for scope in graph.scopes:
            if not scope.is_in_function:
                self._tensors.update(each.name for each in _defined(scope))
                self._nodes.update(node.name for node in scope.graph.nodes)

    @property
    def encodings(self) -> dict[Any, Any]:
        """Of the constants that came with the calls, as far as the function's own constants have one."""
        return self._encodings

    def write_out(self, scope: Scope, call: Node, function: Scope) -> list[Node]:
        """The nodes of the function's body with the call's tensors and attributes; the call loses its own."""
        source = definition(function)
        inner, *nested = read_function(self._graph, source)
        for each in (inner, *nested):
            self._resolve(each, call, source)
            self._keep_encodings(each)
            self._rename(each)
        self._hand_in(call, inner, nested)
        outputs = list(call.outputs)
        call.inputs.clear()
        call.outputs.clear()
        nodes = [*inner.graph.nodes, *hand_out(self._graph, inner, outputs)]
        self._move(inner, nested, scope)
        imported = {_plain(domain) for domain in self._graph.opset_imports}
        for entry in source.opset_import:
            if _plain(entry.domain) not in imported:
                self._graph.opset_imports[entry.domain] = entry.version
        return nodes

    def _resolve(self, scope: Scope, call: Node, function: FunctionProto) -> None:
        """Put the call's attributes, or the function's defaults, where the body refers to them."""
        stated = {each.name: each for each in function.attribute_proto}
        stated.update({name: _attribute(call, name) for name in call.attrs})
        for node in scope.graph.nodes:
            for name, value in list(node.attrs.items()):
                if not isinstance(value, gs.Node.AttributeRef):
                    continue
                del node.attrs[name]
                if value.name in stated:
                    node.attrs[name] = _named(stated[value.name], name)

    def _keep_encodings(self, scope: Scope) -> None:
        for constant in scope.constants:
            encoding = self._graph.encodings.get(scope.key(constant.name))
            if encoding is not None:
                self._encodings[constant] = encoding

    def _rename(self, scope: Scope) -> None:
        for tensor in _defined(scope):
            if tensor.name in self._tensors:
                tensor.name = self._graph.unique_name(tensor.name)
            self._tensors.add(tensor.name)
        for node in scope.graph.nodes:
            if node.name and node.name in self._nodes:
                node.name = self._graph.unique_name(node.name)
            self._nodes.add(node.name)

    def _hand_in(self, call: Node, inner: Scope, nested: list[Scope]) -> None:
        given = [*call.inputs, *(Variable("") for _ in range(len(inner.graph.inputs) - len(call.inputs)))]
        for formal, actual in zip(list(inner.graph.inputs), given, strict=False):
            self._graph.replace_reads(formal, actual)
            for each in (inner, *nested):
                each.graph.outputs = [actual if out is formal else out for out in each.graph.outputs]

    def _move(self, inner: Scope, nested: list[Scope], scope: Scope) -> None:
        """Let the caller's scope own what the body owned."""
        self._graph.scopes = [each for each in self._graph.scopes if each is not inner]
        for constant in inner.constants:
            constant.as_node = constant.as_node or scope.kind == "function"
        scope.constants.extend(inner.constants)
        for each in nested:
            each.opset = each.graph.opset = scope.opset
            if each.parent is inner:
                each.parent = scope


def hand_out(graph: Graph, inner: Scope, outputs: Iterable[Any]) -> list[Node]:
    """Let the results of a scope be these outputs outside of it; gives the Identity nodes that this takes."""
    added: list[Node] = []
    given: dict[Any, Any] = {}
    own = {id(node) for node in inner.graph.nodes}
    for result, output in zip(list(inner.graph.outputs), outputs, strict=False):
        if not output.name:
            continue
        source = given.get(result, result)
        maker = producer(source)
        if maker is not None and id(maker) in own and result not in given:
            position = next(index for index, out in enumerate(maker.outputs) if out is result)
            maker.outputs[position] = output
            graph.replace_reads(result, output)
            given[result] = output
        elif graph.is_output(output):
            added.append(Node("Identity", "", {}, [source], [output]))
        else:
            graph.replace_reads(output, source)
    return added


def _defined(scope: Scope) -> Iterator[Any]:
    """The tensors that a scope names: not the formal inputs of a function, which its calls replace."""
    yield from scope.constants
    if scope.kind != "function":
        yield from scope.graph.inputs
    for node in scope.graph.nodes:
        yield from (out for out in node.outputs if out.name)


def _all_nodes(body: gs.Graph) -> Iterator[Node]:
    for node in body.nodes:
        yield node
        for inner in subgraphs_of(node):
            yield from _all_nodes(inner)


def _plain(domain: str | None) -> str:
    return "" if domain in ONNX_DOMAINS else str(domain)


def _schema(op: str, version: int) -> int:
    """Since which version an operator has been what it is at this one, 0 where it is not known."""
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _attribute(call: Node, name: str) -> AttributeProto:
    """An attribute of a call as a message."""
    value = call.attrs[name]
    if isinstance(value, AttributeProto):
        return value
    kept = next((each for each in call.origin.attribute if each.name == name), None) if call.origin else None
    return kept if kept is not None else helper.make_attribute(name, value)


def _named(attribute: AttributeProto, name: str) -> AttributeProto:
    made = AttributeProto()
    made.CopyFrom(attribute)
    made.name = name
    return made
