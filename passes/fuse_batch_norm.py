"""What scales and shifts each channel of a linear operator's output goes into its weights.

    y = (W x + b) * f + s        becomes        y = (f W) x + (f b + s)

for BatchNormalization at inference, f = scale / sqrt(var + epsilon), s = B - mean f, and for Mul, Add, Sub
and Div by a constant per channel, after Conv, ConvTranspose, Gemm and (BatchNormalization) MatMul. Computed
in float64 and rounded once to the weight's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import SparseTensorProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, Structure
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.provenance import Origin
from onnxcomp.graph.ir.query import (
    constant_value,
    given,
    has_one_reader,
    has_references,
    is_onnx,
    node_key,
    producer,
    trains,
)
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import bypass
from onnxcomp.graph.ir.writer import ordered
from onnxcomp.operators import CONVOLUTIONS, LINEAR
from onnxcomp.tensors import FLOAT_TYPES

ELEMENTWISE = ("Mul", "Add", "Sub", "Div")


class CannotFuse(Exception):
    """Why a node stays; never leaves this module."""


@dataclass(frozen=True, kw_only=True)
class FuseBatchNorm(Pass):
    """Fuse BatchNormalization, and constant scales and shifts, into the weights before it."""

    effect = Effect(shrinks=("bytes", "latency", "load"), exact=Exact.OUTPUTS, rounding=True)
    destroys = frozenset({Structure.LEVELS})

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        shapes = infer_shapes(graph)
        for scope in graph.scopes:
            for node in ordered(scope.graph.nodes):
                if is_onnx(node, "BatchNormalization", *ELEMENTWISE) and node.outputs:
                    _fuse_or_say_why(graph, scope, node, shapes, context, outcome)
        return outcome


def _fuse_or_say_why(
    graph: Graph, scope: Scope, node: Node, shapes: Shapes, context: Context, outcome: Outcome
) -> None:
    key = node_key(scope, node)
    try:
        host = _host_of(graph, scope, node, shapes)
        if not context.selects(key, node_key(scope, host.node), host.weight_key):
            return
        factor, shift = _affine_of(node, host, shapes)
        result = scope.key(node.outputs[0].name)
        _fuse(graph, scope, node, host, factor, shift)
    except CannotFuse as reason:
        if node.op == "BatchNormalization":
            outcome.skip(key, str(reason))
        return
    for other in {host.weight_key, scope.key(host.node.outputs[0].name)} - {result}:
        outcome.origins[other] = Origin(None)
    outcome.change(key, f"fused {node.op} into {host.node.op}", weight=host.weight_key)


@dataclass(frozen=True, eq=False)
class _Host:
    """A linear node that the affine one follows, with nothing else reading in between.

    add: the node that adds the bias of a MatMul, None for others or without bias.
    rank: of its output; 0 where it is not known. axis: of its channels, from the end.
    """

    node: Node
    weight: Constant
    weight_key: str
    channels: int
    axis: int
    rank: int
    add: Node | None = None


def _host_of(graph: Graph, scope: Scope, node: Node, shapes: Shapes) -> _Host:
    position = 1 if node.op in ("Mul", "Add") and constant_value(node.inputs[1]) is None else 0
    maker = _sole_maker(graph, scope, node.inputs[position])
    add = None
    if is_onnx(maker, "Add") and node.op == "BatchNormalization":
        position = 1 if constant_value(maker.inputs[1]) is None else 0
        add, maker = maker, _sole_maker(graph, scope, maker.inputs[position])
        if maker.op != "MatMul":
            raise CannotFuse("an Add stands between it and the weights")
    linear = is_onnx(maker, *LINEAR)
    if not linear or (maker.op == "MatMul" and node.op != "BatchNormalization"):
        raise CannotFuse(f"it follows {maker.op}, not a convolution or matrix product")
    if has_references(maker) or has_references(node):
        raise CannotFuse("an attribute is a parameter of the function around it")
    weight = maker.inputs[1]
    if not isinstance(weight, Constant):
        raise CannotFuse(f"the weight of the {maker.op} before it is not a constant")
    if weight.data_type not in FLOAT_TYPES or len(weight.shape) < 2:
        raise CannotFuse(f"the weight of the {maker.op} before it is no float matrix or kernel")
    if not has_one_reader(graph, weight):
        raise CannotFuse("the weight has other readers")
    if isinstance(weight.origin, SparseTensorProto):
        raise CannotFuse("the weight is stored as a sparse tensor, which would become a dense one")
    axis, channels = _channels(maker, weight)
    rank = len(weight.shape) if maker.op in CONVOLUTIONS else (shapes.rank(maker.outputs[0]) or 0)
    rank = 2 if maker.op == "Gemm" else rank
    return _Host(maker, weight, graph.scope_of(weight).key(weight.name), channels, axis, rank, add)


def _sole_maker(graph: Graph, scope: Scope, tensor: Any) -> Node:
    """The node of this scope that computes the tensor for one reader only."""
    maker = producer(tensor)
    if maker is None or not scope.graph.holds(maker):
        raise CannotFuse("no node of the same graph stands before it")
    if not has_one_reader(graph, tensor):
        raise CannotFuse(f"the output of the {maker.op} before it has other readers")
    return maker


def _channels(maker: Node, weight: Constant) -> tuple[int, int]:
    """The output's channel axis, counted from the end, and the number of channels."""
    shape = weight.shape
    if maker.op == "Conv":
        return 1 - len(shape), shape[0]
    if maker.op == "ConvTranspose":
        return 1 - len(shape), shape[1] * maker.attrs.get("group", 1)
    if maker.op == "Gemm":
        return -1, shape[0] if maker.attrs.get("transB", 0) else shape[1]
    return -1, shape[-1]


