"""Blocks of activations, normalizations, pools and arithmetic with constants."""

from typing import Any

import numpy as np

from onnxcomp.testing.models.building import Builder, Value, block
from onnxcomp.testing.models.storage import plain_weight, random_weight

# operator -> (first opset, attributes)
ACTIVATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "Relu": (9, {}),
    "Sigmoid": (9, {}),
    "Tanh": (9, {}),
    "LeakyRelu": (9, {"alpha": 0.1}),
    "Elu": (9, {"alpha": 0.9}),
    "Selu": (9, {}),
    "Softplus": (9, {}),
    "Softsign": (9, {}),
    "HardSigmoid": (9, {"alpha": 0.25}),
    "ThresholdedRelu": (10, {"alpha": 0.3}),
    "Erf": (9, {}),
    "Celu": (12, {"alpha": 0.7}),
    "HardSwish": (14, {}),
    "Mish": (18, {}),
    "Gelu": (20, {}),
}


def channel_shape(b: Builder, x: Value) -> tuple[int, ...]:
    """Return a shape that broadcasts to `x`: a scalar, per channel, per last axis or the whole sample."""
    trailing = (1,) * (x.rank - 2)
    return b.choice([(x.shape[1], *trailing), (1, x.shape[1], *trailing), (), (1,), (x.shape[-1],), x.shape[1:]])


@block()
def activation(b: Builder, x: Value) -> Value:
    name = b.choice([op for op, (first, _) in ACTIVATIONS.items() if b.opset >= first])
    return Value(b.node(name, [x.name], **ACTIVATIONS[name][1]), x.shape)


@block()
def parametric_relu(b: Builder, x: Value) -> Value:
    slope = random_weight(b, b.choice([(x.shape[1], *(1,) * (x.rank - 2)), (1,)]), fan_in=16)
    return Value(b.node("PRelu", [x.name, slope]), x.shape)


@block()
def clip(b: Builder, x: Value) -> Value:
    if b.opset < 11:
        return Value(b.node("Clip", [x.name], min=0.0, max=6.0), x.shape)
    bounds = b.choice([[b.constant(0, np.float32), b.constant(6, np.float32)], ["", b.constant(6, np.float32)]])
    return Value(b.node("Clip", [x.name, *bounds]), x.shape)


@block()
def softmax(b: Builder, x: Value) -> Value:
    """Normalize the last axis, the same before and after opset 13."""
    return Value(b.node(b.choice(["Softmax", "LogSoftmax"]), [x.name], axis=x.rank - 1), x.shape)


@block()
def arithmetic(b: Builder, x: Value) -> Value:
    """x (op) constant, in either order where that stays finite."""
    op = b.choice(["Add", "Mul", "Sub", "Div", "Max", "Min", "Where", "Sum"])
    shape = channel_shape(b, x)
    if op == "Div":
        return Value(b.node("Div", [x.name, b.constant(b.normal(shape) ** 2 + 1, np.float32)]), x.shape)
    constant = random_weight(b, shape, fan_in=4)
    if op == "Where":
        mask = b.constant(b.random.random(shape) < 0.5, np.bool_)
        return Value(b.node("Where", [mask, x.name, constant]), x.shape)
    return Value(b.node(op, b.choice([[x.name, constant], [constant, x.name]])), x.shape)


@block(grows=True)
def gate(b: Builder, x: Value) -> Value:
    """x * Sigmoid(x) and its likes: one value read twice."""
    y = b.node(b.choice(["Sigmoid", "Tanh"]), [x.name])
    return Value(b.node("Mul", [x.name, y]), x.shape)


@block(grows=True)
def hard_chain(b: Builder, x: Value) -> Value:
    """The hard sigmoid of x, or its product with x, in arithmetic, as Paddle exports it."""
    three, six = b.constant(3, np.float32), b.constant(6, np.float32)
    line = b.node("Add", [x.name, three])
    if b.opset < 11:
        cut = b.node("Clip", [line], min=0.0, max=6.0)
    else:
        cut = b.node("Clip", [line, b.constant(0, np.float32), six])
    product = b.node("Mul", [x.name, cut]) if b.choice([True, False]) else cut
    return Value(b.node("Div", [product, six]), x.shape)


@block(ranks=(3, 4, 5))
def instance_normalization(b: Builder, x: Value) -> Value:
    channels = x.shape[1]
    scale = random_weight(b, (channels,), fan_in=16, offset=1.0)
    return Value(b.node("InstanceNormalization", [x.name, scale, random_weight(b, (channels,), fan_in=4)]), x.shape)


@block(ranks=(2, 3, 4), opset=17)
def layer_normalization(b: Builder, x: Value) -> Value:
    axis = b.choice([-1, x.rank - 1, 1])
    shape = x.shape[axis:] if axis > 0 else (x.shape[-1],)
    inputs = [x.name, random_weight(b, shape, fan_in=16, offset=1.0)]
    if b.chance(60):
        inputs.append(random_weight(b, shape, fan_in=4))
    return Value(b.node("LayerNormalization", inputs, axis=axis, epsilon=1e-3), x.shape)


