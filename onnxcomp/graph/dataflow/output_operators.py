"""Which operator computes each output, seen past what only moves, casts or stores values.

MatMul -> Add(bias) -> Reshape -> output      "MatMul"
LayerNormalization -> Cast -> output          "LayerNormalization"
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from onnxcomp.model import Model
from onnxcomp.operators import LINEAR

SCORING = LINEAR | {"Einsum", "FusedMatMul", "MatMulNBits"}  # what computes logits
PASSING = frozenset({
    "Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip


def ends(model: Model) -> Mapping[str, str]:
    """By graph output the operator type that computes it; "" where the main graph does not say."""
    graph = model.proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    constants = {each.name for each in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    return {each.name: _end(each.name, makers, constants) for each in graph.output}


def _end(name: str, makers: Mapping[str, NodeProto], constants: set[str]) -> str:
    while name in makers:
        node = makers[name]
        computed = [each for each in node.input if each and each not in constants]
        adds_constant = node.op_type == "Add" and len(computed) == 1
        if not computed or not (node.op_type in PASSING or adds_constant):
            return str(node.op_type)
        name = computed[0]
    return ""
