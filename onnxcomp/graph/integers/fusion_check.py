"""Which nodes of a plan the target left in float: found in the model that it optimized.

    DequantizeLinear(W_int8) -> Conv -> r -> QuantizeLinear        nothing fused: Conv is idle, between two conversions
    QLinearConv(x_int8, W_int8) -> y_int8                          fused: no DequantizeLinear reads W_int8, r is gone

A kernel takes the codes of its weights as they are; where a DequantizeLinear still reads them, there is none. Of a
node without weights, the tensor that it made as floats tells: a node that reads DequantizeLinear still makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnxcomp.graph.integers.qdq_insertion import Mark


def idle_keys(optimized: ModelProto, marks: Mapping[str, Mark]) -> set[str]:
    """The keys of the units that still compute in float in the optimized model."""
    nodes = list(_nodes(optimized.graph))
    decoded = [node for node in nodes if node.op_type == "DequantizeLinear"]
    codes = {node.input[0] for node in decoded}
    floats = {name for node in decoded for name in node.output}
    made = {name for node in nodes if floats.intersection(node.input) for name in node.output if not _converts(node)}
    return {key for key, mark in marks.items() if mark.codes & codes or mark.made & made}


def _converts(node: NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