# --- what the node does to each channel ----------------------------------------------------------------


def _affine_of(node: Node, host: _Host, shapes: Shapes) -> tuple[Array, Array]:
    """Factor and shift of each channel: (channels,) float64 each."""
    if node.op == "BatchNormalization":
        return _batch_norm(node, host)
    position = 1 if isinstance(node.inputs[1], Constant) else 0
    values = constant_value(node.inputs[position])
    if values is None or values.dtype == object or (position == 0 and node.op in ("Sub", "Div")):
        raise CannotFuse("it is no scale or shift by a constant")
    one, zero = np.ones(host.channels), np.zeros(host.channels)
    each = _per_channel(values.astype(np.float64), host)
    with np.errstate(divide="ignore"):
        pairs = {"Mul": (each, zero), "Div": (1 / each, zero), "Add": (one, each), "Sub": (one, -each)}
    return pairs[node.op]


def _batch_norm(node: Node, host: _Host) -> tuple[Array, Array]:
    if trains(node):
        raise CannotFuse("it is in training mode")
    if node.attrs.get("spatial", 1) != 1:  # an attribute of opset 7 and 8
        raise CannotFuse("it normalizes each position by itself")
    if host.node.op not in CONVOLUTIONS and host.rank != 2:
        raise CannotFuse("its channels are not the columns of the matrix product")
    read = [constant_value(given(node, index)) for index in range(1, 5)]
    known = [each.astype(np.float64) for each in read if each is not None]
    if len(known) < 4 or any(each.shape != (host.channels,) for each in known):
        raise CannotFuse("its parameters are not constants of one value a channel")
    scale, bias, mean, variance = known
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return factor, bias - mean * factor


def _per_channel(values: Array, host: _Host) -> Array:
    """A constant that is broadcast to the output, as one value a channel."""
    if values.ndim > host.rank:
        raise CannotFuse("the constant has more dimensions than the output")
    shape = (1,) * (host.rank - values.ndim) + values.shape
    expected = [1] * host.rank
    expected[host.axis] = shape[host.axis]
    if list(shape) != expected or shape[host.axis] not in (1, host.channels):
        raise CannotFuse("the constant is not one value a channel")
    return np.broadcast_to(values.reshape(-1), (host.channels,)).copy()


