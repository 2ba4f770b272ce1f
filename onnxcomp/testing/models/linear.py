"""Blocks of Gemm, MatMul, Einsum, attention and embedding tables, the weight wherever it can stand."""

from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcomp.testing.models.building import BATCH, FUNCTION_DOMAIN, LAST_QDQ_OPSET, MICROSOFT, Builder, Value, block
from onnxcomp.testing.models.convolutions import batch_normalization
from onnxcomp.testing.models.functions import dense_function
from onnxcomp.testing.models.storage import random_weight, weight

WIDTHS = [8, 1, 4, 16, 32, 48]
VOCABULARY = 4  # index inputs are drawn below this by `feeds_for`, so every table has at least as many rows


def flattened(b: Builder, x: Value) -> Value:
    """Return `x` as (batch, features)."""
    if x.rank == 2:
        return x
    if b.chance(50):
        return Value(b.node("Flatten", [x.name], axis=1), (x.shape[0], x.sample_size))
    return b.reshape(x, [x.sample_size])


def _gemm_bias(b: Builder, rows: int, columns: int) -> list[str]:
    """Choose C: left out, or one of the shapes that broadcast to (rows, columns)."""
    shapes: list[tuple[int, ...]] = [(columns,), (1, columns), (1,), (), (1, 1)]
    if not b.state.symbolic_batch:
        shapes += [(rows, 1), (rows, columns)]
    if b.opset >= 11 and b.chance(30):
        return []
    return [random_weight(b, b.choice(shapes), fan_in=4)]


def gemm(b: Builder, x: Value, *, columns: int | None = None) -> Value:
    """Append a Gemm to a (batch, features) value, the weight right or left, either operand transposed."""
    columns = b.choice(WIDTHS) if columns is None else columns
    rows, depth = x.shape
    attributes: dict[str, Any] = {}
    if b.chance(25):
        attributes["alpha"] = 0.5
    if b.chance(25):
        attributes["beta"] = 1.5
    trans_a, trans_b = b.choice([0, 0, 1]), b.choice([0, 1])
    if trans_a or b.chance(30):
        attributes["transA"] = trans_a
    if trans_b or b.chance(30):
        attributes["transB"] = trans_b
    if b.chance(20):  # weight left: (columns, depth) x (depth, rows), with C along the other axis
        left = random_weight(b, (depth, columns) if trans_a else (columns, depth), fan_in=depth)
        right = x.name if trans_b else b.transpose(x, [1, 0]).name
        bias = [random_weight(b, (columns, 1), fan_in=4)] if b.opset < 11 or b.chance(50) else []
        return b.transpose(Value(b.node("Gemm", [left, right, *bias], **attributes), (columns, rows)), [1, 0])
    left = b.transpose(x, [1, 0]).name if trans_a else x.name
    right = random_weight(b, (columns, depth) if trans_b else (depth, columns), fan_in=depth)
    return Value(b.node("Gemm", [left, right, *_gemm_bias(b, rows, columns)], **attributes), (rows, columns))


def matmul(b: Builder, x: Value, *, columns: int | None = None) -> Value:
    """Append a MatMul whose right operand is a weight: a matrix, a vector or a batch of matrices."""
    columns = b.choice(WIDTHS) if columns is None else columns
    depth = x.shape[-1]
    form = b.choice(["matrix", "matrix", "leading_one", "batched"])
    if form == "leading_one" and x.rank >= 3:
        shape: tuple[int, ...] = (1, depth, columns)
    elif form == "batched" and x.rank >= 4:
        shape = (x.shape[-3], depth, columns)
    elif form == "batched" and x.rank == 3 and not b.state.symbolic_batch:
        shape = (BATCH, depth, columns)
    else:
        shape = (depth, columns)
    return Value(b.node("MatMul", [x.name, random_weight(b, shape, fan_in=depth)]), (*x.shape[:-1], columns))


@block(ranks=(2,), grows=True)
def linear_gemm(b: Builder, x: Value) -> Value:
    return gemm(b, x)


@block(ranks=(2, 3, 4, 5), grows=True)
def linear_matmul(b: Builder, x: Value) -> Value:
    y = matmul(b, x)
    if b.chance(50):
        bias = random_weight(b, (y.shape[-1],), fan_in=4)
        y = Value(b.node("Add", [y.name, bias] if b.chance(70) else [bias, y.name]), y.shape)
    return y


