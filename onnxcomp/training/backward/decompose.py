"""Operators that have no rule, written out as what they are made of: by ONNX's own definition of them, or by ours.

    SkipLayerNormalization(x, skip, scale)    becomes    LayerNormalization(Add(x, skip), scale)

``written_out`` of a model leaves those between a parameter and the loss that have rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import onnx.inliner
from onnx import GraphProto, NodeProto, defs, helper

from onnxcomp.graph.infer.shapes import Shapes, infer_shapes, inner_graphs
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph, subgraphs_of
from onnxcomp.model import Model, copied
from onnxcomp.operators import MICROSOFT
from onnxcomp.training.backward.families import RULES
from onnxcomp.training.backward.rules import At, NoRuleError, domain_of
from onnxcomp.training.backward.values import Value, Writer

ROUNDS = 8  # definitions call operators that have definitions
Compose = Callable[[At], Sequence[Value]]
COMPOSITIONS: dict[tuple[str, str], Compose] = {}


def composition(*ops: str, domain: str = MICROSOFT) -> Callable[[Compose], Compose]:
    """Register what operators are made of: the outputs, from the inputs."""

    def register(compose: Compose) -> Compose:
        COMPOSITIONS.update(dict.fromkeys([(domain, op) for op in ops], compose))
        return compose

    return register


def decomposed(model: Model, nodes_of: Callable[[Graph, Shapes], Iterable[Node]]) -> Model:
    """The model with those nodes written out that have no rule and are made of others.

    nodes_of: the nodes that matter.
    """
    for _ in range(ROUNDS):
        graph = open_graph(model)
        shapes = infer_shapes(graph, computed=True)
        homes = {node: scope for scope, node in graph.nodes()}
        every = [each for node in nodes_of(graph, shapes) for each in (node, *_inside(node))]
        left = [node for node in every if (domain_of(node), node.op) not in RULES]
        composed = [node for node in left if _compose(Writer(graph, shapes, homes[node]), node)]
        defined = {(domain_of(node), node.op) for node in left if node not in composed and _is_defined(node, graph)}
        if not composed and not defined:
            return model
        model = close_graph(graph)
        inlined = _inlined(model, defined, shapes, graph) if defined else None
        if inlined is None and not composed:
            return model
        model = inlined or model
    return model


def _inlined(model: Model, defined: Collection[tuple[str, str]], shapes: Shapes, graph: Graph) -> Model | None:
    """The model with ONNX's definitions in the place of these operators; None where the inliner has no way."""
    proto = copied(model.proto)
    _state_types(proto.graph, shapes, graph)
    for body in (proto.graph, *inner_graphs(proto.graph)):
        for node in body.node:
            if (domain_of(node), node.op_type) in defined:
                _state_defaults(node, graph.opset)
    try:
        made = onnx.inliner.inline_selected_functions(proto, sorted(defined), False, True)
    except RuntimeError:  # of a type that it does not know, as that of an input left out
        return None
    del made.graph.value_info[:]
    return model.with_proto(made)


def _state_types(proto: GraphProto, shapes: Shapes, graph: Graph) -> None:
    """Write down what types tensors have: definitions depend on them, and the inliner does not infer them all."""
    del proto.value_info[:]
    made = [out for node in graph.main.graph.nodes for out in node.outputs if out.name]
    known = {each.name for each in proto.output}
    for tensor in [*graph.main.constants, *made]:
        data_type = shapes.data_type(tensor)
        if data_type and tensor.name not in known:
            proto.value_info.append(helper.make_tensor_value_info(tensor.name, data_type, shapes.shape(tensor)))


def _state_defaults(node: NodeProto, opset: int) -> None:
    """Write down the attributes that are left to their defaults: the inliner leaves what refers to them empty."""
    stated = {each.name for each in node.attribute}
    schema: Any = defs.get_schema(node.op_type, opset, domain_of(node))
    for name, attribute in schema.attributes.items():
        if name not in stated and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _is_defined(node: Node, graph: Graph) -> bool:
    try:
        schema: Any = defs.get_schema(node.op, graph.opset, domain_of(node))
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _inside(node: Node) -> Iterator[Node]:
    """The nodes of a node's bodies, at any depth."""
    for body in subgraphs_of(node):
        for inner in body.nodes:
            yield inner
            yield from _inside(inner)


def _compose(write: Writer, node: Node) -> bool:
    """Put what a node is made of in its place; whether that is known."""
    compose = COMPOSITIONS.get((domain_of(node), node.op))
    if compose is None:
        return False
    try:
        made = compose(At(write, node))
    except NoRuleError:
        return False
    outputs = list(node.outputs)
    write.graph.remove_node(write.scope, node)
    for output, value in zip(outputs, made, strict=False):
        if output.name:
            write.graph.node(write.scope, "Identity", [value.tensor], [output])
    return True
