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
from onnxcomp.graph.ir.query import (
    constant_key,
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
from onnxcomp.graph.ir.rewire import bypass, set_constant, set_input
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.provenance import Origin
from onnxcomp.graph.weights.bias import Bias, rounded_to
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op
from onnxcomp.graph.weights.matrix_form import MatrixForm
from onnxcomp.operators import LINEAR
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
    for other in {host.weight_key, scope.key(host.node.outputs[0].name), *_bias_key(graph, host)} - {result}:
        outcome.origins[other] = Origin(None)
    outcome.change(key, f"fused {node.op} into {host.node.op}", weight=host.weight_key)


@dataclass(frozen=True, eq=False)
class _Host:
    """A linear operator that the affine node follows, with nothing else reading in between.

    rank: of its output; 0 where it is not known.
    """

    op: LinearOp
    bias: Bias
    weight_key: str
    form: MatrixForm
    rank: int

    @property
    def node(self) -> Node:
        return self.op.node

    @property
    def channels(self) -> int:
        return self.op.channels


def _host_of(graph: Graph, scope: Scope, node: Node, shapes: Shapes) -> _Host:
    position = 1 if node.op in ("Mul", "Add") and constant_value(node.inputs[1]) is None else 0
    maker = _sole_maker(graph, scope, node.inputs[position])
    add = None
    if is_onnx(maker, "Add") and node.op == "BatchNormalization":
        position = 1 if constant_value(maker.inputs[1]) is None else 0
        add, maker = maker, _sole_maker(graph, scope, maker.inputs[position])
        if maker.op != "MatMul":
            raise CannotFuse("an Add stands between it and the weights")
    if not is_onnx(maker, *LINEAR) or (maker.op == "MatMul" and node.op != "BatchNormalization"):
        raise CannotFuse(f"it follows {maker.op}, not a convolution or matrix product")
    if has_references(node):
        raise CannotFuse("an attribute is a parameter of the function around it")
    found = linear_op(scope, maker, index=1)
    if isinstance(found, str) or not found.is_direct:
        reason = found if isinstance(found, str) else "its weight is not a constant"
        raise CannotFuse(f"the {maker.op} before it cannot be scaled: {reason}")
    weight, form = found.weight, found.form
    if weight.data_type not in FLOAT_TYPES or form is None:
        raise CannotFuse(f"the weight of the {maker.op} before it is no float matrix or kernel")
    if not has_one_reader(graph, weight):
        raise CannotFuse("the weight has other readers")
    if isinstance(weight.origin, SparseTensorProto):
        raise CannotFuse("the weight is stored as a sparse tensor, which would become a dense one")
    bias = found.bias(graph)
    if add is not None and bias.holder is not add:
        raise CannotFuse("the bias before it is not a constant")
    return _Host(found, bias, constant_key(graph, weight), form, _rank(found, shapes))


def _sole_maker(graph: Graph, scope: Scope, tensor: Any) -> Node:
    """The node of this scope that computes the tensor for one reader only."""
    maker = producer(tensor)
    if maker is None or not scope.graph.holds(maker):
        raise CannotFuse("no node of the same graph stands before it")
    if not has_one_reader(graph, tensor):
        raise CannotFuse(f"the output of the {maker.op} before it has other readers")
    return maker


def _rank(op: LinearOp, shapes: Shapes) -> int:
    """The number of the output's dimensions, 0 where it is not known."""
    if op.is_convolution:
        return len(op.perm)
    return 2 if op.node.op == "Gemm" else shapes.rank(op.node.outputs[0]) or 0


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
    if not host.op.is_convolution and host.rank != 2:
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
    axis, shape = host.op.output_axis, (1,) * (host.rank - values.ndim) + values.shape
    expected = [1] * host.rank
    expected[axis] = shape[axis]
    if list(shape) != expected or shape[axis] not in (1, host.channels):
        raise CannotFuse("the constant is not one value a channel")
    return np.broadcast_to(values.reshape(-1), (host.channels,)).copy()


# --- into the weights ----------------------------------------------------------------------------------


def _fuse(graph: Graph, scope: Scope, node: Node, host: _Host, factor: Array, shift: Array) -> None:
    bias, weight = host.bias.tensor, host.op.weight
    if bias is not None and not isinstance(bias, Constant):
        raise CannotFuse("the bias before it is not a constant")
    if bias is not None and tuple(bias.shape)[-1:] not in ((), (1,), (host.channels,)):
        raise CannotFuse("the bias before it is not one value a channel")
    scaled = _rounded(_scaled(host, weight.values.astype(np.float64), factor), weight.dtype)
    shifted = _rounded(_shifted(host, bias, factor, shift), weight.dtype)
    if np.any(factor != 1):
        weight.values = scaled
        encoding = graph.encodings.get(host.weight_key)
        if encoding is not None and encoding.encode(scaled) is None:
            del graph.encodings[host.weight_key]
    if bias is None and not np.any(shifted):
        bypass(graph, scope, node, node.inputs[0] if producer(node.inputs[0]) is host.node else node.inputs[1])
        return
    _put_bias(graph, host, node, shifted)


def _bias_key(graph: Graph, host: _Host) -> list[str]:
    """The key of the bias that was there and holds the shifted values now, if it does."""
    bias, holder = host.bias.tensor, host.bias.holder
    if not isinstance(bias, Constant) or holder is None or holder.inputs[host.bias.position] is not bias:
        return []
    return [graph.scope_of(bias).key(bias.name)]


def _put_bias(graph: Graph, host: _Host, node: Node, shifted: Array) -> None:
    """Let the operator, and an Add after a MatMul, do what the affine node did."""
    scope, bias = host.op.scope, host.bias
    if bias.tensor is None:
        made = graph.constant(scope, f"{host.op.weight.name}_bias", shifted)
        if bias.holder is None:
            output = node.outputs[0]
            graph.node(scope, "Add", [host.node.outputs[0], made], [output], name=node.name, before=node)
            del output.inputs[0]
            graph.remove_node(scope, node)
            return
        set_input(bias.holder, bias.position, made)
    else:
        assert bias.holder is not None
        set_constant(graph, scope, bias.holder, bias.position, shifted)
    if host.node.op == "Gemm":
        host.node.attrs["beta"] = 1.0
    bypass(graph, scope, node, bias.output)


def _scaled(host: _Host, weight: Array, factor: Array) -> Array:
    """The weight with each output channel times its factor."""
    return host.form.unpack(host.form.pack(weight) * factor.reshape(host.form.groups, -1, 1))


def _shifted(host: _Host, bias: Constant | None, factor: Array, shift: Array) -> Array:
    """The new bias; that of a Gemm or a MatMul keeps what it is broadcast along."""
    if bias is None:
        return shift
    values = bias.values.astype(np.float64) * host.op.beta
    if host.node.op == "MatMul":
        values = _per_channel(values, host)
    return values * factor + shift


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    rounded = rounded_to(values, dtype)
    if rounded is None:
        raise CannotFuse(f"the fused weights are not finite in {dtype}")
    return rounded
