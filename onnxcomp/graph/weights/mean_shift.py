"""What other values of a weight do to the mean of the node's output: (W - W') E[x], channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import is_onnx, producer
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.bias import biases
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight, weights


def weights_by_output(graph: Graph) -> dict[str, Weight]:
    """The weight of each linear node that alone reads it, by the name of the tensor that has the node's bias in it."""
    by_node = {
        id(each.roles[0].node): each
        for each in weights(graph)
        if len(each.roles) == 1 and each.roles[0].direct and each.roles[0].input_index == 1
    }
    return {each.output.name: by_node[id(each.node)] for each in biases(graph) if id(each.node) in by_node}


def mean_shift(weight: Weight, node: Node, mean: Array) -> Array | None:
    """What must be added to the outputs (channels,) float64 of ``node``, which took the place of the weight's reader.

    mean: (groups or 1, K) of the input columns. None where the weight is no single matrix or laid out otherwise now.
    """
    form, before = matrix_form(weight), weight.roles[0].node
    if form is None or (form.groups > 1 and form.kind not in ("conv", "conv_transpose")):
        return None
    values = fixed_values(node.inputs[1])
    if values is None or values.shape != weight.shape or before.attrs.get("transB", 0) != node.attrs.get("transB", 0):
        return None
    old = form.pack(weight.values).astype(np.float64) * before.attrs.get("alpha", 1.0)
    new = form.pack(values).astype(np.float64) * node.attrs.get("alpha", 1.0)
    shift: Array = np.einsum("grk,gk->gr", old - new, np.broadcast_to(mean, (form.groups, mean.shape[1])))
    return shift.reshape(-1)


def fixed_values(tensor: Any) -> Array | None:
    """The values of a constant, or of integers decoded by one DequantizeLinear with a scale for all or for each index
    of an axis; None for anything else."""
    if isinstance(tensor, Constant):
        return np.asarray(tensor.values)
    maker = producer(tensor)
    if maker is None or not is_onnx(maker, "DequantizeLinear") or maker.attrs.get("block_size", 0):
        return None
    if not all(isinstance(each, Constant) for each in maker.inputs):
        return None
    codes, *rest = (np.asarray(each.values) for each in maker.inputs)
    axis = maker.attrs.get("axis", 1) % max(1, codes.ndim)
    scale, *zero = (each.reshape([-1 if at == axis else 1 for at in range(codes.ndim)]) for each in rest)
    zero_point = zero[0].astype(np.float64) if zero else 0.0
    values: Array = (codes.astype(np.float64) - zero_point) * scale.astype(np.float64)
    return values
