"""Where a linear node's bias stands, and adding to it.

Conv(x, W, b), ConvTranspose(x, W, b), Gemm(x, W, b)     the third input, made where there is none
MatMul(x, W) -> Add(b)                                   the constant that is added
MatMul(x, W) -> y                                        none: an Add can be put in
Conv(x, DQ(W), DQ(b_int32))                              integers in the unit of the accumulator
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import given, has_references, is_fixed, is_onnx, node_key, producer, sole_reader
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import set_constant, set_input
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.ir.writer import ordered
from onnxcomp.operators import LINEAR, RESHAPING

FORM = RESHAPING | {"Identity", "Transpose"}
UNTYPED = "the type of its weight is not stated"


@dataclass(frozen=True, eq=False)
class BiasPlace:
    """A linear node of the main graph and what holds its bias.

    holder: the node that reads it at ``position``; None for a MatMul without. output: the tensor that has the bias in
    it, its channels along ``axis``.
    """

    key: str
    node: Node
    scope: Scope
    holder: Node | None
    position: int
    axis: int

    @property
    def output(self) -> Any:
        """The tensor whose means the bias moves."""
        return (self.holder or self.node).outputs[0]


def bias_places(graph: Graph) -> list[BiasPlace]:
    """The bias of every Conv, ConvTranspose, Gemm and MatMul of the main graph that multiplies with a constant."""
    found = []
    for node in graph.main.graph.nodes:
        if not is_onnx(node, *LINEAR) or has_references(node) or not is_fixed(node.inputs[1]):
            continue
        key = node_key(graph.main, node)
        if node.op != "MatMul":
            found.append(BiasPlace(key, node, graph.main, node, 2, -1 if node.op == "Gemm" else 1))
            continue
        add = _bias_add(graph, node)
        position = 0 if add is not None and isinstance(add.inputs[0], Constant) else 1
        found.append(BiasPlace(key, node, graph.main, add, position, -1))
    return found


def depths(graph: Graph, nodes: Sequence[Node]) -> dict[Any, int]:
    """For every tensor that the main graph computes, the most of these nodes on a way to it, its own maker included."""
    counted = {id(each) for each in nodes}
    depth: dict[Any, int] = {}
    for node in ordered(graph.main.graph.nodes):
        before = max((depth.get(each, 0) for each in (*node.inputs, *inner_reads(node))), default=0)
        depth.update((out, before + (id(node) in counted)) for out in node.outputs)
    return depth


def known_as(graph: Graph, tensor: Any) -> list[str]:
    """The tensor's name, and that of what it is once quantized and dequantized where only that is read."""
    names = [tensor.name]
    quantize = sole_reader(graph, graph.main, tensor, "QuantizeLinear")
    restore = None if quantize is None else sole_reader(graph, graph.main, quantize.outputs[0], "DequantizeLinear")
    return names if restore is None else [*names, restore.outputs[0].name]


def add_to_bias(graph: Graph, place: BiasPlace, shift: Array, *, insert: bool = False) -> str | None:
    """Add (channels,) float64 to the bias; or the reason why it cannot be done, and then nothing is.

    insert: put an Add behind a MatMul that has none.
    """
    if place.holder is None:
        return _insert_add(graph, place, shift) if insert else "it has no bias (insert puts an Add behind it)"
    if place.node.op == "Gemm" and place.node.attrs.get("beta", 1.0) == 0:
        return "its bias counts for nothing"
    if place.node.op == "Gemm":
        shift = shift / place.node.attrs.get("beta", 1.0)
    bias = given(place.holder, place.position)
    if bias is None:
        return _give_bias(graph, place, shift)
    if isinstance(bias, Constant):
        return _add_to_constant(graph, place, bias, shift)
    maker = producer(bias)
    if (
        maker is not None
        and is_onnx(maker, "DequantizeLinear")
        and all(isinstance(each, Constant) for each in maker.inputs)
    ):
        return _add_to_integers(graph, place, maker, shift)
    return "its bias is not a constant"


