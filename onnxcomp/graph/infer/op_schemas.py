"""What operators say of their inputs and outputs: formal parameters, type variables, element types.

In Resize-13 X and Y are of T1, roi of T2, scales of tensor(float): X may be float16, and Y is then; scales may not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto
from onnx.defs import OpSchema

from onnxcomp.graph.ir.nodes import Node
from onnxcomp.operators import ONNX_DOMAINS

FLOAT = int(TensorProto.FLOAT)


@dataclass(frozen=True)
class Port:
    """One given input or output of a node: where it stands, and what its schema calls its type.

    kind: a type variable ("T") or a type ("tensor(float)").
    """

    is_input: bool
    index: int
    tensor: Any
    kind: str


def schema_of(node: Node, opset: int) -> OpSchema | None:
    """The operator's schema in onnx, None for an operator that onnx does not define."""
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    version = opset if domain == "" else 99  # the other domains of onnx are read at their newest version
    return _schema(node.op, version, domain)


@functools.cache
def _schema(op: str, version: int, domain: str) -> OpSchema | None:
    try:
        found = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found


def ports(node: Node, schema: OpSchema) -> list[Port]:
    """The node's inputs and outputs that are given."""
    return [*_side(node.inputs, schema.inputs, True), *_side(node.outputs, schema.outputs, False)]


def _side(tensors: Any, formal: Any, is_input: bool) -> Iterator[Port]:
    for index, tensor in enumerate(tensors):
        if tensor.name and formal:
            yield Port(is_input, index, tensor, formal[min(index, len(formal) - 1)].type_str)


@functools.cache
def allowed_types(schema_key: tuple[str, int, str], kind: str) -> frozenset[str]:
    """The types that a type variable may stand for."""
    schema = _schema(*schema_key)
    if schema is None:
        return frozenset()
    found = [each.allowed_type_strs for each in schema.type_constraints if each.type_param_str == kind]
    return frozenset(found[0]) if found else frozenset({kind})


def allowed(schema: OpSchema, kind: str) -> frozenset[str]:
    """The types that a formal parameter's type variable may stand for; the type itself where it is one."""
    return allowed_types((schema.name, schema.since_version, schema.domain), kind)


def takes_only_tensors(schema: OpSchema) -> bool:
    """Whether no parameter can only be a sequence, an optional or a map, nor differ in type from its neighbours."""
    for formal in (*schema.inputs, *schema.outputs):
        variadic = formal.option == OpSchema.FormalParameterOption.Variadic
        if variadic and not formal.is_homogeneous:
            return False
        if not any(each.startswith("tensor(") for each in allowed(schema, formal.type_str)):
            return False
    return True


def type_name(data_type: int) -> str:
    """An element type as schemas write it: 10 -> "tensor(float16)"."""
    return f"tensor({TensorProto.DataType.Name(data_type).lower()})"
