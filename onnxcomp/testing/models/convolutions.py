"""Blocks of Conv and ConvTranspose in every geometry, alone, with BatchNormalization, in both layouts."""

from typing import Any

import numpy as np

from onnxcomp.testing.models.building import Builder, Value, block
from onnxcomp.testing.models.storage import plain_weight, positive_weight, random_values, random_weight, weight

CHANNELS = [1, 2, 3, 4, 6, 8, 16, 24]


def _groups(b: Builder, channels: int) -> tuple[int, int]:
    """Choose groups and output channels: plain, grouped, or depthwise with a multiplier."""
    kind = b.choice(["plain", "plain", "grouped", "depthwise"])
    if kind == "depthwise":
        return channels, channels * b.choice([1, 1, 2] if channels <= 8 else [1])
    if kind == "grouped":
        groups = b.choice([g for g in (2, 3, 4) if channels % g == 0] or [1])
        return groups, groups * b.choice([1, 2, 4])
    return 1, b.choice(CHANNELS)


def _padding(b: Builder, kernel: list[int], extents: list[int], attributes: dict[str, Any]) -> list[int]:
    """Choose auto_pad or pads, write them to `attributes` and return the total padding of each axis.

    SAME goes without dilation: ONNX Runtime refuses it with one.
    """
    axes = range(len(kernel))
    if "dilations" not in attributes and b.chance(25):
        attributes["auto_pad"] = b.choice(["SAME_UPPER", "SAME_LOWER"])
        strides = attributes.get("strides", [1] * len(kernel))
        return [
            max(0, (-(-extents[axis] // strides[axis]) - 1) * strides[axis] + kernel[axis] - extents[axis])
            for axis in axes
        ]
    if b.chance(15):
        attributes["auto_pad"] = b.choice(["VALID", "NOTSET"])
        return [0] * len(kernel)
    if b.chance(60):
        begin = [b.integer(0, kernel[axis] // 2) for axis in axes]
        end = [b.integer(0, kernel[axis] // 2) for axis in axes] if b.chance(30) else begin
        attributes["pads"] = [*begin, *end]
        return [begin[axis] + end[axis] for axis in axes]
    return [0] * len(kernel)


def conv(b: Builder, x: Value, *, out_channels: int | None = None, same: bool = False) -> Value:
    """Append a Conv; `same` keeps the spatial extents."""
    groups, chosen = _groups(b, x.shape[1])
    if out_channels is not None:
        groups, chosen = (groups, out_channels) if out_channels % groups == 0 else (1, out_channels)
    extents = list(x.shape[2:])
    axes = range(len(extents))
    kernel = [b.choice([k for k in (3, 1, 2, 5) if k <= extent]) for extent in extents]
    attributes: dict[str, Any] = {}
    if groups > 1 or b.chance(30):
        attributes["group"] = groups
    if b.chance(60):
        attributes["kernel_shape"] = kernel
    if same:
        attributes["auto_pad"] = b.choice(["SAME_UPPER", "SAME_LOWER"])
        result = extents
    else:
        result = _conv_extents(b, kernel, extents, attributes)
    weight_shape = (chosen, x.shape[1] // groups, *kernel)
    inputs = [x.name, random_weight(b, weight_shape), *_bias(b, chosen)]
    assert all(result[axis] >= 1 for axis in axes)
    return Value(b.node("Conv", inputs, **attributes), (x.shape[0], chosen, *result))


def _conv_extents(b: Builder, kernel: list[int], extents: list[int], attributes: dict[str, Any]) -> list[int]:
    axes = range(len(kernel))
    strides, dilations = [1] * len(kernel), [1] * len(kernel)
    if b.chance(35):
        strides = attributes["strides"] = [b.choice([2, 1, 3]) for _ in axes]
    if b.chance(25):
        dilations = [b.choice([2, 1]) if 2 * (kernel[axis] - 1) < extents[axis] else 1 for axis in axes]
        attributes["dilations"] = dilations
    padding = _padding(b, kernel, extents, attributes)
    reach = [(kernel[axis] - 1) * dilations[axis] + 1 for axis in axes]
    return [(extents[axis] + padding[axis] - reach[axis]) // strides[axis] + 1 for axis in axes]


def _bias(b: Builder, channels: int) -> list[str]:
    return [random_weight(b, (channels,), fan_in=4)] if b.chance(60) else []


def conv_transpose(b: Builder, x: Value) -> Value:
    """Append a ConvTranspose."""
    groups, chosen = _groups(b, x.shape[1])
    extents = list(x.shape[2:])
    axes = range(len(extents))
    kernel = [b.choice([3, 2, 1, 4]) for _ in axes]
    strides, dilations, output_padding = [1] * len(kernel), [1] * len(kernel), [0] * len(kernel)
    attributes: dict[str, Any] = {"group": groups} if groups > 1 or b.chance(30) else {}
    if b.chance(60):
        strides = attributes["strides"] = [b.choice([2, 1]) for _ in axes]
    if b.chance(60):
        attributes["kernel_shape"] = kernel
    kind = b.choice(["plain", "pads", "output_padding", "output_shape", "dilations", "same"])
    if kind == "dilations":
        dilations = attributes["dilations"] = [b.choice([2, 1]) for _ in axes]
    if kind == "output_padding":
        output_padding = attributes["output_padding"] = [stride - 1 for stride in strides]
    full = [strides[a] * (extents[a] - 1) + output_padding[a] + (kernel[a] - 1) * dilations[a] + 1 for a in axes]
    if kind == "pads":
        begin = [b.integer(0, min(1, (full[a] - 1) // 2)) for a in axes]
        attributes["pads"] = [*begin, *begin]
        full = [full[a] - 2 * begin[a] for a in axes]
    elif kind == "output_shape":
        # below the input's extents onnx's shape inference gives up half-way, with a wrong rank
        full = attributes["output_shape"] = [max(extents[a], full[a] - b.integer(0, 1)) for a in axes]
    elif kind == "same" and all(kernel[a] >= strides[a] for a in axes):
        attributes["auto_pad"] = b.choice(["SAME_UPPER", "SAME_LOWER"])
        full = [extents[a] * strides[a] for a in axes]
    weight_shape = (x.shape[1], chosen // groups, *kernel)
    fan_in = x.shape[1] // groups * int(np.prod(kernel))
    inputs = [x.name, random_weight(b, weight_shape, fan_in=fan_in), *_bias(b, chosen)]
    return Value(b.node("ConvTranspose", inputs, **attributes), (x.shape[0], chosen, *full))


def batch_normalization(b: Builder, x: Value) -> Value:
    """Append a BatchNormalization in inference form."""
    channels = x.shape[1]
    store = plain_weight if b.chance(60) else weight
    drawn = [random_values(b, (channels,), fan_in=16, offset=offset) for offset in (1.0, 0.0, 0.0)]
    inputs = [x.name, *(store(b, values) for values in drawn), positive_weight(b, channels)]
    attributes: dict[str, Any] = {"epsilon": b.choice([1e-5, 1e-3])} if b.chance(50) else {}
    return Value(b.node("BatchNormalization", inputs, **attributes), x.shape)


@block(ranks=(3, 4, 5), grows=True)
def convolution(b: Builder, x: Value) -> Value:
    return conv(b, x)


@block(ranks=(3, 4, 5), grows=True)
def transposed_convolution(b: Builder, x: Value) -> Value:
    return conv_transpose(b, x)


@block(ranks=(3, 4, 5), grows=True)
def convolution_batchnorm_relu(b: Builder, x: Value) -> Value:
    y = batch_normalization(b, b.choice([conv, conv, conv_transpose])(b, x))
    return Value(b.node("Relu", [y.name]), y.shape) if b.chance(60) else y


@block(ranks=(3, 4, 5), grows=True)
def separable_convolution(b: Builder, x: Value) -> Value:
    """Depthwise, activation, 1x1, and before it 1x1 where there are few channels: the mobile nets' blocks."""
    kernel = [b.choice([k for k in (3, 1) if k <= extent]) for extent in x.shape[2:]]
    point, channels, y = [1] * len(kernel), x.shape[1], x.name
    if channels < 8:
        channels, y = 10, b.node("Conv", [y, random_weight(b, (10, channels, *point)), *_bias(b, 10)])
    y = b.node("Conv", [y, random_weight(b, (channels, 1, *kernel))], group=channels, auto_pad="SAME_UPPER")
    y = b.node("Relu", [y])
    chosen = b.choice([16, 8, 32])
    y = b.node("Conv", [y, random_weight(b, (chosen, channels, *point)), *_bias(b, chosen)])
    return Value(y, (x.shape[0], chosen, *x.shape[2:]))


@block(ranks=(3, 4, 5), grows=True)
def residual_convolution(b: Builder, x: Value) -> Value:
    """x + Conv(activation(Conv(x)))."""
    y = conv(b, x, same=True)
    y = Value(b.node(b.choice(["Relu", "Sigmoid", "Tanh"]), [y.name]), y.shape)
    y = conv(b, y, out_channels=x.shape[1], same=True)
    if b.chance(40):
        y = batch_normalization(b, y)
    return Value(b.node("Add", b.choice([[x.name, y.name], [y.name, x.name]])), x.shape)


@block(ranks=(4,), grows=True)
def large_convolution(b: Builder, x: Value) -> Value:
    """A 1x1 reduction of the input, then a 3x3 kernel of more than 1024 elements."""
    y = b.node("Conv", [x.name, random_weight(b, (16, x.shape[1], 1, 1))])
    y = b.node("Conv", [y, random_weight(b, (16, 16, 3, 3)), *_bias(b, 16)], pads=[1, 1, 1, 1])
    return Value(y, (x.shape[0], 16, *x.shape[2:]))


@block(ranks=(3, 4, 5), grows=True)
def channels_last_convolution(b: Builder, x: Value) -> Value:
    """Transpose to channels first, Conv, Transpose back: what exporters from TensorFlow write."""
    rank = x.rank
    y = b.transpose(x, [0, rank - 1, *range(1, rank - 1)])
    y = conv(b, y)
    if b.chance(40):
        y = batch_normalization(b, y)
    return b.transpose(y, [0, *range(2, rank), 1])


@block(ranks=(3, 4, 5), grows=True)
def shared_convolution(b: Builder, x: Value) -> Value:
    """One kernel read by two Conv nodes of different geometry, their results joined."""
    kernel = [min(3, extent) for extent in x.shape[2:]]
    weight = random_weight(b, (x.shape[1], x.shape[1], *kernel))
    left = b.node("Conv", [x.name, weight], auto_pad="SAME_UPPER")
    right = b.node("Conv", [b.node("Tanh", [x.name]), weight, *_bias(b, x.shape[1])], auto_pad="SAME_LOWER")
    return Value(b.node("Mul", [left, right]), x.shape)


@block()
def normalize_batch(b: Builder, x: Value) -> Value:
    return batch_normalization(b, x)
