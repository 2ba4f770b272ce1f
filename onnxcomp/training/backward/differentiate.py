"""The derivative of a graph, written behind it: each node's rule in reverse order, adjoints of one tensor summed.

Only what stands between a parameter and the loss is differentiated. Adjoints flow through float tensors, and through
quantized ones between QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.training.backward.families import RULES
from onnxcomp.training.backward.rules import At, NoRuleError, domain_of, unbroadcast
from onnxcomp.training.backward.values import FLOATS, Value, Writer

# Of what an adjoint may pass through: floats, and what stands for floats between quantizing and dequantizing.
QUANTIZED = frozenset(
    int(getattr(TensorProto, name))
    for name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2", "FLOAT8E4M3FN", "FLOAT8E5M2")
    if hasattr(TensorProto, name)
)
UNKNOWN = 0
NO_RULE = "has no derivative in this engine"


@dataclass
class Derivative:
    """What was written.

    gradients: by parameter, as far as the loss depends on it. reasons: by operator, why it could not be differentiated;
    the gradients are then incomplete.
    """

    gradients: dict[Any, Value] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def differentiate(graph: Graph, shapes: Shapes, loss: Any, parameters: Sequence[Any]) -> Derivative:
    """Write d loss / d parameter into the main graph.

    loss: a float tensor of one element. parameters: tensors of the main graph.
    """
    writer = Writer(graph, shapes)
    way = between(graph, shapes, loss, parameters)
    adjoints = {loss: _one(writer, loss)}
    barred: set[Any] = set()  # tensors that have adjoints which could not be written
    made = Derivative()
    for node in reversed(way.nodes):
        given = [adjoints.get(out) for out in node.outputs]
        is_barred = any(out in barred for out in node.outputs)
        if not any(given) and not is_barred:
            continue
        wanted = [each in way.tensors for each in node.inputs]
        try:
            found = _applied(writer, node, given, wanted) if any(given) else _none(node)
        except NoRuleError as error:
            made.reasons.setdefault(operator(node), f"{node.name or node.outputs[0].name}: {error}")
            is_barred, found = True, []
        if is_barred:
            barred.update(node.inputs)
        for tensor, adjoint, is_wanted in zip(node.inputs, found, wanted, strict=False):
            if adjoint is not None and is_wanted:
                before = adjoints.get(tensor)
                adjoints[tensor] = adjoint if before is None else before + adjoint
    made.gradients = {each: adjoints[each] for each in parameters if each in adjoints}
    return made


@dataclass(frozen=True)
class Way:
    """What stands between the parameters and the loss: nodes in order, and tensors that depend on a parameter."""

    nodes: list[Node]
    tensors: set[Any]


def between(graph: Graph, shapes: Shapes, loss: Any, parameters: Iterable[Any]) -> Way:
    """The nodes of the main graph by which the loss depends on a parameter, as far as types let a derivative pass."""
    tensors = set(parameters)
    nodes = []
    for node in graph.main.graph.nodes:
        if any(each in tensors for each in (*node.inputs, *inner_reads(node))):
            carrying = [out for out in node.outputs if out.name and _carries(shapes, out)]
            tensors.update(carrying)
            if carrying:
                nodes.append(node)
    needed = {loss}
    for node in reversed(graph.main.graph.nodes):
        if any(out in needed for out in node.outputs):
            needed.update(node.inputs)
            needed.update(inner_reads(node))
    return Way([each for each in nodes if any(out in needed for out in each.outputs)], tensors)


def _carries(shapes: Shapes, tensor: Any) -> bool:
    data_type = shapes.data_type(tensor)
    return data_type in FLOATS or data_type in QUANTIZED or data_type == UNKNOWN


def operator(node: Node) -> str:
    """The operator as messages name it."""
    domain = domain_of(node)
    return f"{domain}::{node.op}" if domain else str(node.op)


def _one(writer: Writer, loss: Any) -> Value:
    dtype = helper.tensor_dtype_to_np_dtype(writer.shapes.data_type(loss))
    static = writer.shapes.static(loss)
    if static is not None:
        return writer.constant(np.ones(static, dtype))
    return writer.constant(np.ones((), dtype)).expand(writer.shape(writer.value(loss)))


def _none(node: Node) -> Sequence[Value | None]:
    """No adjoints; NoRuleError for an operator without a rule, so that all are named at once."""
    if (domain_of(node), node.op) not in RULES:
        raise NoRuleError(NO_RULE)
    return []


def _applied(
    writer: Writer, node: Node, adjoints: Sequence[Value | None], wanted: Sequence[bool]
) -> Sequence[Value | None]:
    found = RULES.get((domain_of(node), node.op))
    if found is None:
        raise NoRuleError(NO_RULE)
    at = At(writer, node, adjoints, wanted)
    made = found.derive(at)
    given = [made] if isinstance(made, Value) else list(made)
    if not found.broadcasts:
        return given
    like = at.y
    return [
        unbroadcast(writer, adjoint, like, writer.value(tensor)) if adjoint is not None and is_wanted else None
        for tensor, adjoint, is_wanted in zip(node.inputs, given, wanted, strict=False)
    ]