@block(ranks=(3, 4, 5), grows=True)
def left_matmul(b: Builder, x: Value) -> Value:
    """A weight on the left mixes the last axis but one: W @ x."""
    rows, depth = b.choice(WIDTHS[:4]), x.shape[-2]
    shape = b.choice([(rows, depth), (1, rows, depth)])
    y = b.node("MatMul", [random_weight(b, shape, fan_in=depth), x.name])
    return Value(y, (*x.shape[:-2], rows, x.shape[-1]))


@block(ranks=(2, 3, 4))
def vector_matmul(b: Builder, x: Value) -> Value:
    """A one-dimensional weight drops the last axis, which is put back.

    Tanh keeps a Transpose away: ONNX Runtime 1.31 fuses that with a MatMul by a vector into wrong results.
    """
    x = Value(b.node("Tanh", [x.name]), x.shape)
    vector = random_weight(b, (x.shape[-1],), fan_in=x.shape[-1])
    y = Value(b.node("MatMul", [x.name, vector]), x.shape[:-1])
    return b.reshape(y, [*y.shape[1:], 1])


@block(ranks=(2, 3, 4, 5), grows=True)
def large_linear(b: Builder, x: Value) -> Value:
    """Flatten, then weights of more than 1024 elements with an activation between."""
    x = flattened(b, x)
    y = b.choice([gemm, matmul])(b, x, columns=48)
    y = Value(b.node(b.choice(["Relu", "Tanh", "Sigmoid"]), [y.name]), y.shape)
    return b.choice([gemm, matmul])(b, y, columns=b.choice([32, 24]))


@block(ranks=(2,), grows=True)
def gemm_batchnorm(b: Builder, x: Value) -> Value:
    return batch_normalization(b, gemm(b, x))


@block(ranks=(2, 3))
def residual_linear(b: Builder, x: Value) -> Value:
    y = matmul(b, x, columns=b.choice([16, 32]))
    y = matmul(b, Value(b.node("Relu", [y.name]), y.shape), columns=x.shape[-1])
    return Value(b.node("Add", [y.name, x.name]), x.shape)


@block(ranks=(2,))
def shared_roles(b: Builder, x: Value) -> Value:
    """One square matrix read by MatMul, by Gemm transposed, and by Mul."""
    size = x.shape[1]
    shared = random_weight(b, (size, size), fan_in=size)
    y = b.node("MatMul", [x.name, shared])
    bias = [random_weight(b, (size,), fan_in=4)] if b.opset < 11 or b.chance(50) else []
    y = b.node("Gemm", [b.node("Tanh", [y]), shared, *bias], transB=1)
    axes: dict[str, Any] = {"axes": [0]} if b.opset < 18 else {}
    mean = b.node("ReduceMean", [shared, *([] if axes else [b.constant([0])])], keepdims=1, **axes)
    return Value(b.node("Mul", [y, mean]), x.shape)


@block(ranks=(2, 3, 4, 5), grows=True)
def tied_embedding(b: Builder, x: Value) -> Value:
    """A table read by Gather and, transposed, by the MatMul that scores against it."""
    x = flattened(b, x)
    rows, width = b.choice([VOCABULARY, 40]), b.choice([8, 32])
    table = random_weight(b, (rows, width), fan_in=width)
    y = matmul(b, x, columns=width)
    found = b.node("Gather", [table, b.constant(b.integer(0, rows - 1))], axis=0)
    y = Value(b.node("Add", [y.name, found]), y.shape)
    return Value(b.node("MatMul", [y.name, b.node("Transpose", [table], perm=[1, 0])]), (x.shape[0], rows))


@block(ranks=(2, 3), grows=True)
def embedding(b: Builder, x: Value) -> Value:
    """Add the rows of a table that an integer input of the graph picks."""
    rows, width = b.choice([VOCABULARY, 50]), x.shape[-1]
    indices = b.input(x.shape[:-1], b.choice([TensorProto.INT64, TensorProto.INT32]), stem="indices")
    along = b.choice([0, 0, 1])
    if along == 0:
        found = b.node("Gather", [random_weight(b, (rows, width), fan_in=4), indices.name])
    else:  # table (width, rows): the picked axis comes last and moves behind the indices
        found = b.node("Gather", [random_weight(b, (width, rows), fan_in=4), indices.name], axis=1)
        found = b.node("Transpose", [found], perm=[*range(1, x.rank), 0])
    return Value(b.node("Add", [x.name, found]), x.shape)