# --- into the weights ----------------------------------------------------------------------------------


def _fuse(graph: Graph, scope: Scope, node: Node, host: _Host, factor: Array, shift: Array) -> None:
    bias_holder, position = (host.add, _constant_position(host.add)) if host.add else (host.node, 2)
    bias = given(bias_holder, position)
    if bias is not None and not isinstance(bias, Constant):
        raise CannotFuse("the bias before it is not a constant")
    if bias is not None and tuple(bias.shape)[-1:] not in ((), (1,), (host.channels,)):
        raise CannotFuse("the bias before it is not one value a channel")
    weight = host.weight.values
    scaled = _rounded(_scaled(host, weight.astype(np.float64), factor), weight.dtype)
    shifted = _rounded(_shifted(host, bias, factor, shift), weight.dtype)
    if np.any(factor != 1):
        host.weight.values = scaled
        encoding = graph.encodings.get(host.weight_key)
        if encoding is not None and encoding.encode(scaled) is None:
            del graph.encodings[host.weight_key]
    if bias is None and not np.any(shifted):
        bypass(graph, scope, node, node.inputs[0] if producer(node.inputs[0]) is host.node else node.inputs[1])
        return
    made = _bias_constant(graph, scope, host, bias, shifted)
    if host.node.op == "MatMul" and host.add is None:
        output = node.outputs[0]
        graph.node(scope, "Add", [host.node.outputs[0], made], [output], name=node.name, before=node)
        del output.inputs[0]
        graph.remove_node(scope, node)
        return
    _set_input(bias_holder, position, made)
    if host.node.op == "Gemm":
        host.node.attrs["beta"] = 1.0
    last = bias_holder.outputs[0]
    bypass(graph, scope, node, last)


def _constant_position(add: Node) -> int:
    return 1 if isinstance(add.inputs[1], Constant) else 0


def _scaled(host: _Host, weight: Array, factor: Array) -> Array:
    """The weight with each output channel times its factor."""
    if host.node.op == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if host.node.op == "ConvTranspose":  # (inputs, outputs of a group, ...), the inputs group by group
        groups = host.node.attrs.get("group", 1)
        split = weight.reshape(groups, -1, *weight.shape[1:])
        return (split * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    if host.node.op == "Gemm" and host.node.attrs.get("transB", 0):
        return weight * factor[:, None]
    return weight * factor


def _shifted(host: _Host, bias: Constant | None, factor: Array, shift: Array) -> Array:
    """The new bias; that of a Gemm or a MatMul keeps what it is broadcast along."""
    if bias is None:
        return shift
    values = bias.values.astype(np.float64)
    if host.node.op == "Gemm":
        values = values * host.node.attrs.get("beta", 1.0)
    if host.node.op == "MatMul":
        values = _per_channel(values, host)
    return values * factor + shift


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(dtype)
    if not np.all(np.isfinite(rounded.astype(np.float64))):
        raise CannotFuse(f"the fused weights are not finite in {dtype}")
    return rounded


def _bias_constant(graph: Graph, scope: Scope, host: _Host, bias: Constant | None, values: Array) -> Constant:
    """The old bias with new values where nothing else reads it, else a new constant."""
    own = bias is not None and len(bias.outputs) == 1 and not graph.is_output(bias)
    if bias is not None and own and tuple(bias.shape) == values.shape and bias.dtype == values.dtype:
        bias.values = values
        graph.encodings.pop(graph.scope_of(bias).key(bias.name), None)
        return bias
    return graph.constant(scope, bias.name if bias is not None else f"{host.weight.name}_bias", values)


def _set_input(node: Node, position: int, tensor: Constant) -> None:
    if position < len(node.inputs):
        node.inputs[position] = tensor
    else:
        node.inputs.append(tensor)
