"""A linear operator: which operand is its weight, which axes are which, and what may take its place.

    Conv(x, W, b)             W: (O, I/g, kh, kw)
    ConvTranspose(x, W, b)    W: (I, O/g, kh, kw)
    MatMul(x, W)              W: (.., K, N)            MatMul(W, x)       W: (.., N, K)
    Gemm(x, W, b)             alpha * op(x) @ op(W) + beta * b, op may swap the axes

W may stand behind Identity and Transpose nodes, in another scope than the node, and be shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_behind, constant_value, given, has_references, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.bias import Bias, bias_of
from onnxcomp.graph.weights.matrix_form import MatrixForm, form_at
from onnxcomp.graph.weights.roles import place_of
from onnxcomp.operators import CONVOLUTIONS, LINEAR

NOT_CONSTANT = "none of its operands is a constant"
NO_LEFT = "its constant is the left operand"

Multiply = Callable[[Any, Any], None]
"""Adds nodes that make the second tensor of the first: y = alpha * x @ W, or y = W * x."""


@dataclass(frozen=True, eq=False)
class LinearOp:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight, or a recurrent node with one of its two.

    index: position of the weight. perm: the weight's axes in the order in which the node sees them. cast: the element
    type that it is cast to on the way, None where it is not. rank: dimensions of the other operand, as far as known.
    """

    scope: Scope
    node: Node
    index: int
    weight: Constant
    perm: tuple[int, ...]
    cast: int | None = None
    rank: int | None = None

    @property
    def key(self) -> str:
        """The name by which the model knows the node."""
        return node_key(self.scope, self.node)

    @property
    def data(self) -> Any:
        """The operand that is multiplied with the weight."""
        return self.node.inputs[0 if self.index else 1]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a Conv or ConvTranspose."""
        return self.node.op in CONVOLUTIONS

    @property
    def is_direct(self) -> bool:
        """Whether the node reads the weight itself, not behind another node."""
        return self.node.inputs[self.index] is self.weight

    @property
    def is_turned(self) -> bool:
        """Whether the node sees the weight's axes in another order."""
        return self.perm != tuple(range(len(self.perm)))

    def seen(self, values: Array) -> Array:
        """An array of the weight's shape as the node sees it."""
        return values.transpose(self.perm)

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """The weight's shape as the node sees it."""
        return tuple(int(self.weight.shape[axis]) for axis in self.perm)

    # --- axes ------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> int:
        """Of a convolution's channels."""
        return int(self.node.attrs.get("group", 1)) if self.is_convolution else 1

    @property
    def channel_axis(self) -> int:
        """The output channels, as the node sees the weight; of a ConvTranspose those of one group."""
        return 1 if self.node.op == "ConvTranspose" else self._axes[0]

    @property
    def summed_axis(self) -> int:
        """The axis that is summed over, as the node sees the weight; of a Conv the input channels of one group."""
        return self._axes[1]

    @property
    def _axes(self) -> tuple[int, int]:
        _, channel, summed = place_of(self.node, self.index, len(self.perm))
        assert channel is not None and summed is not None
        return channel, summed

    @property
    def channels(self) -> int:
        """The number of output channels."""
        held = self.seen_shape[self.channel_axis]
        return held * self.groups if self.node.op == "ConvTranspose" else held

    @property
    def output_axis(self) -> int:
        """The axis of the output's channels, from the end."""
        if self.is_convolution:
            return 1 - len(self.perm)
        return -1 if self.index else -2

    @property
    def matrix_axes(self) -> tuple[int, ...]:
        """Of a product, the weight's own axes in the order (.., K, N)."""
        return (*self.perm[:-2], self.perm[self.summed_axis], self.perm[self.channel_axis])

    @property
    def form(self) -> MatrixForm | None:
        """The weight as matrices, None where it has no such form."""
        return form_at(self.node, self.index, self.perm, tuple(self.weight.shape))

    # --- what a node does beside -----------------------------------------------------------------------------

    @property
    def alpha(self) -> float:
        """What a Gemm multiplies its product with."""
        return float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def beta(self) -> float:
        """What a Gemm multiplies its bias with."""
        return float(self.node.attrs.get("beta", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def swaps_weight(self) -> bool:
        """Whether a Gemm says that it takes the weight's axes the other way round."""
        return _swaps(self.node, self.index)

    @property
    def swaps_data(self) -> bool:
        """Whether a Gemm says that it takes the other operand's axes the other way round."""
        return _swaps(self.node, 1 - self.index)

    @property
    def addend(self) -> Any | None:
        """The third input: the bias of a convolution, what a Gemm adds; None where there is none."""
        return None if self.node.op == "MatMul" else given(self.node, 2)

    def bias(self, graph: Graph) -> Bias:
        """What is added to each output channel, and by which node."""
        return bias_of(graph, self.scope, self.node)

    # --- what takes its place --------------------------------------------------------------------------------

    def replace_with(self, graph: Graph, multiply: Multiply) -> None:
        """Take the node away; ``multiply(x, y)`` adds what makes y of x with the weight alone, in the node's scope.

        What the node did beside, swapping axes of x and adding, is done by nodes of their own, and so is what turns
        a product with the weight on the left, whose ``rank`` must be known, into one with the weight on the right.
        """
        data, result, addend = self.data, self.node.outputs[0], self.addend
        graph.remove_node(self.scope, self.node)
        if not self.index:
            assert self.rank is not None
            turned = graph.variable(f"{result.name}_turned")
            multiply(self._turned(graph, data, self.rank), turned)
            graph.node(self.scope, "Transpose", [turned], [result], attrs={"perm": _swapped(self.rank)})
            return
        if self.swaps_data:
            data = self._turned(graph, data, 2)
        if addend is None:
            multiply(data, result)
            return
        plain = graph.variable(f"{result.name}_product")
        multiply(data, plain)
        wide = self._by_channel(graph, addend) if self.is_convolution else self._row(graph, addend)
        graph.node(self.scope, "Add", [plain, wide], [result])

    def _turned(self, graph: Graph, tensor: Any, rank: int) -> Any:
        """The tensor with its last two axes swapped."""
        result = graph.variable(f"{tensor.name}_turned")
        graph.node(self.scope, "Transpose", [tensor], [result], attrs={"perm": _swapped(rank)})
        return result

    def _by_channel(self, graph: Graph, bias: Any) -> Any:
        """A convolution's bias (O,) as (1, O, 1, ..)."""
        shape = [1, -1, *[1] * (len(self.perm) - 2)]
        if isinstance(bias, Constant):
            return graph.constant(self.scope, f"{bias.name}_wide", bias.values.reshape(shape))
        made = graph.variable(f"{bias.name}_wide")
        form = graph.constant(self.scope, "form", np.array(shape, np.int64))
        graph.node(self.scope, "Reshape", [bias, form], [made])
        return made

    def _row(self, graph: Graph, addend: Any) -> Any:
        """What a Gemm adds: a constant as (N,), so that ONNX Runtime fuses it, where each row gets the same."""
        values = constant_value(addend)
        if values is None:
            return addend if self.beta == 1 else self._scaled(graph, addend)
        if values.ndim < 2 or values.shape[0] == 1:
            same = np.broadcast_to(values.reshape(-1), (self.channels,))
            if self.beta == 1 and values.shape == (self.channels,):
                return addend
            values = same
        elif self.beta == 1:
            return addend
        scaled = (values * values.dtype.type(self.beta)).astype(values.dtype)
        return graph.constant(self.scope, f"{addend.name}_row", scaled)

    def _scaled(self, graph: Graph, addend: Any) -> Any:
        result = graph.variable(f"{addend.name}_scaled")
        beta = graph.constant(self.scope, "beta", np.array(self.beta, self.weight.dtype))
        graph.node(self.scope, "Mul", [addend, beta], [result])
        return result


def linear_op(scope: Scope, node: Node, *, index: int | None = None, casts: bool = False) -> LinearOp | str:
    """What a node is as a linear operator, or the reason why it is none.

    index: which operand must be the weight; else the second where that is constant. casts: see through one Cast, too.
    """
    if not is_onnx(node, *LINEAR):
        return f"{node.op} is no convolution or matrix product"
    if has_references(node):
        return "its attributes are parameters of a function"
    places = (1,) if node.op in CONVOLUTIONS else (1, 0) if index is None else (index,)
    found = next(((at, each) for at in places if (each := constant_behind(node.inputs[at], casts=casts))), None)
    if found is None:
        return NOT_CONSTANT if len(places) > 1 else "its weight is not a constant"
    rank = len(found[1].perm)
    if rank < 2 or (node.op == "Gemm" and rank != 2):
        return f"its weight has {rank} dimensions"
    return LinearOp(scope, node, found[0], found[1].constant, found[1].perm, found[1].cast)


def replaceable_op(scope: Scope, node: Node, shapes: Shapes) -> LinearOp | str:
    """A linear operator that ``replace_with`` can take away, or the reason why the node is none."""
    found = linear_op(scope, node)
    if isinstance(found, str):
        return found
    if isinstance(found.data, Constant):
        return "both its operands are constants"
    if found.index:
        return found
    rank = shapes.rank(found.data)
    if node.op == "Gemm" or len(found.perm) != 2:
        return NO_LEFT
    if rank is None or rank < 2:
        return f"{NO_LEFT}, and the right one's dimensions are not known to be two or more"
    return LinearOp(scope, node, 0, found.weight, found.perm, rank=rank)


def summed_data_axis(node: Node, index: int) -> int:
    """The axis, from the end, along which a product sums the operand that is not at ``index``."""
    is_swapped = _swaps(node, 1 - index)
    if index:  # x @ W
        return -2 if is_swapped else -1
    return -1 if is_swapped else -2


def _swaps(node: Node, index: int) -> bool:
    return node.op == "Gemm" and bool(node.attrs.get("transB" if index else "transA", 0))


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
