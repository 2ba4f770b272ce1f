"""The reverse sweep: each node's rule in reverse order, adjoints of one tensor summed.

Adjoints flow through float tensors, and through quantized ones between QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.training.backward.rules import RULES, At, NoRuleError, domain_of, unbroadcast
from onnxcomp.training.backward.values import FLOATS, Value, Writer

# Of what an adjoint may pass through beside floats: what stands for floats between quantizing and dequantizing.
QUANTIZED = frozenset(
    int(getattr(TensorProto, name))
    for name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2", "FLOAT8E4M3FN", "FLOAT8E5M2")
    if hasattr(TensorProto, name)
)
UNKNOWN = 0
NO_RULE = "has no derivative in this engine"


@dataclass(frozen=True)
class Way:
    """What stands between sources and targets: nodes in order, and tensors that depend on a source."""

    nodes: list[Node]
    tensors: set[Any]


def between(nodes: Sequence[Node], shapes: Shapes, targets: Iterable[Any], sources: Iterable[Any]) -> Way:
    """The nodes by which targets depend on sources, as far as types let a derivative pass; nodes: in order."""
    tensors = set(sources)
    carrying = []
    for node in nodes:
        if any(each in tensors for each in (*node.inputs, *inner_reads(node))):
            made = [out for out in node.outputs if out.name and carries(shapes, out)]
            tensors.update(made)
            if made:
                carrying.append(node)
    needed = set(targets)
    for node in reversed(nodes):
        if any(out in needed for out in node.outputs):
            needed.update(node.inputs)
            needed.update(inner_reads(node))
    return Way([each for each in carrying if any(out in needed for out in each.outputs)], tensors)


def carries(shapes: Shapes, tensor: Any) -> bool:
    """Whether a tensor may have an adjoint."""
    data_type = shapes.data_type(tensor)
    return data_type in FLOATS or data_type in QUANTIZED or data_type == UNKNOWN


@dataclass(frozen=True)
class Swept:
    """The adjoints by tensor; by operator, why there is none of what stands before it."""

    adjoints: dict[Any, Value]
    reasons: dict[str, str]


def sweep(writer: Writer, way: Way, seeds: Mapping[Any, Value]) -> Swept:
    """Write the adjoints of everything on the way; seeds: those of the targets."""
    adjoints = dict(seeds)
    reasons: dict[str, str] = {}
    barred: set[Any] = set()  # tensors that have adjoints which could not be written
    for node in reversed(way.nodes):
        given = [adjoints.get(out) for out in node.outputs]
        is_barred = any(out in barred for out in node.outputs)
        if not any(given) and not is_barred:
            continue
        try:
            found = _applied(writer, node, given, way.tensors) if any(given) else _none(node)
        except NoRuleError as error:
            reasons.setdefault(operator(node), f"{node.name or node.outputs[0].name}: {error}")
            is_barred, found = True, []
        if is_barred:
            barred.update(node.inputs)
        for tensor, adjoint in found:
            before = adjoints.get(tensor)
            adjoints[tensor] = adjoint if before is None else before + adjoint
    return Swept(adjoints, reasons)


def operator(node: Node) -> str:
    """The operator as messages name it."""
    domain = domain_of(node)
    return f"{domain}::{node.op}" if domain else str(node.op)


Found = list[tuple[Any, Value]]


def _none(node: Node) -> Found:
    """No adjoints; NoRuleError for an operator without a rule, so that all are named at once."""
    if (domain_of(node), node.op) not in RULES:
        raise NoRuleError(NO_RULE)
    return []


def _applied(writer: Writer, node: Node, adjoints: Sequence[Value | None], active: Set[Any]) -> Found:
    """The adjoints that a node's rule gives, for tensors that want one."""
    found = RULES.get((domain_of(node), node.op))
    if found is None:
        raise NoRuleError(NO_RULE)
    if any(adjoints[found.outputs :]):
        raise NoRuleError("the loss depends on one of its outputs that has no derivative here")
    at = At(writer, node, adjoints, active)
    made = found.derive(at)
    if isinstance(made, Mapping):
        return [(tensor, adjoint) for tensor, adjoint in made.items() if tensor in active]
    given = [made] if isinstance(made, Value) else list(made)
    pairs = zip(node.inputs, given, strict=False)
    kept = [(tensor, adjoint) for tensor, adjoint in pairs if adjoint is not None and tensor in active]
    if not found.broadcasts:
        return kept
    return [(tensor, unbroadcast(writer, adjoint, at.y, writer.value(tensor))) for tensor, adjoint in kept]
