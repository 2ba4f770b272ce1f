"""What of a model lies between its trained weights and the loss, and what of that has no derivative.

Nothing is computed for it: names are followed, through subgraphs too. An operator that gives whole numbers or truth
values ends the way of a derivative, one whose rule is discrete as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from onnxcomp.training.torch_graph.expansion import definition_nodes, has_definition
from onnxcomp.training.torch_graph.foreign import FOREIGN_DOMAINS
from onnxcomp.training.torch_graph.rule import operator_name, plain_domain
from onnxcomp.training.torch_graph.rule_table import RULES

NO_RULE = "it has no derivative here: no rule, and no definition by other operators"
UNKNOWN = "it is neither ONNX's nor ONNX Runtime's"
HAS_BODIES = "it has subgraphs, and no rule"


def faults(proto: ModelProto, loss: str, parameters: Collection[str]) -> dict[str, str]:
    """Reason by operator, for those that cannot be computed and those on the way that have no derivative."""
    opsets = {plain_domain(each.domain): each.version for each in proto.opset_import}
    found: dict[str, str] = {}
    everything = _needed(proto.graph, [each.name for each in proto.graph.output])
    for node, opset in _inside(everything, opsets):
        reason = _cannot_compute(node, opset)
        if reason:
            found[operator_name(node.op_type, node.domain)] = reason
    for node, opset in _on_the_way(proto.graph, opsets, {loss}, set(parameters)):
        if not _differentiates(node, opset):
            found.setdefault(operator_name(node.op_type, node.domain), NO_RULE)
    return found


def _on_the_way(
    graph: GraphProto, opsets: Mapping[str, int], wanted: set[str], varying: set[str]
) -> Iterator[tuple[NodeProto, int]]:
    """The nodes through which ``wanted`` depends on ``varying`` by values that have derivatives."""
    needed = _needed(graph, wanted)
    varying = set(varying)
    for node in needed:
        if not varying.intersection(reads(node)):
            continue
        opset = opsets.get(plain_domain(node.domain), 1)
        if _cuts(node, opset):
            continue
        varying.update(node.output)
        yield node, opset
        for body in _bodies(node):
            inner = varying | {each.name for each in body.input}
            yield from _on_the_way(body, opsets, {each.name for each in body.output}, inner)


def _needed(graph: GraphProto, wanted: Iterable[str]) -> list[NodeProto]:
    """The nodes that make these values, in order."""
    names, kept = set(wanted), []
    for node in reversed(graph.node):
        if names.intersection(node.output):
            kept.append(node)
            names.update(reads(node))
    return kept[::-1]


def reads(node: NodeProto) -> Iterator[str]:
    """Every name that a node reads, in its subgraphs too."""
    yield from (each for each in node.input if each)
    for body in _bodies(node):
        own = {each.name for each in body.input} | {each.name for each in body.initializer}
        own.update(name for inner in body.node for name in inner.output)
        for inner in body.node:
            yield from (each for each in reads(inner) if each not in own)
        yield from (each.name for each in body.output if each.name not in own)


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [each.g for each in node.attribute if each.HasField("g")]


def _inside(nodes: Iterable[NodeProto], opsets: Mapping[str, int]) -> Iterator[tuple[NodeProto, int]]:
    """The nodes and those of their subgraphs, with their opsets."""
    for node in nodes:
        yield node, opsets.get(plain_domain(node.domain), 1)
        for body in _bodies(node):
            yield from _inside(body.node, opsets)


def _cannot_compute(node: NodeProto, opset: int) -> str:
    domain = plain_domain(node.domain)
    if (domain, node.op_type) in RULES or has_definition(node, opset):
        return ""
    if _bodies(node):
        return HAS_BODIES
    return "" if domain in FOREIGN_DOMAINS else UNKNOWN


def _cuts(node: NodeProto, opset: int) -> bool:
    """Whether nothing that the node gives has a derivative."""
    rule = RULES.get((plain_domain(node.domain), node.op_type))
    if rule is not None:
        return rule.is_discrete
    domain = plain_domain(node.domain)
    if not onnx.defs.has(node.op_type, opset, domain):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
    return all("float" not in kind and "complex" not in kind for each in schema.outputs for kind in each.types)


def _differentiates(node: NodeProto, opset: int) -> bool:
    """Whether the node has a rule, or is defined by operators that have."""
    if (plain_domain(node.domain), node.op_type) in RULES:
        return True
    if not has_definition(node, opset):
        return False
    return all(_differentiates(*each) or _cuts(*each) for each in definition_nodes(node, opset))
