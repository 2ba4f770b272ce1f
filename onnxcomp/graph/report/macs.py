"""Multiply-accumulate operations of the nodes that have them: convolutions, matrix products, recurrent cells.

    Conv            elements of the output * input channels of a group * kernel
    ConvTranspose   elements of the input * output channels of a group * kernel
    MatMul, Gemm    elements of the output * length of the sum
    LSTM, GRU, RNN  time steps * batch * elements of W and R

A body of a Loop or Scan counts once. Everything else (activations, pooling, norms) counts nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.infer.shapes import Shape, Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.operators import LINEAR, MICROSOFT, ONNX_DOMAINS, RECURRENT

# Operator -> position of its weight.
CONVOLUTION_WEIGHTS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
PRODUCT_OPERANDS = {
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3, "MatMulNBits": None,
}  # fmt: skip
UNCOUNTED = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "PackedAttention", "DecoderAttention"}
)


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


def _multiplies(node: Node) -> bool:
    counted = {*CONVOLUTION_WEIGHTS, *PRODUCT_OPERANDS, *RECURRENT, *UNCOUNTED, *LINEAR, "QGemm", "Einsum"}
    return (node.domain in ONNX_DOMAINS or node.domain == MICROSOFT) and node.op in counted


def _count(node: Node, shapes: Shapes) -> Macs | None:
    if node.op in CONVOLUTION_WEIGHTS:
        weight = _shape(node.inputs, CONVOLUTION_WEIGHTS[node.op], shapes)
        return _product(shapes.shape(node.outputs[0]), weight and weight[1:])
    if node.op == "ConvTranspose":
        weight = _shape(node.inputs, 1, shapes)
        return _product(_shape(node.inputs, 0, shapes), weight and weight[1:])
    if node.op in PRODUCT_OPERANDS:
        return _matrix_product(node, shapes)
    if node.op in ("Gemm", "QGemm"):
        left = _shape(node.inputs, 0, shapes)
        summed = None if left is None else left[:1] if node.attrs.get("transA", 0) else left[-1:]
        return _product(shapes.shape(node.outputs[0]), summed)
    if node.op in RECURRENT:
        return _recurrent(node, shapes)
    return _einsum(node, shapes) if node.op == "Einsum" else None


def _matrix_product(node: Node, shapes: Shapes) -> Macs | None:
    if node.op == "MatMulNBits":
        return _product(shapes.shape(node.outputs[0]), (int(node.attrs["K"]),))
    left = _shape(node.inputs, 0, shapes)
    if left is not None and node.attrs.get("transA", 0):
        left = (*left[:-2], *left[-2:][::-1])
    right = _shape(node.inputs, PRODUCT_OPERANDS[node.op] or 1, shapes)
    if left is None or right is None:
        return None
    if right and left and left[-1] is None and not node.attrs.get("transB", 0):
        left = (*left[:-1], right[-2] if len(right) > 1 else right[0])  # the summed length, from the other side
    return _product(shapes.shape(node.outputs[0]), left[-1:])


def _recurrent(node: Node, shapes: Shapes) -> Macs | None:
    source = _shape(node.inputs, 0, shapes)
    weights = [_shape(node.inputs, index, shapes) for index in (1, 2)]
    if source is None or any(each is None for each in weights):
        return None
    parts = [_product(source[:2], each) for each in weights]
    return Macs(sum(each.count for each in parts if each), any(each.is_partial for each in parts if each))


def _einsum(node: Node, shapes: Shapes) -> Macs | None:
    left = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")[0]
    sizes: dict[str, int | None] = {}
    for term, tensor in zip(left.split(","), node.inputs, strict=False):
        shape = shapes.shape(tensor)
        if "." in term or shape is None or len(shape) != len(term):
            return None
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = sizes.get(letter) or size
    return _product(tuple(sizes.values()))


def _shape(inputs: Any, index: int, shapes: Shapes) -> Shape | None:
    return shapes.shape(inputs[index]) if index < len(inputs) else None


def _product(*parts: Shape | None) -> Macs | None:
    dims: list[int | None] = []
    for each in parts:
        if each is None:
            return None
        dims.extend(each)
    return Macs(math.prod(1 if dim is None else dim for dim in dims), any(dim is None for dim in dims))
