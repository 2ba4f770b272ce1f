"""A weight as the matrices that its nodes multiply with: node output = matrix @ input column, group by group.

    Conv             (O, I/g, kh, kw)  ->  (g, O/g, I/g * kh * kw)
    ConvTranspose    (I, O/g, kh, kw)  ->  (g, O/g, I/g * kh * kw)
    MatMul, Gemm     (K, N)            ->  (1, N, K); as the left operand (M, K) -> (1, M, K)
    MatMul           (.., K, N)        ->  (product of .., N, K)
    LSTM, GRU, RNN   W (D, 4H, I), R (D, 4H, H)  ->  as they are

Whatever rounds a weight by what it does to the outputs works on this form, and the second moments of the
inputs (``calibration.moments``) are given for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Node
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.weights.roles import Weight, place_of
from onnxcomp.operators import MATRIX_PRODUCTS, RECURRENT

MOST_MOMENTS = 2**25  # numbers in second moments that any weight is worth
MOMENTS_PER_VALUE = 8  # and those that a large one is worth


@dataclass(frozen=True)
class MatrixForm:
    """How the values of a weight make its matrices.

    axes: for each axis that the node sees, the constant's. kind: "conv", "conv_transpose", "right" (the right
    operand of a product), "left", "rows" (a transposed right operand) or "recurrent".
    shape: what the node sees. groups: of the matrices.
    """

    axes: tuple[int, ...]
    kind: str
    shape: tuple[int, ...]
    groups: int

    def pack(self, values: Array) -> Array:
        """The matrices (groups, outputs, K) of an array of the weight's own shape."""
        seen = np.asarray(values).transpose(self.axes)
        if self.kind == "conv":
            return seen.reshape(self.groups, self.shape[0] // self.groups, -1)
        if self.kind == "conv_transpose":
            split = seen.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], -1)
            return split.swapaxes(1, 2).reshape(self.groups, self.shape[1], -1)
        if self.kind == "right":
            return seen.reshape(self.groups, *self.shape[-2:]).swapaxes(1, 2)
        return seen.reshape(self.groups, *self.shape[-2:])

    def unpack(self, matrices: Array) -> Array:
        """The inverse of ``pack``."""
        if self.kind == "conv_transpose":
            inputs = self.shape[0] // self.groups
            seen = matrices.reshape(self.groups, self.shape[1], inputs, -1).swapaxes(1, 2)
        else:
            seen = matrices.swapaxes(1, 2) if self.kind == "right" else matrices
        order = np.argsort(self.axes)
        return np.ascontiguousarray(seen.reshape(self.shape).transpose(order))


def matrix_form(weight: Weight) -> MatrixForm | None:
    """The form on which all the nodes that multiply with the weight agree, or None."""
    forms = {
        None if role.axes is None else form_at(role.node, role.input_index, role.axes, weight.shape)
        for role in weight.roles
    }
    return forms.pop() if len(forms) == 1 else None


def form_at(node: Node, index: int, axes: tuple[int, ...], own_shape: tuple[int, ...]) -> MatrixForm | None:
    """The form of a weight that a node reads at an input, or None where it multiplies with no matrices of it.

    axes: for each axis that the node sees, the weight's. own_shape: the weight's.
    """
    if len(axes) != len(own_shape) or not math.prod(own_shape):
        return None
    shape = tuple(own_shape[axis] for axis in axes)
    kind, channel_axis, _ = place_of(node, index, len(axes))
    if kind in ("conv", "conv_transpose") and len(shape) > 2:
        group = int(node.attrs.get("group", 1))
        return MatrixForm(axes, kind, shape, group) if shape[0] % group == 0 else None
    if kind == "recurrent" and node.op in RECURRENT and len(shape) == 3:
        return MatrixForm(axes, "recurrent", shape, shape[0])
    if kind != "linear" or channel_axis is None or not is_onnx(node, *MATRIX_PRODUCTS):
        return None
    if index == 0:
        is_plain = len(shape) == 2 and not node.attrs.get("transA", 0)
        return MatrixForm(axes, "left", shape, 1) if is_plain else None
    return MatrixForm(axes, "rows" if node.attrs.get("transB", 0) else "right", shape, math.prod(shape[:-2]))


def worth_moments(weight: Weight) -> bool:
    """Whether the second moments of its inputs take no more room than makes sense for a weight of its size."""
    form = matrix_form(weight)
    if form is None:
        return False
    groups, _, length = form.pack(np.broadcast_to(np.float32(0), weight.shape)).shape
    numbers: int = groups * length**2
    return numbers <= max(MOST_MOMENTS, MOMENTS_PER_VALUE * weight.size)
