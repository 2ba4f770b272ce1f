"""Where the bias of a linear node stands, and giving it another one.

Conv(x, W, b), ConvTranspose(x, W, b), Gemm(x, W, b)     the third input, made where there is none
MatMul(x, W) -> Add(b)                                   the constant that is added
MatMul(x, W) -> y                                        none: an Add can be put in
Conv(x, DQ(W), DQ(b_int32))                              integers in the unit of the accumulator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import (
    constant_operand,
    given,
    has_references,
    is_fixed,
    is_onnx,
    node_key,
    producer,
    sole_reader,
)
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import set_constant, set_input
from onnxcomp.operators import CONVOLUTIONS, LINEAR, RESHAPING

FORM = RESHAPING | {"Identity", "Transpose"}
UNTYPED = "the type of its weight is not stated"


@dataclass(frozen=True, eq=False)
class Bias:
    """What is added to each output channel of a linear node.

    holder: the node that reads it at ``position``, the linear one itself or the Add after a MatMul; None for a MatMul
    without.
    """

    scope: Scope
    node: Node
    holder: Node | None
    position: int

    @property
    def key(self) -> str:
        """The name by which the model knows the linear node."""
        return node_key(self.scope, self.node)

    @property
    def output(self) -> Any:
        """The tensor that has the bias in it."""
        return (self.holder or self.node).outputs[0]

    @property
    def axis(self) -> int:
        """The axis of the output's channels."""
        return 1 if self.node.op in CONVOLUTIONS else -1

    @property
    def tensor(self) -> Any | None:
        """The bias, None where it is left out."""
        return None if self.holder is None else given(self.holder, self.position)

    @property
    def name(self) -> str:
        """The bias's name, "" where it is left out."""
        return "" if self.tensor is None else str(self.tensor.name)

    def fault(self, channels: int) -> str | None:
        """Why it is not one number for each of so many channels, stated by the model or left out; None where it is."""
        if self.holder is None:
            return "no bias is added to it"
        if self.node.op == "Gemm" and (self.node.attrs.get("alpha", 1.0) != 1 or self.node.attrs.get("beta", 1.0) != 1):
            return "it scales its product or its bias"
        if self.tensor is None or is_per_channel(self.tensor, channels):
            return None
        return "its bias is not a constant of one number a channel"

    def values(self, channels: int) -> Array:
        """(channels,) float64, zeros where it is left out. It must have no ``fault``."""
        constant = self.tensor
        if constant is None:
            return np.zeros(channels)
        return np.asarray(constant.values, np.float64).reshape(-1)

    def set(self, graph: Graph, values: Array) -> None:
        """Give a node that computes in float32 a constant of its own with these values (channels,).

        The weight's type tells nothing: a shorter one may stand behind a Cast.
        """
        assert self.holder is not None
        old = self.tensor
        shape = values.shape if old is None else tuple(old.shape)
        name = f"{self.output.name}_bias" if old is None else old.name
        made = graph.constant(self.scope, name, values.astype(np.float32).reshape(shape))
        set_input(self.holder, self.position, made)

    def add(self, graph: Graph, shift: Array, *, insert: bool = False) -> str | None:
        """Add (channels,) float64 to it; or the reason why it cannot be done, and then nothing is.

        insert: put an Add behind a MatMul that has none.
        """
        if self.holder is None:
            return _insert_add(graph, self, shift) if insert else "it has no bias (insert puts an Add behind it)"
        if self.node.op == "Gemm" and self.node.attrs.get("beta", 1.0) == 0:
            return "its bias counts for nothing"
        if self.node.op == "Gemm":
            shift = shift / self.node.attrs.get("beta", 1.0)
        bias = self.tensor
        if bias is None:
            return _give_bias(graph, self, shift)
        if isinstance(bias, Constant):
            return _add_to_constant(graph, self, self.holder, shift)
        maker = producer(bias)
        decoded = maker is not None and is_onnx(maker, "DequantizeLinear")
        if maker is not None and decoded and all(isinstance(each, Constant) for each in maker.inputs):
            return _add_to_integers(graph, self, maker, shift)
        return "its bias is not a constant"


def bias_of(graph: Graph, scope: Scope, node: Node) -> Bias:
    """The bias of a Conv, ConvTranspose, Gemm or MatMul; that of a MatMul is a constant that the next node adds."""
    if node.op != "MatMul":
        return Bias(scope, node, node, 2)
    add = sole_reader(graph, scope, node.outputs[0], "Add")
    position = None if add is None else constant_operand(add)
    return Bias(scope, node, None, 1) if position is None else Bias(scope, node, add, position)


