"""Derivatives of pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.training.backward.convolutions import Window, input_gradient, window_of
from onnxcomp.training.backward.moving import put_back
from onnxcomp.training.backward.rules import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import INT64, Value


@rule("MaxPool")
def max_pool(at: At) -> Adjoints:
    """Each window's adjoint goes to the element that it took."""
    if at.attr("storage_order", 0):
        raise NoRuleError("its indices are column-major")
    kernel, strides = at.attr("kernel_shape"), at.attr("strides") or [1] * len(at.attr("kernel_shape"))
    dilations = at.attr("dilations") or [1] * len(kernel)
    overlaps = any((size - 1) * gap + 1 > step for size, gap, step in zip(kernel, dilations, strides, strict=True))
    return put_back(at, at.output(1, INT64), at.dy, reduction="add" if overlaps else "none")


@rule("AveragePool")
def average_pool(at: At) -> Adjoints:
    """Each window's adjoint is spread over its elements."""
    window = window_of(at, at.attr("kernel_shape"), at.x)
    return spread_over(at, at.dy * _one_over_counts(at, window), window)


@rule("LpPool")
def lp_pool(at: At) -> Adjoints:
    """y = (sum of |x|^p)^(1/p) over each window; zero has no direction."""
    window, power = window_of(at, at.attr("kernel_shape"), at.x), float(at.attr("p", 2))
    outer = (at.dy / at.op("Pow", at.y, power - 1.0)).where(at.y > 0.0)
    size = at.op("Abs", at.x)
    return at.op("Sign", at.x) * at.op("Pow", size, power - 1.0) * spread_over(at, outer, window)


def spread_over(at: At, adjoint: Value, window: Window) -> Value:
    """For each element the sum of the adjoints of the windows that it is in: a convolution turned round, channel by
    channel."""
    ones = at.write.constant(np.ones((1, 1, *window.kernel), _dtype(at)))
    single = adjoint.reshape(at.write.joined([[-1, 1], at.write.sizes(at.y, 2, 2 + len(window.kernel))]))
    return input_gradient(at, single, ones, window, 1, at.x, at.y).shaped(at.shape(at.x))


def _one_over_counts(at: At, window: Window) -> Value:
    """(1, 1, *places): one over the number of elements by which each window's sum was divided."""
    if not window.is_padded and not at.attr("ceil_mode", 0):
        return at.write.constant(np.array(1.0 / np.prod(window.kernel), _dtype(at)))
    count, write = len(window.kernel), at.write
    sizes = write.joined([[1, 1], write.sizes(at.x, 2, 2 + count)])
    everywhere = write.constant(np.ones((), _dtype(at))).expand(sizes)
    averages = write.op("AveragePool", everywhere, **at.node.attrs)  # below one where zeros were counted
    places = write.sizes(at.y, 2, 2 + count)
    reach = (places - 1) * list(window.strides) + window.spans
    after = reach - write.sizes(at.x, 2, 2 + count) - write.alike(window.before, reach)
    wide = everywhere.pad(write.joined([[0, 0], window.before]), write.joined([[0, 0], after]))
    ones = write.constant(np.ones((1, 1, *window.kernel), _dtype(at)))
    inside = write.op("Conv", wide, ones, strides=list(window.strides), dilations=list(window.dilations))
    return averages / inside


def _dtype(at: At) -> Any:
    return helper.tensor_dtype_to_np_dtype(at.dy.data_type)


@rule("GlobalAveragePool")
def global_average_pool(at: At) -> Adjoints:
    count = at.op("Size", at.x) / at.op("Size", at.y)
    return (at.dy / count.cast(at.dy.data_type)).expand(at.shape(at.x))


@rule("GlobalMaxPool")
def global_max_pool(at: At) -> Adjoints:
    reached = at.x.equals(at.y).cast(at.dy.data_type)
    spatial = list(range(2, at.rank(at.x)))
    return reached * (at.dy / reached.sum(spatial, keep=True))