@block(ranks=(3,), grows=True)
def attention(b: Builder, x: Value) -> Value:
    """Multi-head self-attention out of MatMul, Reshape, Transpose and Softmax."""
    batch, time, width = x.shape
    heads, size = b.choice([(2, 4), (1, 8), (4, 4)])
    is_plain = b.may_hold_initializers and b.chance(50)

    def project(perm: list[int]) -> Value:
        if is_plain:
            weight = b.initializer(b.normal((width, heads * size), scale=width**-0.5))
            y = Value(b.node("MatMul", [x.name, weight]), (batch, time, heads * size))
            return b.transpose(b.reshape(y, [time, heads, size]), perm)
        y = matmul(b, x, columns=heads * size)
        if b.chance(50):
            bias = random_weight(b, (heads * size,), fan_in=4)
            y = Value(b.node("Add", [y.name, bias]), y.shape)
        return b.transpose(b.reshape(y, [time, heads, size]), perm)

    query, key, value = project([0, 2, 1, 3]), project([0, 2, 3, 1]), project([0, 2, 1, 3])
    scores = b.node("MatMul", [query.name, key.name])
    scores = b.node("Div", [scores, b.constant(np.sqrt(size), np.float32)])
    # Softmax before opset 13 flattens to two axes; axis 3 of 4 means the same in both
    mixed = b.node("MatMul", [b.node("Softmax", [scores], axis=3), value.name])
    y = b.reshape(b.transpose(Value(mixed, (batch, heads, time, size)), [0, 2, 1, 3]), [time, heads * size])
    if is_plain:
        return Value(b.node("MatMul", [y.name, b.initializer(b.normal((heads * size, width), scale=0.25))]), x.shape)
    return matmul(b, y, columns=width)


@block(ranks=(3,), opset=12, grows=True)
def einsum(b: Builder, x: Value) -> Value:
    depth, columns = x.shape[-1], b.choice(WIDTHS)
    equation, shape = b.choice([("btd,de->bte", (depth, columns)), ("btd,ed->bte", (columns, depth))])
    y = b.node("Einsum", [x.name, random_weight(b, shape, fan_in=depth)], equation=equation)
    return Value(y, (*x.shape[:-1], columns))


@block(ranks=(2, 3), opset=9, grows=True)
def fused_matmul(b: Builder, x: Value) -> Value:
    """An operator of ONNX Runtime's own domain that reads a weight."""
    depth, columns = x.shape[-1], b.choice(WIDTHS)
    shape = b.choice([(depth, columns), (columns, depth)])
    y = b.node(
        "FusedMatMul",
        [x.name, random_weight(b, shape, fan_in=depth)],
        domain=MICROSOFT,
        transB=int(shape != (depth, columns)),
        alpha=0.5,
    )
    return Value(y, (*x.shape[:-1], columns))


@block(ranks=(3, 4))
def constants_multiplied(b: Builder, x: Value) -> Value:
    """Fold: the weight of a MatMul is itself the product of two constants."""
    depth = x.shape[-1]
    left, right = random_weight(b, (depth, 3)), random_weight(b, (3, 8))
    return Value(b.node("MatMul", [x.name, b.node("MatMul", [left, right])]), (*x.shape[:-1], 8))


@block(ranks=(2, 3), opset=10, last_opset=LAST_QDQ_OPSET, grows=True)
def already_quantized(b: Builder, x: Value) -> Value:
    """QuantizeLinear, DequantizeLinear on the activation: what a quantized model has everywhere."""
    scale = b.constant(0.05, np.float32)
    zero_point = b.constant(128, np.uint8)
    y = b.node("QuantizeLinear", [x.name, scale, zero_point])
    return matmul(b, Value(b.node("DequantizeLinear", [y, scale, zero_point]), x.shape))


@block(ranks=(2, 3), opset=13, ir_version=8, grows=True)
def local_function(b: Builder, x: Value) -> Value:
    """A call of a function of the model: LeakyRelu(x @ w + 0.25) with alpha an attribute of the call."""
    depth, columns = x.shape[-1], b.choice(WIDTHS)
    function = dense_function(b, depth, columns)
    inputs = [x.name, weight(b, b.normal((depth, columns), scale=depth**-0.5))]
    y = b.node(function.name, inputs, domain=FUNCTION_DOMAIN, alpha=0.2)
    return Value(y, (*x.shape[:-1], columns))
