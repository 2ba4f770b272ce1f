"""What protobuf lets through and no part of onnxcomp could work with: refused once, when a model is read.

- text that is not UTF-8 (names, operators, doc strings);
- attributes of a type whose value is missing;
- element types that ONNX does not have, shapes with negative dimensions or beyond 64-bit sizes;
- model-local functions that come to more nodes than any model has, once inlined: each may call another twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto

from onnxcomp.errors import ModelError

MAX_RANK = 64  # numpy's
MAX_SIZE = 2**63 - 1
ELEMENT_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
MAX_INLINED_NODES = 2**17
HELD_BY = {  # attribute types whose values are messages -> the field that must be there
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}

FunctionKey = tuple[str, str, str]


def refuse_malformed(proto: ModelProto, name: str) -> None:
    """Raise ModelError, which names the model and the tensor, for what the module's head lists."""
    _walk(proto, name)
    if proto.functions:
        _refuse_doubling(proto, name)


def _walk(message: Message, name: str) -> None:
    texts, messages = _fields(message.DESCRIPTOR)
    for field, is_repeated in texts:
        _check_text(message, field, is_repeated, name)
    if isinstance(message, TensorProto):
        _check_tensor(message, name)
    elif isinstance(message, TypeProto.Tensor | TypeProto.SparseTensor):
        _check_element_type(message.elem_type, name, "a value", may_be_unknown=True)
    elif isinstance(message, AttributeProto):
        _check_attribute(message, name)
    for field, is_repeated in messages:
        if is_repeated:
            for each in getattr(message, field):
                _walk(each, name)
        elif message.HasField(field):
            _walk(getattr(message, field), name)


@functools.cache
def _fields(kind: Descriptor) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The fields of a message that hold text, and those that hold messages, with whether they are repeated."""
    texts = [(each.name, _is_repeated(each)) for each in kind.fields if each.type == FieldDescriptor.TYPE_STRING]
    messages = [(each.name, _is_repeated(each)) for each in kind.fields if each.type == FieldDescriptor.TYPE_MESSAGE]
    return texts, messages


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _check_text(message: Message, field: str, is_repeated: bool, name: str) -> None:
    """Protobuf hands over bytes where text is not UTF-8, or raises."""
    try:
        value = getattr(message, field)
        is_text = not any(isinstance(each, bytes) for each in (value if is_repeated else (value,)))
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
        raise ModelError(f"{name}: not a valid model: the {field} of a {kind} is not UTF-8.")


def _check_tensor(tensor: TensorProto, name: str) -> None:
    where = f"tensor {tensor.name!r}"
    _check_element_type(tensor.data_type, name, where, may_be_unknown=False)
    dims = tensor.dims
    if any(dim < 0 for dim in dims) or len(dims) > MAX_RANK or math.prod(dims) > MAX_SIZE:
        shape = f"{len(dims)} dimensions" if len(dims) > MAX_RANK else f"the shape {tuple(dims)}"
        raise ModelError(f"{name}: not a valid model: {where} has {shape}.")


def _check_attribute(attribute: AttributeProto, name: str) -> None:
    field = HELD_BY.get(attribute.type)
    if field is not None and not attribute.ref_attr_name and not attribute.HasField(field):
        raise ModelError(f"{name}: not a valid model: the attribute {attribute.name!r} has a type and no value.")


def _check_element_type(number: int, name: str, where: str, *, may_be_unknown: bool) -> None:
    if number not in ELEMENT_TYPES and not (may_be_unknown and number == TensorProto.UNDEFINED):
        raise ModelError(f"{name}: not a valid model: {where} has the element type {number}, which ONNX does not have.")


def _refuse_doubling(proto: ModelProto, name: str) -> None:
    functions = {_key(each): each for each in proto.functions}
    counts: dict[FunctionKey, int] = {}
    for function in proto.functions:
        _count(_key(function), functions, counts, name)
    called = [_called(node) for node in _nodes(proto.graph.node)]
    total = sum(counts.get(each, 1) for each in called)
    if total > max(MAX_INLINED_NODES, len(called)):
        most = f"{MAX_INLINED_NODES:,} are allowed"
        raise ModelError(f"{name}: its functions come to {total:,} nodes once inlined; {most}.")


def _count(
    key: FunctionKey, functions: Mapping[FunctionKey, FunctionProto], counts: dict[FunctionKey, int], name: str
) -> None:
    """Put into ``counts`` how many nodes a function comes to; what it calls is counted first, without recursion."""
    opened: list[FunctionKey] = [key]
    while opened:
        current = opened[-1]
        called = [_called(node) for node in _nodes(functions[current].node)]
        missing = [each for each in called if each in functions and each not in counts]
        if not missing:
            counts[current] = sum(counts.get(each, 1) for each in called)
            opened.pop()
        elif missing[0] in opened:
            raise ModelError(f"{name}: not a valid model: the function {missing[0][1]} calls itself.")
        else:
            opened.append(missing[0])


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes(graph.node)


def _key(function: FunctionProto) -> FunctionKey:
    return function.domain, function.name, function.overload


def _called(node: NodeProto) -> FunctionKey:
    return node.domain, node.op_type, node.overload
