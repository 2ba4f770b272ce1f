"""Products of whole numbers, and operators on quantized tensors: dequantize, compute, quantize."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from onnxcomp.operators import MICROSOFT
from onnxcomp.training.torch_graph.microsoft.attention import self_attention
from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.pooling import mean_of_windows
from onnxcomp.training.torch_graph.rules.products import general_product
from onnxcomp.training.torch_graph.rules.quantization import (
    dequantize_linear,
    dequantized,
    dynamic_quantize_linear,
    matmul_integer,
    quantize_linear,
    quantized,
    spread,
)

microsoft = functools.partial(rule, domain=MICROSOFT)
microsoft("QuantizeLinear")(quantize_linear)
microsoft("DequantizeLinear")(dequantize_linear)


def _again(y: Tensor, scale: Tensor, zero: Tensor | None, like: Tensor) -> Tensor:
    """The result quantized; where no zero point says its type, in that of an input."""
    dtype = zero.dtype if zero is not None else like.dtype if not like.dtype.is_floating_point else torch.uint8
    return quantized(y, scale, zero, dtype)


def _binary(
    function: Callable[[Tensor, Tensor], Tensor], call: Call, a: Tensor, a_scale: Tensor, a_zero: Tensor | None,
    b: Tensor, b_scale: Tensor, b_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None,
) -> Tensor:  # fmt: skip
    made = function(dequantized(a, a_scale, a_zero), dequantized(b, b_scale, b_zero))
    return _again(made, y_scale, y_zero, a)


microsoft("QLinearAdd")(functools.partial(_binary, torch.add))
microsoft("QLinearMul")(functools.partial(_binary, torch.mul))


def _unary(
    function: Callable[[Call, Tensor], Tensor], call: Call, x: Tensor, scale: Tensor, zero: Tensor | None,
    y_scale: Tensor, y_zero: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return _again(function(call, dequantized(x, scale, zero)), y_scale, y_zero, x)


def _leaky(call: Call, x: Tensor) -> Tensor:
    return torch.nn.functional.leaky_relu(x, call.get("alpha", 0.01))


def _mean(call: Call, x: Tensor) -> Tensor:
    axes = range(1, x.dim() - 1) if call.get("channels_last", 0) else range(2, x.dim())
    return x.mean(tuple(axes), keepdim=True)


def _pooled(call: Call, x: Tensor) -> Tensor:
    if not call.get("channels_last", 0):
        return mean_of_windows(call, x)
    return mean_of_windows(call, x.movedim(-1, 1)).movedim(1, -1)


def _softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, call.get("axis", -1))


microsoft("QLinearSigmoid")(functools.partial(_unary, lambda call, x: torch.sigmoid(x)))
microsoft("QLinearLeakyRelu")(functools.partial(_unary, _leaky))
microsoft("QLinearGlobalAveragePool")(functools.partial(_unary, _mean))
microsoft("QLinearAveragePool")(functools.partial(_unary, _pooled))
microsoft("QLinearSoftmax")(functools.partial(_unary, _softmax))


@microsoft("QLinearConcat")
def qlinear_concat(call: Call, scale: Tensor, zero: Tensor, *inputs: Tensor) -> Tensor:
    parts = [dequantized(*inputs[start : start + 3]) for start in range(0, len(inputs), 3)]
    return quantized(torch.cat(parts, call.get("axis")), scale, zero, zero.dtype)


@microsoft("MatMulIntegerToFloat")
def matmul_integer_to_float(
    call: Call, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor | None = None,
    b_zero: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    product = matmul_integer(call, a, b, a_zero, b_zero).to(a_scale.dtype) * (a_scale * b_scale)
    return product if bias is None else product + bias


@microsoft("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    call: Call, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    whole, scale, zero = dynamic_quantize_linear(call, a)
    return matmul_integer_to_float(call, whole, b, scale, b_scale, zero, b_zero, bias)


@microsoft("QGemm")
def qgemm(
    call: Call, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    c: Tensor | None = None, y_scale: Tensor | None = None, y_zero: Tensor | None = None,
) -> Tensor:  # fmt: skip
    axis = 0 if call.get("transB", 0) else 1
    left = dequantized(a, a_scale, a_zero)
    right = dequantized(b, spread(b_scale, b, axis, 0), spread(b_zero, b, axis, 0))
    plus = None if c is None else c.to(left.dtype) * (a_scale * b_scale)
    product = general_product(call, left, right, plus)
    return product if y_scale is None else _again(product, y_scale, y_zero, a)


@microsoft("QAttention")
def qattention(
    call: Call, x: Tensor, w: Tensor, bias: Tensor, x_scale: Tensor, w_scale: Tensor, mask: Tensor | None = None,
    x_zero: Tensor | None = None, w_zero: Tensor | None = None, past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    projected = matmul_integer(call, x, w, x_zero, w_zero).to(bias.dtype) * (x_scale * w_scale) + bias
    return self_attention(call, projected, mask, past, None)


@microsoft("MatMulNBits")
def matmul_nbits(
    call: Call, a: Tensor, b: Tensor, scales: Tensor, zeros: Tensor | None = None, order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """b: (columns, blocks, bytes) of codes of a few bits, the lowest bits first."""
    bits, rows, columns = call.get("bits", 4), call.get("K"), call.get("N")
    codes = _unpacked(b.reshape(columns, -1), bits).to(scales.dtype).reshape(columns, -1, call.get("block_size"))
    blocks = codes.shape[1]
    middle: Any = 2 ** (bits - 1)
    if zeros is not None:
        middle = zeros if zeros.dtype.is_floating_point else _unpacked(zeros.reshape(columns, -1), bits)
        middle = middle.reshape(columns, -1)[:, :blocks, None].to(scales.dtype)
    weight = ((codes - middle) * scales.reshape(columns, blocks, 1)).reshape(columns, -1)[:, :rows]
    made = torch.matmul(a, weight.T.to(a.dtype))
    return made if bias is None else made + bias


def _unpacked(x: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, device=x.device, dtype=torch.uint8)
    return ((x[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
