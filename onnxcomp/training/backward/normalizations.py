"""Derivatives of normalizations."""

from __future__ import annotations

from onnxcomp.graph.ir.query import trains
from onnxcomp.training.backward.rules import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import FLOAT, SHORT, Value


@rule("BatchNormalization")
def batch_normalization(at: At) -> Adjoints:
    """y = (x - mean) * scale / sqrt(variance + epsilon) + bias, as it infers."""
    if trains(at.node):
        raise NoRuleError("it is in training mode")
    x, scale, _, mean, variance = at.inputs
    others = [0, *range(2, at.rank(x))]
    aside = list(range(1, at.rank(x) - 1))
    inverse = 1.0 / at.op("Sqrt", variance + float(at.attr("epsilon", 1e-5)))
    slope = scale * inverse
    total = at.dy.sum(others)
    product = (at.dy * (x - mean.unsqueeze(aside))).sum(others)
    by_scale = product * inverse
    return (
        at.dy * slope.unsqueeze(aside),
        by_scale,
        total,
        -(total * slope),
        by_scale * scale * inverse * inverse * -0.5,
    )


@rule("LayerNormalization", outputs=3)
def layer_normalization(at: At) -> Adjoints:
    """y = n * scale + bias, n the input less its mean over its deviation, over the axes from ``axis`` on.

    The mean and one over the deviation are outputs, too: 1 / count and -n / deviation^2 / count are their slopes.
    """
    x, scale, bias = at.needs(0), at.needs(1), at.input(2)
    axis = int(at.attr("axis", -1))
    axes = list(range(axis, 0 if axis < 0 else at.rank(x)))
    kind = int(at.attr("stash_type", FLOAT)) if x.data_type in SHORT else x.data_type
    mean, inverse = (at.output(index, kind).cast(x.data_type) for index in (1, 2))
    normal = (x - mean) * inverse
    by_x, by_mean, by_inverse = (*at.adjoints, None, None)[:3]
    made: list[Value] = []
    by_scale = by_bias = None
    if by_x is not None:
        by_scale = at.reduced(by_x * normal, x, scale)
        by_bias = None if bias is None else at.reduced(by_x, x, bias)
        made.append(through_normal(by_x * scale, normal, inverse, axes))
    share = at.op("Size", mean).cast(x.data_type) / at.op("Size", x).cast(x.data_type)
    if by_mean is not None:
        made.append((by_mean.cast(x.data_type) * share).expand(at.shape(x)))
    if by_inverse is not None:
        made.append(-(by_inverse.cast(x.data_type) * share * inverse * inverse) * normal)
    return at.op("Sum", *made), by_scale, by_bias


def through_normal(adjoint: Value, normal: Value, inverse: Value, axes: list[int]) -> Value:
    """From the adjoint of (x - mean) / deviation to that of x; inverse: one over the deviation."""
    along = normal * (adjoint * normal).mean(axes, keep=True)
    return (adjoint - adjoint.mean(axes, keep=True) - along) * inverse


@rule("InstanceNormalization")
def instance_normalization(at: At) -> Adjoints:
    x, scale, _ = at.inputs
    axes, aside = list(range(2, at.rank(x))), list(range(1, at.rank(x) - 1))
    centred = x - x.mean(axes, keep=True)
    variance = (centred * centred).mean(axes, keep=True)
    inverse = 1.0 / at.op("Sqrt", variance + float(at.attr("epsilon", 1e-5)))
    normal = centred * inverse
    by_x = through_normal(at.dy * scale.unsqueeze(aside), normal, inverse, axes)
    return by_x, (at.dy * normal).sum([0, *axes]), at.dy.sum([0, *axes])


@rule("LpNormalization")
def lp_normalization(at: At) -> Adjoints:
    """y = x over its length along an axis; zero where that is zero."""
    order, axis = int(at.attr("p", 2)), [int(at.attr("axis", -1))]
    length = at.op("ReduceL1" if order == 1 else "ReduceL2", at.x, axis, keepdims=1)
    direction = at.op("Sign", at.x) if order == 1 else at.y
    return ((at.dy - direction * (at.dy * at.y).sum(axis, keep=True)) / length).where(length > 0.0)


@rule("LRN")
def lrn(at: At) -> Adjoints:
    """y = x * s^-beta, s = bias + alpha / size * (sum of x^2 over the channels around).

    dx = dy * s^-beta - 2 alpha beta / size * x * (sum of dy * y / s over the channels that have it around them).
    """
    size, beta = int(at.attr("size")), float(at.attr("beta", 0.75))
    share = float(at.attr("alpha", 1e-4)) / size
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    sums = _around(at, at.x * at.x, before, after) * share + float(at.attr("bias", 1.0))
    shrunk = at.op("Pow", sums, -beta)
    back = _around(at, at.dy * at.y / sums, after, before)
    return at.dy * shrunk - at.x * back * (2.0 * share * beta)


def _around(at: At, value: Value, before: int, after: int) -> Value:
    """(N, C, ...): for each channel the sum from so many before it to so many after it."""
    rest = [0] * (at.rank(at.x) - 2)
    wide = value.pad([0, before, *rest], [0, after, *rest])
    channels = at.write.size(at.x, 1)
    parts = [wide.slice([start], channels + start, [1]) for start in range(before + after + 1)]
    return at.op("Sum", *parts)
