"""Whole numbers that stand for floats, with derivatives as if nothing had been rounded.

q = clip(round(x / s) + z), y = (q - z) s. Rounding counts as the identity: where q is not clipped dy/dx = 1 and
dy/ds = (q - z) - x / s, elsewhere dy/dx = 0 and dy/ds = q - z (LSQ, https://arxiv.org/abs/1902.08153). Whole numbers
have no derivatives in torch: QuantizeLinear gives a float tensor of whole numbers where something needs its derivative.
"""

from __future__ import annotations

from typing import Any

import torch

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.convolutions import convolution
from onnxcomp.training.torch_graph.rules.elementwise import float4, saturated
from onnxcomp.training.torch_graph.values import BELOW_A_BYTE, TYPES, limits


class _Rounded(torch.autograd.Function):  # type: ignore[misc]
    """clip(round(v) + z, low, high), with the derivative 1 where v + z is within the limits."""

    @staticmethod
    def forward(context: Any, v: Tensor, zero: Tensor | float, low: float, high: float) -> Tensor:
        place = v + zero
        context.save_for_backward((place >= low) & (place <= high))
        return (torch.round(v) + zero).clamp(low, high)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = context.saved_tensors
        return slope * inside, None, None, None


class _Passed(torch.autograd.Function):  # type: ignore[misc]
    """Values rounded to a short float, with the derivative 1."""

    @staticmethod
    def forward(context: Any, v: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope, None


def spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points in a shape that broadcasts to x: one for all, one a place of the axis, or one a block."""
    if values.numel() == 1:
        return values.reshape(())
    axis = axis % x.dim()
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if values.dim() != 1:
        return values
    return values.reshape([-1 if place == axis else 1 for place in range(x.dim())])


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, kind: int = 0) -> Tensor:
    """q as whole numbers of ``dtype``, or as floats where a derivative is wanted. kind: a type below a byte."""
    low, high = limits(dtype, kind)
    v = x / scale
    shift: Any = 0 if zero is None else zero.to(v.dtype)
    if v.requires_grad and torch.is_grad_enabled():
        return _Rounded.apply(v, shift, low, high)
    if not dtype.is_floating_point and limits(dtype)[1] > 2**31:
        v = v.double()
    return (torch.round(v) + shift).clamp(low, high).to(dtype)


def dequantized(q: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """(q - z) s."""
    if q.dtype != scale.dtype:
        wide = q if q.dtype.is_floating_point else q.to(torch.int32)
        wide = wide if wide.dtype.itemsize > 1 else wide.float()
        zero = None if zero is None else zero.to(wide.dtype)
        q = (wide if zero is None else wide - zero).to(scale.dtype)
        return q * scale
    return (q if zero is None else q - zero.to(q.dtype)) * scale


@rule("QuantizeLinear")
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = call.get("output_dtype", 0) or (call.kinds[2] if len(call.kinds) > 2 else 0)
    dtype = TYPES.get(kind, torch.uint8 if zero is None else zero.dtype)
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    scale = spread(scale, x, axis, block)
    zero = None if zero is None else spread(zero, x, axis, block)
    wide = x if x.dtype.is_floating_point else x.to(torch.float32)
    if call.get("precision", 0):
        wide = wide.to(TYPES[call.get("precision")])
    if dtype.is_floating_point:
        v = wide / scale
        short = float4(v) if kind in BELOW_A_BYTE else _short(v, dtype, bool(call.get("saturate", 1)))
        return _Passed.apply(v, short.to(v.dtype)) if v.requires_grad else short
    return quantized(wide, scale.to(wide.dtype), zero, dtype, kind)


def _short(v: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    return saturated(v, dtype) if saturate else v.to(dtype)


@rule("DequantizeLinear")
def dequantize_linear(call: Call, q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    scale = spread(scale, q, axis, block)
    made = dequantized(q, scale, None if zero is None else spread(zero, q, axis, block))
    return made.to(TYPES[call.get("output_dtype")]) if call.get("output_dtype", 0) else made


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    with torch.no_grad():
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.where(scale == 0, torch.zeros_like(scale), (-low / safe).round().clamp(0, 255)).to(torch.uint8)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    return quantized(x, divisor, zero, torch.uint8), scale, zero


def centred(q: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """q - z in floats that hold products of bytes exactly; z may be one a row (axis -2) or a column (-1)."""
    wide = q if q.dtype.is_floating_point else q.to(torch.float64)
    if zero is None:
        return wide
    shape = [1] * q.dim()
    if zero.dim() == 1 and zero.numel() > 1:
        shape[axis] = -1
        return wide - zero.reshape(shape).to(wide.dtype)
    return wide - zero.to(wide.dtype)


def summed(a: Tensor, b: Tensor, product: Any) -> Tensor:
    """A product of whole numbers, as int32 unless something needs its derivative."""
    if a.dtype != b.dtype:
        a, b = (each.to(a.dtype if a.requires_grad else b.dtype) for each in (a, b))
    made = product(a, b)
    return made if made.requires_grad else made.round().to(torch.int32)


@rule("MatMulInteger")
def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    return summed(centred(a, a_zero, -2), centred(b, b_zero, -1), torch.matmul)


@rule("ConvInteger")
def conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    return summed(centred(x, x_zero, 1), centred(w, w_zero, 0), lambda a, b: convolution(call, a, b, None))


@rule("QLinearMatMul")
def qlinear_matmul(
    call: Call, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor,
) -> Tensor:  # fmt: skip
    product = matmul_integer(call, a, b, a_zero, b_zero)
    rows = a_scale[..., None] if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale.reshape(-1)
    factor = rows * b_scale
    y = product.to(factor.dtype) * factor.reshape(() if factor.numel() == 1 else factor.shape)
    return quantized(y, y_scale.to(y.dtype), y_zero, y_zero.dtype).reshape(product.shape)


@rule("QLinearConv")
def qlinear_conv(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, b: Tensor | None = None,
) -> Tensor:  # fmt: skip
    product = conv_integer(call, x, w, x_zero, w_zero)
    shape = [1, -1, *[1] * (w.dim() - 2)]
    if b is not None:
        product = product + b.reshape(shape)
    y = product.to(x_scale.dtype) * (x_scale * w_scale).reshape(shape)
    return quantized(y, y_scale, y_zero, y_zero.dtype)
