"""Multiply-accumulate operations of the nodes that have them: convolutions, matrix products, recurrent cells.

    Conv            elements of the output * input channels of a group * kernel
    ConvTranspose   elements of the input * output channels of a group * kernel
    MatMul, Gemm    elements of the output * length of the sum
    LSTM, GRU, RNN  time steps * batch * elements of W and R

A body of a Loop or Scan counts once. Everything else (activations, pooling, norms) counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.infer.shapes import Shape, Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.operators import LINEAR, MICROSOFT, ONNX_DOMAINS, RECURRENT

# Operator -> position of its weight.
CONVOLUTION_WEIGHTS = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1,
}  # fmt: skip
GEMMS = frozenset({"Gemm", "FusedGemm", "QGemm"})
PRODUCT_OPERANDS = {
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3, "MatMulNBits": None,
}  # fmt: skip
UNCOUNTED = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "PackedAttention", "DecoderAttention"}
)
COUNTED = frozenset({*CONVOLUTION_WEIGHTS, *PRODUCT_OPERANDS, *RECURRENT, *UNCOUNTED, *LINEAR, *GEMMS, "Einsum"})


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one node; ``is_partial``: dimensions that the model leaves open count as 1."""

    count: int
    is_partial: bool


def count_macs(graph: Graph, shapes: Shapes | None = None) -> dict[Node, Macs | None]:
    """The nodes that multiply and accumulate, for a batch of one; None where the shapes are not known.

    shapes: those of ``infer_shapes(graph, batch=1)``, where they are known already.
    """
    if shapes is None:
        shapes = infer_shapes(graph, batch=1)
    return {node: _count(node, shapes) for _, node in graph.nodes() if _multiplies(node)}


def is_multiplying(operator: str) -> bool:
    """Whether an operator, of ONNX or of ONNX Runtime, is one whose multiply-accumulates count."""
    return _plain(operator) in COUNTED


def macs_of(
    operator: str, inputs: Sequence[Shape | None], output: Shape | None, attributes: Mapping[str, Any]
) -> Macs | None:
    """The multiply-accumulates of a node that reads tensors of these shapes and gives one of the other; None where they
    cannot be told."""
    operator = _plain(operator)
    if operator in CONVOLUTION_WEIGHTS:
        weight = _at(inputs, CONVOLUTION_WEIGHTS[operator])
        return _product(output, weight and weight[1:])
    if operator == "ConvTranspose":
        weight = _at(inputs, 1)
        return _product(_at(inputs, 0), weight and weight[1:])
    if operator in PRODUCT_OPERANDS:
        return _matrix_product(operator, inputs, output, attributes)
    if operator in GEMMS:
        left = _at(inputs, 0)
        summed = None if left is None else left[:1] if attributes.get("transA", 0) else left[-1:]
        return _product(output, summed)
    if operator in RECURRENT:
        return _recurrent(inputs)
    return _einsum(inputs, str(attributes.get("equation", ""))) if operator == "Einsum" else None


def _plain(operator: str) -> str:
    return operator.removeprefix("DynamicQuantize") if operator.endswith("LSTM") else operator


def _multiplies(node: Node) -> bool:
    return (node.domain in ONNX_DOMAINS or node.domain == MICROSOFT) and node.op in COUNTED


def _count(node: Node, shapes: Shapes) -> Macs | None:
    inputs = [shapes.shape(each) for each in node.inputs]
    return macs_of(node.op, inputs, shapes.shape(node.outputs[0]), node.attrs)


def _matrix_product(
    operator: str, inputs: Sequence[Shape | None], output: Shape | None, attributes: Mapping[str, Any]
) -> Macs | None:
    if operator == "MatMulNBits":
        return _product(output, (int(attributes["K"]),))
    left = _at(inputs, 0)
    if left is not None and attributes.get("transA", 0):
        left = (*left[:-2], *left[-2:][::-1])
    right = _at(inputs, PRODUCT_OPERANDS[operator] or 1)
    if left is None or right is None:
        return None
    if right and left and left[-1] is None and not attributes.get("transB", 0):
        left = (*left[:-1], right[-2] if len(right) > 1 else right[0])  # the summed length, from the other side
    return _product(output, left[-1:])


def _recurrent(inputs: Sequence[Shape | None]) -> Macs | None:
    source = _at(inputs, 0)
    weights = [_at(inputs, index) for index in (1, 2)]
    if source is None or any(each is None for each in weights):
        return None
    parts = [_product(source[:2], each) for each in weights]
    return Macs(sum(each.count for each in parts if each), any(each.is_partial for each in parts if each))


def _einsum(inputs: Sequence[Shape | None], equation: str) -> Macs | None:
    left = equation.replace(" ", "").partition("->")[0]
    sizes: dict[str, int | None] = {}
    for term, shape in zip(left.split(","), inputs, strict=False):
        if "." in term or shape is None or len(shape) != len(term):
            return None
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = sizes.get(letter) or size
    return _product(tuple(sizes.values()))


def _at(inputs: Sequence[Shape | None], index: int) -> Shape | None:
    return inputs[index] if index < len(inputs) else None


def _product(*parts: Shape | None) -> Macs | None:
    dims: list[int | None] = []
    for each in parts:
        if each is None:
            return None
        dims.extend(each)
    return Macs(math.prod(1 if dim is None else dim for dim in dims), any(dim is None for dim in dims))
