"""Operators that take each element by itself: arithmetic, comparisons, logic, casts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.values import BELOW_A_BYTE, TYPES, limits

UNARY = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Identity": lambda x: x, "Log": torch.log,
    "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
DISCRETE_UNARY = {"IsNaN": torch.isnan, "Not": torch.logical_not, "BitwiseNot": torch.bitwise_not}
BINARY = {"Add": torch.add, "Mul": torch.mul, "Sub": torch.sub}
DISCRETE_BINARY = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def _unary(function: Any, call: Call, x: Tensor) -> Tensor:
    return function(x)


def _binary(function: Any, call: Call, a: Tensor, b: Tensor) -> Tensor:
    return function(a, b) if call.opset >= 7 else function(a, aligned(call, a, b))


for _name, _function in UNARY.items():
    rule(_name)(functools.partial(_unary, _function))
for _name, _function in DISCRETE_UNARY.items():
    rule(_name, discrete=True)(functools.partial(_unary, _function))
for _name, _function in BINARY.items():
    rule(_name)(functools.partial(_binary, _function))
for _name, _function in DISCRETE_BINARY.items():
    rule(_name, discrete=True)(functools.partial(_binary, _function))


def aligned(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Before opset 7 the second operand's first axis stands at ``axis`` of the first operand."""
    axis = call.get("axis")
    if call.opset >= 7 or axis is None:
        return b
    trailing = a.dim() - axis % a.dim() - b.dim()
    return b.reshape(*b.shape, *[1] * trailing)


@rule("Sqrt")
def sqrt(call: Call, x: Tensor) -> Tensor:
    return rooted(torch.sqrt, x)


def rooted(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A root, whose derivative at zero counts as zero, as that of a norm does: silence would make all others NaN."""
    if not x.requires_grad or not bool((x == 0).any()):
        return function(x)
    return torch.where(x == 0, torch.zeros_like(x), function(torch.where(x == 0, torch.ones_like(x), x)))


@rule("Div")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    b = aligned(call, a, b)
    return a / b if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")


@rule("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@rule("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    b = aligned(call, a, b)
    if b.numel() == 1 and b.dim() <= a.dim() and not b.requires_grad and a.dtype.is_floating_point:
        exponent = b.item()  # as a number: exact powers for whole numbers, and their derivatives at zero
        return rooted(lambda x: x**exponent, a) if 0 < exponent < 1 else a**exponent
    if a.dtype.is_floating_point:
        b = b.to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@rule("BitShift", discrete=True)
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a << b if call.get("direction") == "LEFT" else a >> b


@rule("BitCast", discrete=True)
def bit_cast(call: Call, x: Tensor) -> Tensor:
    return x.view(TYPES[call.get("to")])


@rule("IsInf", discrete=True)
def is_inf(call: Call, x: Tensor) -> Tensor:
    upper = torch.isposinf(x) if call.get("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    return upper | torch.isneginf(x) if call.get("detect_negative", 1) else upper


@rule("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@rule("Max")
def maximum(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, inputs)


@rule("Min")
def minimum(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


@rule("Sum")
def total(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(operator.add, inputs)


@rule("Mean")
def mean(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(operator.add, inputs) / len(inputs)


@rule("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if call.opset < 11:
        return limited(x, call.get("min"), call.get("max"))
    if any(each is not None and (each.requires_grad or each.dim()) for each in (low, high)):
        return torch.clamp(x, low, high)
    return limited(x, *(each if each is None else each.item() for each in (low, high)))


def limited(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """min(max(x, low), high)."""
    if low is None and high is None:
        return x
    if low is None or high is None or low > high or not x.dtype.is_floating_point:
        return torch.clamp(x, low, high)
    return F.hardtanh(x, low, high)  # whose derivative needs no mask


@rule("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return converted(x, call.get("to"), saturate=bool(call.get("saturate", 1)))


@rule("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    kind = call.kinds[1] if call.kinds else 0
    if kind:
        return converted(x, kind)
    return saturated(x, like.dtype) if call.get("saturate", 1) else x.to(like.dtype)


def converted(x: Tensor, kind: int, *, saturate: bool = True) -> Tensor:
    """The values in an ONNX type; in float8 those beyond its range become its limits if ``saturate``."""
    if kind in BELOW_A_BYTE:
        return narrowed(x, kind)
    if kind not in TYPES:
        raise TypeError(f"values cannot be cast to ONNX type {kind}")
    return saturated(x, TYPES[kind]) if saturate else x.to(TYPES[kind])


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a type, those beyond the range of a float8 at its limits."""
    if dtype.itemsize == 1 and dtype.is_floating_point and dtype != torch.float8_e8m0fnu:
        wide = x if x.dtype.itemsize > 1 else x.float()
        return wide.clamp(*limits(dtype)).to(dtype)
    return x.to(dtype)


def narrowed(x: Tensor, kind: int) -> Tensor:
    """The values in a type below a byte: whole numbers wrap, float4 rounds to the nearest of its values."""
    low, high = BELOW_A_BYTE[kind]
    if TYPES[kind].is_floating_point:
        return float4(x)
    whole = x if not x.dtype.is_floating_point else x.to(torch.int32)
    count = high - low + 1
    return ((whole.to(torch.int32) - int(low)) % int(count) + int(low)).to(TYPES[kind])


def float4(x: Tensor) -> Tensor:
    """Values rounded to those of float4_e2m1, 0 0.5 1 1.5 2 3 4 6 and their negatives, ties to the even code."""
    size = x.abs().float().clamp(max=6)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x.float())
