"""Operators that ONNX itself defines by others: the definition is compiled when the types of the inputs are known."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, helper

from onnxcomp.training.torch_graph.compiling import Around, compile_function
from onnxcomp.training.torch_graph.rule import Call, TorchRule, plain_domain
from onnxcomp.training.torch_graph.values import KINDS


def expanding_rule(node: NodeProto, opset: int, around: Around) -> TorchRule | None:
    """How the operator's definition computes it; None where ONNX has none for this version."""
    domain = plain_domain(node.domain)
    if not onnx.defs.has(node.op_type, opset, domain):
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
    plain = [each for each in schema.function_opset_versions if each <= opset]
    if plain:
        body = schema.get_function_with_opset_version(max(plain))
        return TorchRule(functools.partial(_expanded, around, schema, _parsed(body), 0))
    typed = [each for each in schema.context_dependent_function_opset_versions if each <= opset]
    return TorchRule(functools.partial(_expanded, around, schema, None, max(typed))) if typed else None


def has_definition(node: NodeProto, opset: int) -> bool:
    """Whether ONNX defines this version of the operator by others."""
    domain = plain_domain(node.domain)
    if not onnx.defs.has(node.op_type, opset, domain):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
    versions = (*schema.function_opset_versions, *schema.context_dependent_function_opset_versions)
    return any(each <= opset for each in versions)


def definition_nodes(node: NodeProto, opset: int) -> Iterator[tuple[NodeProto, int]]:
    """The nodes of the operator's definition with their opsets; none where it depends on the types of the inputs."""
    domain = plain_domain(node.domain)
    if onnx.defs.has(node.op_type, opset, domain):
        schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
        plain = [each for each in schema.function_opset_versions if each <= opset]
        if plain:
            function = _parsed(schema.get_function_with_opset_version(max(plain)))
            opsets = {plain_domain(each.domain): each.version for each in function.opset_import}
            for each in function.node:
                yield each, opsets.get(plain_domain(each.domain), opset)


def _expanded(
    around: Around, schema: Any, body: FunctionProto | None, version: int, call: Call, *inputs: Any
) -> Any:
    """The outputs by the definition, which is compiled once for these types and ranks."""
    types = () if body is not None else tuple(_type_of(*each) for each in zip(inputs, call.kinds, strict=True))
    if types not in call.kept:
        if body is None:
            node = call.node.SerializeToString()
            made = schema.get_context_dependent_function_with_opset_version(version, node, list(types))
            body = _parsed(made)
        call.kept[types] = compile_function(_with_defaults(body, schema), call, around)
    return tuple(call.kept[types].run(*inputs))


def _parsed(body: Any) -> FunctionProto:
    if isinstance(body, bytes):
        return FunctionProto.FromString(body)
    return body  # type: ignore[no-any-return]


def _with_defaults(body: FunctionProto, schema: onnx.defs.OpSchema) -> FunctionProto:
    """The body, with the schema's defaults for attributes that a node may leave out."""
    made = FunctionProto()
    made.CopyFrom(body)
    stated = {each.name for each in made.attribute_proto}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in stated and default.type != AttributeProto.UNDEFINED:
            made.attribute_proto.append(default)
    return made


def _type_of(value: Any, kind: int) -> bytes:
    if value is None:
        return b""
    if isinstance(value, list):
        element = TypeProto.FromString(_type_of(value[0], 0)) if value else helper.make_tensor_type_proto(1, None)
        return helper.make_sequence_type_proto(element).SerializeToString()
    return helper.make_tensor_type_proto(kind or KINDS[value.dtype], list(value.shape)).SerializeToString()
