"""Weights that are blind to some of their inputs make up for these with the others.

    V = argmin E |W x + b - V x' - c|^2,  V zero in the columns that are dropped

x is what the node reads in the original, x' what it reads now. With a bias both moments are taken about the means, and
the bias gets  W E[x] - V E[x'].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import has_one_reader, is_onnx
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.rewire import set_input
from onnxcomp.graph.weights.bias import Bias, bias_of
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.structure.unit_elimination import without
from onnxcomp.operators import CONVOLUTIONS, LINEAR

SHRINKAGE = 0.01  # of the mean power of an input, by which the weights are held to what they were


@dataclass(frozen=True, eq=False)
class Made:
    """New matrices (groups, rows, K), and what the bias (groups * rows,) gets more; None where there is none."""

    matrices: Array
    shift: Array | None


def compensated(
    matrices: Array,
    dropped: Array,
    gram: Array,
    cross: Array,
    mean: Array | None,
    mean_before: Array | None,
    amount: float = SHRINKAGE,
) -> Made:
    """The matrices (groups, rows, K) without the dropped columns (groups, K).

    gram, cross: (groups or 1, K, K) as in ``PairedMoments``. mean, mean_before: (groups or 1, K), None where the node
    has no bias to take up the difference.
    """
    made, shifts = [], []
    for at, matrix in enumerate(np.asarray(matrices, np.float64)):
        own = at if len(gram) > 1 else 0
        moment, mixed = np.asarray(gram[own], np.float64), np.asarray(cross[own], np.float64)
        if mean is not None and mean_before is not None:
            moment = moment - np.outer(mean[own], mean[own])
            mixed = mixed - np.outer(mean_before[own], mean[own])
        found = without(matrix, moment, mixed, dropped[at], amount=amount)
        made.append(found)
        if mean is not None and mean_before is not None:
            shifts.append(matrix @ mean_before[own] - found @ mean[own])
    return Made(np.stack(made), np.concatenate(shifts) if shifts else None)


def movable_bias(graph: Graph, weight: Weight) -> Bias | None:
    """The bias of the one node that reads a weight, a constant that nothing else reads; None where there is none."""
    if len(weight.roles) != 1 or weight.scope is not graph.main:
        return None
    node = weight.roles[0].node
    if not is_onnx(node, *LINEAR) or weight.roles[0].input_index != 1 or not graph.main.graph.holds(node):
        return None
    bias = bias_of(graph, graph.main, node)
    channels = weight.shape[weight.channel_axis] if weight.channel_axis is not None else 0
    if node.op == "ConvTranspose":
        channels *= int(node.attrs.get("group", 1))
    tensor = bias.tensor
    if not channels or tensor is None or bias.fault(channels) or not has_one_reader(graph, tensor):
        return None
    return bias if np.dtype(tensor.dtype) == weight.dtype else None


def give_bias(graph: Graph, weight: Weight) -> None:
    """Give the convolution that alone reads a weight a bias of zeros, where it has none."""
    node = weight.roles[0].node
    if len(weight.roles) == 1 and is_onnx(node, *CONVOLUTIONS) and weight.scope is graph.main:
        bias = bias_of(graph, graph.main, node)
        if bias.tensor is None and weight.channel_axis is not None and weight.roles[0].direct:
            channels = weight.shape[weight.channel_axis]
            if node.op == "ConvTranspose":
                channels *= int(node.attrs.get("group", 1))
            zeros = np.zeros(channels, weight.dtype)
            set_input(node, 2, graph.constant(graph.main, f"{node.outputs[0].name}_bias", zeros))


def shift_bias(bias: Bias, shift: Array) -> None:
    """Move a bias that ``movable_bias`` gave."""
    tensor = bias.tensor
    assert isinstance(tensor, Constant)
    old = np.asarray(tensor.values)
    tensor.values = (old.astype(np.float64) + shift.reshape(old.shape)).astype(old.dtype)