@block(ranks=(3,))
def decomposed_layer_normalization(b: Builder, x: Value) -> Value:
    """A residual and its LayerNormalization as exporters wrote it before opset 17.

    The residual also keeps a Cast away from the mean: ONNX Runtime 1.31's LayerNormFusion would take the
    Cast's input, of another type, as its own and refuse the model. So would it with the scale.
    """
    x = Value(b.node("Add", [x.name, b.node("Tanh", [x.name])]), x.shape)

    def mean(name: str) -> str:
        if b.opset >= 18:
            return b.node("ReduceMean", [name, b.constant([-1])])
        return b.node("ReduceMean", [name], axes=[-1])

    centered = b.node("Sub", [x.name, mean(x.name)])
    variance = mean(b.node("Pow", [centered, b.constant(2, np.float32)]))
    deviation = b.node("Sqrt", [b.node("Add", [variance, b.constant(1e-3, np.float32)])])
    y = b.node("Mul", [b.node("Div", [centered, deviation]), plain_weight(b, b.normal((x.shape[-1],)))])
    return Value(b.node("Add", [y, random_weight(b, (x.shape[-1],), fan_in=4)]), x.shape)


@block(ranks=(3, 4), opset=21)
def group_normalization(b: Builder, x: Value) -> Value:
    channels = x.shape[1]
    groups = b.choice([g for g in (1, 2, 4) if channels % g == 0])
    inputs = [
        x.name,
        random_weight(b, (channels,), fan_in=16, offset=1.0),
        random_weight(b, (channels,), fan_in=4),
    ]
    return Value(b.node("GroupNormalization", inputs, num_groups=groups, epsilon=1e-3), x.shape)


@block(ranks=(2, 3), opset=23)
def rms_normalization(b: Builder, x: Value) -> Value:
    scale = random_weight(b, (x.shape[-1],), fan_in=16, offset=1.0)
    return Value(b.node("RMSNormalization", [x.name, scale], axis=-1, epsilon=1e-3), x.shape)


@block(ranks=(4,))
def other_normalization(b: Builder, x: Value) -> Value:
    kind = b.choice(["LRN", "MeanVarianceNormalization", "LpNormalization"])
    if kind == "LRN":
        return Value(b.node("LRN", [x.name], size=3), x.shape)
    if kind == "LpNormalization":  # a vector of zeros would divide by zero
        shifted = b.node("Add", [b.node("Sigmoid", [x.name]), b.constant(0.1, np.float32)])
        return Value(b.node("LpNormalization", [shifted], axis=1, p=2), x.shape)
    return Value(b.node("MeanVarianceNormalization", [x.name], axes=[1, 2, 3]), x.shape)


@block(ranks=(3, 4, 5))
def pool(b: Builder, x: Value) -> Value:
    op = b.choice(["MaxPool", "AveragePool"])
    axes = range(x.rank - 2)
    kernel = [b.choice([k for k in (2, 3, 1) if k <= extent]) for extent in x.shape[2:]]
    strides = [b.choice([2, 1]) for _ in axes]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if b.chance(25):
        attributes["auto_pad"] = b.choice(["SAME_UPPER", "SAME_LOWER"])
        strides[:] = [min(strides[axis], kernel[axis]) for axis in axes]  # else the padding would be negative
        extents = [-(-x.shape[2 + axis] // strides[axis]) for axis in axes]
        return Value(b.node(op, [x.name], **attributes), (*x.shape[:2], *extents))
    pads = [b.integer(0, kernel[axis] // 2) for axis in axes]
    if b.chance(40):
        attributes["pads"] = [*pads, *pads]
        if op == "AveragePool":
            attributes["count_include_pad"] = b.choice([1, 0])
    else:
        pads = [0 for _ in axes]
    extents = [(x.shape[2 + axis] + 2 * pads[axis] - kernel[axis]) // strides[axis] + 1 for axis in axes]
    if op == "MaxPool" and b.chance(20):  # the indices stay unread
        return Value(b.nodes_out(op, [x.name], 2, **attributes)[0], (*x.shape[:2], *extents))
    return Value(b.node(op, [x.name], **attributes), (*x.shape[:2], *extents))


@block(ranks=(3, 4, 5))
def global_pool(b: Builder, x: Value) -> Value:
    """Average each channel and go on as (batch, channels)."""
    op = b.choice(["GlobalAveragePool", "GlobalMaxPool", "ReduceMean"])
    if op != "ReduceMean":
        y = b.node(op, [x.name])
        return b.reshape(Value(y, (*x.shape[:2], *(1,) * (x.rank - 2))), [x.shape[1]])
    axes = list(range(2, x.rank))
    if b.opset >= 18:
        return Value(b.node(op, [x.name, b.constant(axes)], keepdims=0), x.shape[:2])
    return Value(b.node(op, [x.name], axes=axes, keepdims=0), x.shape[:2])


@block(ranks=(4,))
def squeeze_and_excite(b: Builder, x: Value) -> Value:
    """Scale the channels by a small net over their means."""
    channels = x.shape[1]
    y = b.node("GlobalAveragePool", [x.name])
    y = b.node("Relu", [b.node("Conv", [y, random_weight(b, (4, channels, 1, 1))])])
    y = b.node("Sigmoid", [b.node("Conv", [y, random_weight(b, (channels, 4, 1, 1))])])
    return Value(b.node("Mul", [x.name, y]), x.shape)
