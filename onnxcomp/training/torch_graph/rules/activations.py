"""Activations, and what is normalized to a sum of one."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # alpha, gamma: ONNX's defaults, in float32
LINEAR_FROM = 40.0  # log(1 + exp(x)) is x in float64 from here


@rule("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    return torch.relu(x)


@rule("Sigmoid")
def sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@rule("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@rule("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    if call.opset < 7 and slope.dim() == 1 and x.dim() > 1:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x >= 0, x, x * slope)


@rule("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@rule("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", SELU[0])) * call.get("gamma", SELU[1])


@rule("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


@rule("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@rule("HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    return F.hardswish(x)


@rule("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    return F.softplus(x, threshold=LINEAR_FROM)


@rule("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    return F.softsign(x)


@rule("Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    return F.mish(x)


@rule("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@rule("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@rule("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    outside = torch.where(x < -limit, x + bias, x - bias)
    return torch.where(x.abs() > limit, outside, torch.zeros_like(outside)).to(x.dtype)


@rule("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@rule("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    return over_axis(functools.partial(_shares, torch.softmax), call, x)


@rule("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return over_axis(functools.partial(_shares, torch.log_softmax), call, x)


@rule("Hardmax", discrete=True)
def hardmax(call: Call, x: Tensor) -> Tensor:
    return over_axis(_first_largest, call, x)


def over_axis(function: Any, call: Call, x: Tensor) -> Tensor:
    """Before opset 13 over all axes from ``axis`` on, as if they were one."""
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % max(x.dim(), 1)
    flat = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return function(flat, -1).reshape(x.shape)


def _shares(function: Any, x: Tensor, axis: int) -> Tensor:
    """Softmax or its logarithm. A row of -inf alone (all masked) gives no number, but has no part in derivatives."""
    y: Tensor = function(x, axis)
    if not y.requires_grad or not y.numel() or not bool(torch.isnan(y.select(axis, 0)).any()):
        return y
    masked = (x == -math.inf).all(axis, keepdim=True)
    return function(x.masked_fill(masked, 0), axis).masked_fill(masked, math.nan)


def _first_largest(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def activation(name: str, alpha: float | None, beta: float | None) -> Any:
    """The activation that a recurrent operator names."""
    given = {key: value for key, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    if name == "Affine":
        return lambda x: given.get("alpha", 1.0) * x + given.get("beta", 0.0)
    if name == "ScaledTanh":
        return lambda x: given.get("alpha", 1.0) * torch.tanh(given.get("beta", 1.0) * x)
    return {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "LeakyRelu": lambda x: F.leaky_relu(x, given.get("alpha", 0.01)),
        "ThresholdedRelu": lambda x: torch.where(x > given.get("alpha", 1.0), x, torch.zeros_like(x)),
        "HardSigmoid": lambda x: torch.clamp(given.get("alpha", 0.2) * x + given.get("beta", 0.5), 0, 1),
        "Elu": lambda x: F.elu(x, given.get("alpha", 1.0)),
        "Softsign": F.softsign,
        "Softplus": lambda x: F.softplus(x, threshold=LINEAR_FROM),
    }[name]
