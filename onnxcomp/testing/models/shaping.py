"""Blocks that move, join and cut tensors, and those that do nothing."""

from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcomp.testing.models.building import Builder, Value, block
from onnxcomp.testing.models.convolutions import conv
from onnxcomp.testing.models.linear import flattened
from onnxcomp.testing.models.storage import random_weight


@block(ranks=(3, 4, 5))
def flatten(b: Builder, x: Value) -> Value:
    return flattened(b, x)


@block()
def reshape(b: Builder, x: Value) -> Value:
    """Split the sample's elements into another number of axes."""
    size = x.sample_size
    factors = [f for f in (2, 3, 4, 8) if size % f == 0] or [1]
    first = b.choice(factors)
    second = b.choice([f for f in (2, 4) if (size // first) % f == 0] or [1])
    shapes = [[first, size // first], [first, second, size // first // second], [size]]
    return b.reshape(x, b.choice(shapes))


@block(ranks=(2, 3))
def computed_reshape(b: Builder, x: Value) -> Value:
    """Reshape to a shape made by Shape, Gather, Unsqueeze and Concat: PyTorch's view(x.size(0), ...)."""
    batch = b.node("Gather", [b.node("Shape", [x.name]), b.constant(0)], axis=0)
    batch = b.node("Unsqueeze", [batch, b.constant([0])]) if b.opset >= 13 else b.node("Unsqueeze", [batch], axes=[0])
    target = b.node("Concat", [batch, b.constant([1, x.sample_size])], axis=0)
    return Value(b.node("Reshape", [x.name, target]), (x.shape[0], 1, x.sample_size))


@block(ranks=(3, 4, 5))
def transpose(b: Builder, x: Value) -> Value:
    perm = [0, *(int(axis) + 1 for axis in b.random.permutation(x.rank - 1))]
    return b.transpose(x, perm)


@block(ranks=(2, 3, 4))
def unsqueeze(b: Builder, x: Value) -> Value:
    axis = b.integer(1, x.rank)
    inputs = [x.name, b.constant([axis])] if b.opset >= 13 else [x.name]
    attributes: dict[str, Any] = {} if b.opset >= 13 else {"axes": [axis]}
    return Value(b.node("Unsqueeze", inputs, **attributes), (*x.shape[:axis], 1, *x.shape[axis:]))


@block(ranks=(3, 4, 5))
def concat_branches(b: Builder, x: Value) -> Value:
    """Two convolutions of the same input, their channels joined, with the input itself or without."""
    left, right = conv(b, x, same=True, out_channels=4), conv(b, x, same=True, out_channels=2)
    parts = [left, right, x] if b.chance(40) else [left, right]
    channels = sum(part.shape[1] for part in parts)
    y = b.node("Concat", [part.name for part in parts], axis=1)
    return Value(y, (x.shape[0], channels, *x.shape[2:]))


@block()
def concat_constant(b: Builder, x: Value) -> Value:
    """Append a learned token where the batch is fixed, else the value itself."""
    if b.state.symbolic_batch:
        parts = [x.name, x.name]
        added = x.shape[1]
    else:
        added = 2
        parts = [x.name, random_weight(b, (x.shape[0], added, *x.shape[2:]), fan_in=4)]
    return Value(b.node("Concat", parts, axis=1), (x.shape[0], x.shape[1] + added, *x.shape[2:]))


@block()
def split(b: Builder, x: Value) -> Value:
    """Cut the channels in two uneven (or equal) parts and add or join what comes out."""
    channels = x.shape[1]
    if channels < 2:
        return Value(b.node("Neg", [x.name]), x.shape)
    cut = channels // 2 if b.chance(50) else b.integer(1, channels - 1)
    sizes = [cut, channels - cut]
    if b.opset < 13:
        first, second = b.nodes_out("Split", [x.name], 2, axis=1, split=sizes)
    elif b.opset >= 18 and sizes[0] == sizes[1] and b.chance(50):
        first, second = b.nodes_out("Split", [x.name], 2, axis=1, num_outputs=2)
    else:
        first, second = b.nodes_out("Split", [x.name, b.constant(sizes)], 2, axis=1)
    if sizes[0] == sizes[1] and b.chance(60):
        return Value(b.node("Add", [first, second]), (x.shape[0], cut, *x.shape[2:]))
    y = b.node("Concat", [second, b.node("Relu", [first])], axis=1)
    return Value(y, x.shape)


@block()
def slice_channels(b: Builder, x: Value) -> Value:
    stop = b.integer(1, x.shape[1])
    if b.opset < 10:
        y = b.node("Slice", [x.name], axes=[1], starts=[0], ends=[stop])
    else:
        y = b.node("Slice", [x.name, b.constant([0]), b.constant([stop]), b.constant([1])])
    return Value(y, (x.shape[0], stop, *x.shape[2:]))


@block(grows=True)
def pad(b: Builder, x: Value) -> Value:
    """Pad the last axis."""
    mode = b.choice(["constant", "edge", "reflect"] if x.shape[-1] >= 3 else ["constant", "edge"])
    amounts = [0] * (2 * x.rank)
    amounts[x.rank - 1], amounts[-1] = b.integer(0, 1), b.integer(1, 2)
    shape = (*x.shape[:-1], x.shape[-1] + amounts[x.rank - 1] + amounts[-1])
    if b.opset < 11:
        return Value(b.node("Pad", [x.name], pads=amounts, mode=mode), shape)
    value = [b.constant(0.5, np.float32)] if mode == "constant" and b.chance(50) else []
    return Value(b.node("Pad", [x.name, b.constant(amounts), *value], mode=mode), shape)


@block(ranks=(3, 4, 5))
def pad_convolution(b: Builder, x: Value) -> Value:
    """Zeros around the input as a node of its own in front of Conv."""
    axes = x.rank - 2
    amounts = [0, 0, *[1] * axes] * 2
    attributes: dict[str, Any] = {"pads": amounts} if b.opset < 11 else {}
    inputs = [] if attributes else [b.constant(amounts)]
    y = b.node("Pad", [x.name, *inputs], **attributes)
    kernel = random_weight(b, (4, x.shape[1], *[min(3, extent) for extent in x.shape[2:]]))
    extents = [extent + 2 - min(3, extent) + 1 for extent in x.shape[2:]]
    return Value(b.node("Conv", [y, kernel]), (x.shape[0], 4, *extents))


@block(ranks=(4,), grows=True)
def resize(b: Builder, x: Value) -> Value:
    """Double the spatial extents.

    Only "nearest": ONNX Runtime 1.31 moves a Transpose through a linear Resize whose kernel then refuses it.
    """
    scales = b.constant([1, 1, 2, 2], np.float32)
    shape = (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    if b.opset < 10:
        return Value(b.node("Upsample", [x.name, scales], mode="nearest"), shape)
    if b.opset < 11:
        return Value(b.node("Resize", [x.name, scales], mode="nearest"), shape)
    region = "" if b.opset >= 13 else b.constant([], np.float32)
    y = b.node("Resize", [x.name, region, scales], mode="nearest", coordinate_transformation_mode="asymmetric")
    return Value(y, shape)


@block(ranks=(4,))
def depth_to_space(b: Builder, x: Value) -> Value:
    batch, channels, height, width = x.shape
    if channels % 4 == 0:
        return Value(b.node("DepthToSpace", [x.name], blocksize=2), (batch, channels // 4, 2 * height, 2 * width))
    if height % 2 == 0 and width % 2 == 0 and channels <= 8:
        return Value(b.node("SpaceToDepth", [x.name], blocksize=2), (batch, 4 * channels, height // 2, width // 2))
    return Value(b.node("Abs", [x.name]), x.shape)


@block()
def gather_channels(b: Builder, x: Value) -> Value:
    """Pick channels of the activation by constant indices."""
    picked = [b.integer(0, x.shape[1] - 1) for _ in range(b.integer(1, 4))]
    y = b.node("Gather", [x.name, b.constant(picked)], axis=1)
    return Value(y, (x.shape[0], len(picked), *x.shape[2:]))


@block(opset=11)
def sequence(b: Builder, x: Value) -> Value:
    """A sequence of tensors, joined again."""
    made = b.node("SequenceConstruct", [x.name, b.node("Tanh", [x.name])])
    y = b.node("ConcatFromSequence", [made], axis=1)
    return Value(y, (x.shape[0], 2 * x.shape[1], *x.shape[2:]))


@block()
def second_input(b: Builder, x: Value) -> Value:
    """Another input of the graph, added or joined."""
    other = b.input(x.shape)
    return Value(b.node(b.choice(["Add", "Mul"]), [x.name, other.name]), x.shape)


@block()
def extra_output(b: Builder, x: Value) -> Value:
    """Show an inner value as an output of the model; inside a branch nothing is shown."""
    if b.outer is None and x.name not in {each.name for each in b.inputs} | {each.name for each in b.outputs}:
        b.outputs.append(x)
    return Value(b.node("Relu", [x.name]), x.shape)


@block()
def no_operation(b: Builder, x: Value) -> Value:
    """Nodes that change nothing, one to three of them."""
    for _ in range(b.integer(1, 3)):
        kinds = [
            _identity,
            _dropout,
            _pad_zero,
            _same_reshape,
            _transpose_pair,
            _same_cast,
            _neutral_arithmetic,
        ]
        x = b.choice([*kinds, _single_operand, _whole_slice, _squeeze_pair])(b, x)
    return x


def _identity(b: Builder, x: Value) -> Value:
    return Value(b.node("Identity", [x.name]), x.shape)


def _dropout(b: Builder, x: Value) -> Value:
    if b.opset < 12:
        return Value(b.node("Dropout", [x.name], ratio=0.5), x.shape)
    inputs = b.choice([[x.name], [x.name, b.constant(0.5, np.float32)]])
    if b.chance(20):  # the mask stays unread
        return Value(b.nodes_out("Dropout", inputs, 2)[0], x.shape)
    return Value(b.node("Dropout", inputs), x.shape)


def _pad_zero(b: Builder, x: Value) -> Value:
    if b.opset < 11:
        return Value(b.node("Pad", [x.name], pads=[0] * (2 * x.rank)), x.shape)
    return Value(b.node("Pad", [x.name, b.constant([0] * (2 * x.rank))]), x.shape)


def _same_reshape(b: Builder, x: Value) -> Value:
    return b.reshape(x, x.shape[1:])


def _transpose_pair(b: Builder, x: Value) -> Value:
    perm = [int(axis) for axis in b.random.permutation(x.rank)]
    y = b.node("Transpose", [x.name], perm=perm)
    return Value(b.node("Transpose", [y], perm=[int(axis) for axis in np.argsort(perm)]), x.shape)


def _same_cast(b: Builder, x: Value) -> Value:
    through = b.choice([TensorProto.FLOAT, TensorProto.DOUBLE])
    y = b.node("Cast", [x.name], to=through)
    return Value(b.node("Cast", [y], to=TensorProto.FLOAT), x.shape)


def _neutral_arithmetic(b: Builder, x: Value) -> Value:
    op, neutral = b.choice([("Add", 0.0), ("Mul", 1.0), ("Sub", 0.0), ("Div", 1.0)])
    return Value(b.node(op, [x.name, b.constant(neutral, np.float32)]), x.shape)


def _single_operand(b: Builder, x: Value) -> Value:
    if b.chance(50):
        return Value(b.node("Sum", [x.name]), x.shape)
    return Value(b.node("Concat", [x.name], axis=1), x.shape)


def _whole_slice(b: Builder, x: Value) -> Value:
    if b.opset < 10:
        return Value(b.node("Slice", [x.name], axes=[1], starts=[0], ends=[2**31 - 1]), x.shape)
    return Value(b.node("Slice", [x.name, b.constant([0]), b.constant([2**31 - 1]), b.constant([1])]), x.shape)


def _squeeze_pair(b: Builder, x: Value) -> Value:
    if b.opset < 13:
        y = b.node("Unsqueeze", [x.name], axes=[1])
        return Value(b.node("Squeeze", [y], axes=[1]), x.shape)
    y = b.node("Unsqueeze", [x.name, b.constant([1])])
    return Value(b.node("Squeeze", [y, b.constant([1])]), x.shape)