def biases(graph: Graph) -> list[Bias]:
    """The bias of every linear node of the main graph that multiplies with what is fixed."""
    return [
        bias_of(graph, graph.main, node)
        for node in graph.main.graph.nodes
        if is_onnx(node, *LINEAR) and not has_references(node) and is_fixed(node.inputs[1])
    ]


def is_per_channel(tensor: Any, channels: int) -> bool:
    """Whether the tensor is a float constant of so many numbers along its last axis."""
    if not isinstance(tensor, Constant) or not np.issubdtype(tensor.dtype, np.floating):
        return False
    return tensor.size == channels and bool(tensor.shape) and tensor.shape[-1] == channels


def rounded_to(values: Array, dtype: np.dtype[Any]) -> Array | None:
    """The values in a shorter type, None where they are not finite in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(dtype)
    return rounded if np.isfinite(rounded.astype(np.float64)).all() else None


def _insert_add(graph: Graph, bias: Bias, shift: Array) -> str | None:
    output, dtype = bias.node.outputs[0], _type_of(bias.node.inputs[1])
    if dtype is None:
        return UNTYPED
    values = rounded_to(shift, dtype)
    if values is None:
        return _not_finite(dtype)
    raw = graph.variable(f"{output.name}_raw", dtype=dtype, shape=output.shape)
    bias.node.outputs[0] = raw
    made = graph.constant(bias.scope, f"{output.name}_bias", values)
    graph.node(bias.scope, "Add", [raw, made], [output])
    return None


def _give_bias(graph: Graph, bias: Bias, shift: Array) -> str | None:
    """A bias for a node that has none, of its weight's type."""
    dtype = _type_of(bias.node.inputs[1])
    if dtype is None:
        return UNTYPED
    values = rounded_to(shift, dtype)
    if values is None:
        return _not_finite(dtype)
    set_input(bias.node, bias.position, graph.constant(bias.scope, f"{bias.node.outputs[0].name}_bias", values))
    return None


def _type_of(weight: Any) -> np.dtype[Any] | None:
    """The float type of a constant, decoded, reshaped or as it is; None where its maker is none of these."""
    while not isinstance(weight, Constant):
        maker = producer(weight)
        if weight.dtype is not None or maker is None or not is_onnx(maker, "DequantizeLinear", *FORM):
            return None if weight.dtype is None else np.dtype(weight.dtype)
        weight = maker.inputs[1 if maker.op == "DequantizeLinear" else 0]
    return np.dtype(weight.dtype)


def _add_to_constant(graph: Graph, bias: Bias, holder: Node, shift: Array) -> str | None:
    old = np.asarray(holder.inputs[bias.position].values)
    if old.ndim and old.shape[-1] not in (1, shift.size):
        return "its bias is not one number a channel"
    if old.ndim == 2 and old.shape[0] > 1 and old.shape[1] == 1:
        return "its bias differs from row to row"
    values = rounded_to(old.astype(np.float64) + shift, old.dtype)
    if values is None:
        return _not_finite(old.dtype)
    set_constant(graph, bias.scope, holder, bias.position, values)
    return None


def _add_to_integers(graph: Graph, bias: Bias, maker: Node, shift: Array) -> str | None:
    """Move int32 codes by the shift in their unit; the node that decodes them is made anew, others may read it."""
    codes, scale = np.asarray(maker.inputs[0].values), np.asarray(maker.inputs[1].values)
    if codes.dtype != np.int32 or codes.shape != shift.shape or scale.size not in (1, shift.size):
        return "its bias is quantized coarsely"
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(shift / scale.astype(np.float64).reshape(-1))
    moved = codes + np.where(np.isfinite(steps), steps, 0)
    if np.abs(moved).max(initial=0) >= 2**31:
        return "its bias would leave the range of its integers"
    made = graph.constant(bias.scope, maker.inputs[0].name, moved.astype(np.int32))
    output = graph.variable(maker.outputs[0].name, dtype=maker.outputs[0].dtype, shape=maker.outputs[0].shape)
    inputs = [made, *maker.inputs[1:]]
    graph.node(bias.scope, "DequantizeLinear", inputs, [output], attrs=dict(maker.attrs), before=bias.holder)
    assert bias.holder is not None
    set_input(bias.holder, bias.position, output)
    return None


def _not_finite(dtype: np.dtype[Any]) -> str:
    return f"its bias would not be finite in {dtype}"
