"""Derivatives of activation functions."""

from __future__ import annotations

import math

from onnxcomp.training.backward.rule import Adjoints, At, rule
from onnxcomp.training.backward.values import Symbol

SELU_ALPHA = 1.67326319217681884765625  # as the specification states them
SELU_GAMMA = 1.05070102214813232421875


@rule("Relu")
def relu(at: At) -> Adjoints:
    return at.dy.only(at.y > 0.0)


@rule("LeakyRelu")
def leaky_relu(at: At) -> Adjoints:
    alpha = float(at.attr("alpha", 0.01))
    return at.dy * ((at.x > 0.0).cast(at.dy.data_type) * (1.0 - alpha) + alpha)


@rule("PRelu", broadcasts=True)
def prelu(at: At) -> Adjoints:
    x, slope = at.inputs
    return at.dy.where(x > 0.0, at.dy * slope), at.dy * at.op("Min", x, 0.0)


@rule("ThresholdedRelu")
def thresholded_relu(at: At) -> Adjoints:
    return at.dy.only(at.x > float(at.attr("alpha", 1.0)))


@rule("Shrink")
def shrink(at: At) -> Adjoints:
    return at.dy.only(at.op("Abs", at.x) > float(at.attr("lambd", 0.5)))


@rule("Elu")
def elu(at: At) -> Adjoints:
    return at.dy.where(at.x > 0.0, at.dy * (at.y + float(at.attr("alpha", 1.0))))


@rule("Selu")
def selu(at: At) -> Adjoints:
    alpha, gamma = float(at.attr("alpha", SELU_ALPHA)), float(at.attr("gamma", SELU_GAMMA))
    return (at.dy * gamma).where(at.x > 0.0, at.dy * (at.y + alpha * gamma))


@rule("Celu")
def celu(at: At) -> Adjoints:
    return at.dy.where(at.x > 0.0, at.dy * (at.y * (1.0 / float(at.attr("alpha", 1.0))) + 1.0))


@rule("Clip")
def clip(at: At) -> Adjoints:
    """What is left as it is passes; a bound takes what lies beyond it."""
    low, high = at.input(1), at.input(2)
    by_low = None if low is None else at.reduced(at.dy.where(at.x < low), at.x, low)
    by_high = None if high is None else at.reduced(at.dy.where(at.x > high), at.x, high)
    return at.dy.only(at.x.equals(at.y)), by_low, by_high


@rule("Sigmoid")
def sigmoid(at: At) -> Adjoints:
    return at.dy * (at.y * (1.0 - at.y))


@rule("Tanh")
def tanh(at: At) -> Adjoints:
    return at.dy * (1.0 - at.y * at.y)


@rule("HardSigmoid")
def hard_sigmoid(at: At) -> Adjoints:
    return (at.dy * float(at.attr("alpha", 0.2))).only((at.y > 0.0) & (at.y < 1.0))


@rule("HardSwish")
def hard_swish(at: At) -> Adjoints:
    """x * max(0, min(1, x / 6 + 1/2))"""
    inside = (at.x * (1.0 / 3.0) + 0.5).where(at.op("Abs", at.x) < 3.0, (at.x > 0.0).cast(at.x.data_type))
    return at.dy * inside


@rule("Softplus")
def softplus(at: At) -> Adjoints:
    return at.dy * at.op("Sigmoid", at.x)


@rule("Softsign")
def softsign(at: At) -> Adjoints:
    beside = at.op("Abs", at.x) + 1.0
    return at.dy / (beside * beside)


@rule("Mish")
def mish(at: At) -> Adjoints:
    """x * tanh(softplus(x))"""
    inner = at.op("Tanh", at.op("Softplus", at.x))
    return at.dy * (inner + at.x * (1.0 - inner * inner) * at.op("Sigmoid", at.x))


@rule("Swish")
def swish(at: At) -> Adjoints:
    """x * sigmoid(alpha * x)"""
    alpha = float(at.attr("alpha", 1.0))
    gate = at.op("Sigmoid", at.x * alpha)
    return at.dy * (gate + at.y * (1.0 - gate) * alpha)


@rule("Gelu")
def gelu(at: At) -> Adjoints:
    return at.dy * (gelu_by_tanh(at.x) if at.attr("approximate", "none") == "tanh" else gelu_by_erf(at.x))


def gelu_by_erf(x: Symbol) -> Symbol:
    """d/dx of x * P(x), P the normal distribution."""
    below = (x.write.op("Erf", x * math.sqrt(0.5)) + 1.0) * 0.5
    density = x.write.op("Exp", x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
    return below + x * density


def gelu_by_tanh(x: Symbol) -> Symbol:
    """d/dx of x/2 * (1 + tanh(c * (x + d * x^3)))"""
    c, d = math.sqrt(2.0 / math.pi), 0.044715
    squared = x * x
    inner = x.write.op("Tanh", x * (squared * (c * d) + c))
    slope = (1.0 - inner * inner) * (squared * (3.0 * c * d) + c)
    return ((inner + 1.0) + x * slope) * 0.5