def _bias_add(graph: Graph, node: Node) -> Node | None:
    """The Add of a constant that alone reads the product, one number a column or one for all."""
    add = sole_reader(graph, graph.main, node.outputs[0], "Add")
    if add is None:
        return None
    constants = [each for each in add.inputs if isinstance(each, Constant)]
    return add if len(constants) == 1 else None


def _insert_add(graph: Graph, place: BiasPlace, shift: Array) -> str | None:
    output, dtype = place.node.outputs[0], _type_of(place.node.inputs[1])
    if dtype is None:
        return UNTYPED
    values = _rounded(shift, dtype)
    if isinstance(values, str):
        return values
    raw = graph.variable(f"{output.name}_raw", dtype=dtype, shape=output.shape)
    place.node.outputs[0] = raw
    made = graph.constant(place.scope, f"{output.name}_bias", values)
    graph.node(place.scope, "Add", [raw, made], [output])
    return None


def _give_bias(graph: Graph, place: BiasPlace, shift: Array) -> str | None:
    """A bias for a node that has none, of its weight's type."""
    dtype = _type_of(place.node.inputs[1])
    if dtype is None:
        return UNTYPED
    values = _rounded(shift, dtype)
    if isinstance(values, str):
        return values
    set_input(place.node, place.position, graph.constant(place.scope, f"{place.node.outputs[0].name}_bias", values))
    return None


def _type_of(weight: Any) -> np.dtype[Any] | None:
    """The float type of a constant, decoded, reshaped or as it is; None where its maker is none of these."""
    while not isinstance(weight, Constant):
        maker = producer(weight)
        if weight.dtype is not None or maker is None or not is_onnx(maker, "DequantizeLinear", *FORM):
            return None if weight.dtype is None else np.dtype(weight.dtype)
        weight = maker.inputs[1 if maker.op == "DequantizeLinear" else 0]
    return np.dtype(weight.dtype)


def _add_to_constant(graph: Graph, place: BiasPlace, bias: Constant, shift: Array) -> str | None:
    old = np.asarray(bias.values)
    if old.ndim and old.shape[-1] not in (1, shift.size):
        return "its bias is not one number a channel"
    if old.ndim == 2 and old.shape[0] > 1 and old.shape[1] == 1:
        return "its bias differs from row to row"
    values = _rounded(old.astype(np.float64) + shift, old.dtype)
    if isinstance(values, str):
        return values
    assert place.holder is not None
    set_constant(graph, place.scope, place.holder, place.position, values)
    return None


def _add_to_integers(graph: Graph, place: BiasPlace, maker: Node, shift: Array) -> str | None:
    """Move int32 codes by the shift in their unit; the node that decodes them is made anew, others may read it."""
    codes, scale = np.asarray(maker.inputs[0].values), np.asarray(maker.inputs[1].values)
    if codes.dtype != np.int32 or codes.shape != shift.shape or scale.size not in (1, shift.size):
        return "its bias is quantized coarsely"
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(shift / scale.astype(np.float64).reshape(-1))
    moved = codes + np.where(np.isfinite(steps), steps, 0)
    if np.abs(moved).max(initial=0) >= 2**31:
        return "its bias would leave the range of its integers"
    made = graph.constant(place.scope, maker.inputs[0].name, moved.astype(np.int32))
    output = graph.variable(maker.outputs[0].name, dtype=maker.outputs[0].dtype, shape=maker.outputs[0].shape)
    inputs = [made, *maker.inputs[1:]]
    graph.node(place.scope, "DequantizeLinear", inputs, [output], attrs=dict(maker.attrs), before=place.holder)
    assert place.holder is not None
    set_input(place.holder, place.position, output)
    return None


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array | str:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(dtype)
    return rounded if np.isfinite(rounded.astype(np.float64)).all() else f"its bias would not be finite in {dtype}"
