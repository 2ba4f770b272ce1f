"""Blocks with subgraphs: If, Loop and Scan, reading weights of the outer scope and holding their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxcomp.testing.models.building import Builder, Value, block
from onnxcomp.testing.models.convolutions import conv
from onnxcomp.testing.models.linear import matmul
from onnxcomp.testing.models.storage import random_weight

Body = Callable[[Builder, Value], Value]


def _condition(b: Builder, x: Value) -> str:
    """A boolean: an input, a constant (foldable), or computed from the data."""
    kind = b.choice(["input", "constant", "computed"])
    if kind == "input":
        name = b.name("condition")
        scope = b
        while scope.outer is not None:
            scope = scope.outer
        scope.inputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, b.choice([[], [1]])))
        return name
    if kind == "constant":
        return b.constant(b.integer(0, 1), np.bool_)
    largest = b.node("ReduceMax", [x.name], keepdims=0)  # far from the bound, so rounding cannot flip it
    return b.node("Greater", [largest, b.constant(b.choice([-1e6, 1e6]), np.float32)])


def _if(b: Builder, x: Value, bodies: tuple[Body, Body]) -> Value:
    condition = _condition(b, x)
    graphs = []
    for body, stem in zip(bodies, ("then", "else"), strict=True):
        inner = b.subgraph()
        y = body(inner, x)
        if not inner.nodes or y.name == x.name:
            y = Value(inner.node("Identity", [y.name]), y.shape)
        graphs.append(inner.graph(b.name(stem), [b.declare(y)]))
        shape = y.shape
    return Value(b.node("If", [condition], then_branch=graphs[0], else_branch=graphs[1]), shape)


@block(ranks=(2, 3), nests=True, grows=True)
def if_linear(b: Builder, x: Value) -> Value:
    """One branch multiplies by a weight of the outer scope, the other by one of its own."""
    depth, columns = x.shape[-1], b.choice([8, 40])
    outer = random_weight(b, (depth, columns), fan_in=depth)

    def captured(inner: Builder, value: Value) -> Value:
        return Value(inner.node("MatMul", [value.name, outer]), (*value.shape[:-1], columns))

    def own(inner: Builder, value: Value) -> Value:
        y = matmul(inner, value, columns=columns)
        return Value(inner.node("Add", [y.name, random_weight(inner, (columns,), fan_in=4)]), y.shape)

    if b.chance(40):  # the main graph reads it too
        first = captured(b, x)
        second = _if(b, x, (captured, own))
        return Value(b.node("Add", [first.name, second.name]), first.shape)
    return _if(b, x, b.choice([(captured, own), (own, captured), (own, own)]))


@block(ranks=(3, 4), nests=True, grows=True)
def if_convolution(b: Builder, x: Value) -> Value:
    def branch(inner: Builder, value: Value) -> Value:
        return conv(inner, value, out_channels=4, same=True)

    def nested(inner: Builder, value: Value) -> Value:
        return _if(inner, value, (branch, branch))

    return _if(b, x, b.choice([(branch, branch), (branch, nested)]))


@block(nests=True)
def if_identity(b: Builder, x: Value) -> Value:
    """A branch that only passes an outer value on, and one that computes."""

    def passes_on(inner: Builder, value: Value) -> Value:
        return value

    def computes(inner: Builder, value: Value) -> Value:
        return Value(inner.node("Tanh", [value.name]), value.shape)

    return _if(b, x, (passes_on, computes))


@block(ranks=(2, 3), nests=True)
def loop(b: Builder, x: Value) -> Value:
    """Loop two or three times over x = Tanh(x @ outer weight @ own weight), a scan output left unread."""
    depth = x.shape[-1]
    outer = random_weight(b, (depth, depth), fan_in=depth)
    body = b.subgraph()
    counter, keep, carried = b.name("iteration"), b.name("keep"), b.name("carried")
    body.inputs += [
        helper.make_tensor_value_info(counter, TensorProto.INT64, []),
        helper.make_tensor_value_info(keep, TensorProto.BOOL, []),
        b.declare(Value(carried, x.shape)),
    ]
    y = body.node("MatMul", [carried, outer])
    if body.may_hold_initializers or b.opset >= 9:
        y = body.node("MatMul", [y, random_weight(body, (depth, depth), fan_in=depth)])
    y = body.node("Tanh", [y])
    going = body.node("Identity", [keep])
    outputs = [helper.make_tensor_value_info(going, TensorProto.BOOL, []), b.declare(Value(y, x.shape))]
    scanned = b.chance(40)
    if scanned:
        outputs.append(b.declare(Value(body.node("Neg", [y]), x.shape)))
    graph = body.graph(b.name("body"), outputs)
    trips, condition = b.constant(b.integer(2, 3)), b.constant(True, np.bool_)
    result = b.nodes_out("Loop", [trips, condition, x.name], 2 if scanned else 1, body=graph)
    return Value(result[0], x.shape)


@block(ranks=(3,), nests=True)
def scan(b: Builder, x: Value) -> Value:
    """Scan the time axis with a recurrent state: s = Tanh(x_t @ own + s)."""
    batch, time, features = x.shape
    if b.opset >= 18:
        start = b.node("ReduceMean", [x.name, b.constant([1])], keepdims=0)
    else:
        start = b.node("ReduceMean", [x.name], axes=[1], keepdims=0)
    body = b.subgraph()
    state, step = b.name("state"), b.name("step")
    body.inputs += [b.declare(Value(state, (batch, features))), b.declare(Value(step, (batch, features)))]
    product = body.node("MatMul", [step, random_weight(body, (features, features), fan_in=features)])
    after = body.node("Tanh", [body.node("Add", [product, state])])
    shown = body.node("Identity", [after])
    graph = body.graph(b.name("body"), [b.declare(Value(name, (batch, features))) for name in (after, shown)])
    attributes: dict[str, Any] = {"scan_input_axes": [1], "scan_output_axes": [1]}
    result = b.nodes_out("Scan", [start, x.name], 2, body=graph, num_scan_inputs=1, **attributes)
    return Value(result[1], (batch, time, features))
