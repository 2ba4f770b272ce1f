"""Networks that hypothesis draws from the operators that channels go through, as ONNX text of many opsets.

Channels are made, moved and read in every way that ``dependency_rules`` speaks of; what it declines is among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.passes.exactly import model

OPSETS = (7, 9, 10, 11, 13, 17, 18, 21)
BATCH, LENGTH = 2, 5
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """A tensor of the text."""

    name: str
    shape: Shape


@dataclass
class Drawing:
    """The text of one graph and its constants, in the making."""

    draw: st.DrawFn
    opset: int
    is_dynamic: bool
    lines: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    as_nodes: set[str] = field(default_factory=set)
    made: list[Drawn] = field(default_factory=list)
    names: list[int] = field(default_factory=lambda: [0])

    def choose(self, *options: object) -> object:
        return self.draw(st.sampled_from(options))

    def number(self, *options: int) -> int:
        return self.draw(st.sampled_from(options))

    def chance(self) -> bool:
        return self.draw(st.booleans())

    def name(self) -> str:
        self.names[0] += 1
        return f"t{self.names[0]}"

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: object) -> Drawn:
        """A node of one output."""
        made = Drawn(self.name(), shape)
        self.lines.append(f"{made.name} = {op}{_attributes(attributes)}({', '.join(inputs)})")
        self.made.append(made)
        return made

    def of(self, op: str, x: Drawn, shape: Shape | None = None, **attributes: object) -> Drawn:
        return self.add(op, [x.name], x.shape if shape is None else shape, **attributes)

    def constant(self, values: object, dtype: type = np.int64) -> str:
        """A constant as it is."""
        name = self.name()
        self.constants[name] = np.array(values, dtype)
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        """A constant of floats, in one of the ways in which exporters keep them."""
        random = np.random.default_rng(len(self.names) + self.names[0])
        values = random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]) or 1)
        values = np.abs(values) + 0.5 if positive else values
        return self.kept(values.astype(np.float32))

    def kept(self, values: np.ndarray) -> str:
        kind = self.choose("plain", "plain", "plain", "node", "shared", "turned", "identity", "cast")
        alike = [
            name for name, each in self.constants.items() if each.shape == values.shape and each.dtype == values.dtype
        ]
        if kind == "shared" and alike and values.ndim:
            return str(self.choose(*alike))
        if kind == "turned" and values.ndim == 2:
            return self.add("Transpose", [self.constant(values.T, np.float32)], values.shape, perm=[1, 0]).name
        if kind == "identity":
            return self.add("Identity", [self.constant(values, np.float32)], values.shape).name
        if kind == "cast":
            return self.add("Cast", [self.constant(values, np.float64)], values.shape, to=1).name
        name = self.constant(values, np.float32)
        if kind == "node":
            self.as_nodes.add(name)
        return name

    def sizes(self, x: Drawn, wanted: list[int]) -> str:
        """The shape of a Reshape that keeps the batch, as exporters state it."""
        kind = self.choose("zero", "computed", "open" if not self.is_dynamic else "zero")
        if kind == "open" and -1 not in wanted:
            return self.constant([-1, *wanted])
        if kind == "computed" and self.opset >= 9:
            shape = self.add("Shape", [x.name], (len(x.shape),)).name
            batch = self.add("Gather", [shape, self.constant([0])], (1,), axis=0).name
            return self.add("Concat", [batch, self.constant(wanted)], (len(wanted) + 1,), axis=0).name
        return self.constant([0, *wanted])

    def reshape(self, x: Drawn, *shape: int) -> Drawn:
        """To a shape (after the batch); one size may be left to be worked out."""
        wanted = list(shape)
        if self.chance():
            wanted[self.number(*range(len(wanted)))] = -1
        return self.add("Reshape", [x.name, self.sizes(x, wanted)], (x.shape[0], *shape))

    def axes(self, op: str, x: Drawn, axes: list[int], shape: Shape, *, since: int = 13, **more: object) -> Drawn:
        """An operator whose axes were an attribute before some opset."""
        if self.opset < since:
            return self.of(op, x, shape, axes=axes, **more)
        return self.add(op, [x.name, self.constant(axes)], shape, **more)


def _attributes(attributes: dict[str, object]) -> str:
    def text(value: object) -> str:
        if isinstance(value, str):
            return f'"{value}"'
        return str(list(value) if isinstance(value, tuple) else value)

    return f"<{', '.join(f'{name} = {text(value)}' for name, value in attributes.items())}>" if attributes else ""


Block = Callable[[Drawing, Drawn], Drawn]

# --- any rank --------------------------------------------------------------------------------------------------------


def channel_axis(x: Drawn) -> int:
    return 1 if len(x.shape) in (2, 4) else len(x.shape) - 1


def activation(d: Drawing, x: Drawn) -> Drawn:
    op = str(
        d.choose(
            "Relu",
            "Sigmoid",
            "Tanh",
            "Elu",
            "HardSigmoid",
            "LeakyRelu",
            "Abs",
            "Neg",
            "Identity",
            "Softplus",
            "Dropout",
        )
    )
    return d.of(op, x)


def clip(d: Drawing, x: Drawn) -> Drawn:
    if d.opset < 11:
        return d.of("Clip", x, min=-0.5, max=0.75)
    return d.add("Clip", [x.name, d.constant(-0.5, np.float32), d.constant(0.75, np.float32)], x.shape)


def along_channels(d: Drawing, x: Drawn) -> Drawn:
    """With a constant of one value a channel, or of one value, or of more."""
    axis, rank = channel_axis(x), len(x.shape)
    op = str(d.choose("Add", "Sub", "Mul", "Div", "PRelu"))
    full = [x.shape[axis] if each == axis else 1 for each in range(rank)]
    kind = d.choose("channel", "one", "places", "short")
    shape = {"one": [1], "places": [1, *x.shape[1:]], "short": full[axis:]}.get(str(kind), full)
    other = d.weight(*shape, positive=op == "Div")
    is_left = op != "PRelu" and op != "Div" and d.chance()
    return d.add(op, [other, x.name] if is_left else [x.name, other], x.shape)


def residual(d: Drawing, x: Drawn) -> Drawn:
    """With another tensor of the same sizes, if there is one."""
    others = [each for each in d.made if each.shape == x.shape and each.name != x.name]
    op = str(d.choose("Add", "Mul", "Max", "Sum"))
    if not others or (d.opset < 8 and op in ("Max", "Sum")):
        return x
    return d.add(op, [x.name, d.choose(*others).name], x.shape)  # type: ignore[attr-defined]


def joined(d: Drawing, x: Drawn) -> Drawn:
    """Along the channels, with another tensor or itself."""
    axis = channel_axis(x)
    fits = [each for each in d.made if len(each.shape) == len(x.shape) and each.shape[axis] <= 12
            and all(a == b for i, (a, b) in enumerate(zip(each.shape, x.shape, strict=True)) if i != axis)]  # fmt: skip
    other = d.choose(x, *fits)
    size = x.shape[axis] + other.shape[axis]  # type: ignore[attr-defined]
    if size > 24:
        return x
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return d.add("Concat", [x.name, other.name], shape, axis=axis)  # type: ignore[attr-defined]


def split(d: Drawing, x: Drawn) -> Drawn:
    """In two along the channels, joined again in another way."""
    axis, size = channel_axis(x), x.shape[channel_axis(x)]
    if size < 4:
        return x
    first = size // 2 if d.chance() else size // 3
    parts = [Drawn(d.name(), (*x.shape[:axis], each, *x.shape[axis + 1 :])) for each in (first, size - first)]
    inputs, attributes = [x.name], f"axis = {axis}"
    if d.opset >= 13:
        inputs.append(d.constant([first, size - first]))
    else:
        attributes += f", split = [{first}, {size - first}]"
    d.lines.append(f"{parts[0].name}, {parts[1].name} = Split<{attributes}>({', '.join(inputs)})")
    if first * 2 == size and d.chance():
        return d.add(str(d.choose("Mul", "Add")), [each.name for each in parts], parts[0].shape)
    return d.add("Concat", [parts[1].name, d.of("Tanh", parts[0]).name], x.shape, axis=axis)


def sliced(d: Drawing, x: Drawn) -> Drawn:
    axis, size = channel_axis(x), x.shape[channel_axis(x)]
    if size < 4:
        return x
    start, end, step = d.choose((1, size, 1), (0, -1, 1), (1, size - 1, 1), (0, 2**31 - 1, 2), (size - 1, -(2**31), -1))  # type: ignore[misc]
    length = len(range(size)[slice(start, None if end < -size else end, step)])
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    if d.opset < 10:
        if step != 1:
            return x
        return d.of("Slice", x, shape, axes=[axis], starts=[start], ends=[end])
    return d.add("Slice", [x.name, *(d.constant([each]) for each in (start, end, axis, step))], shape)


def gathered(d: Drawing, x: Drawn) -> Drawn:
    axis, size = channel_axis(x), x.shape[channel_axis(x)]
    order = [(3 * each + 1) % size for each in range(size)][: max(2, size - d.number(0, 1, 2))]
    shape = (*x.shape[:axis], len(order), *x.shape[axis + 1 :])
    return d.add("Gather", [x.name, d.constant(order)], shape, axis=axis)


def quantized(d: Drawing, x: Drawn) -> Drawn:
    if d.opset < 10:
        return x
    parts = [d.constant(0.05, np.float32), d.constant(128, np.uint8)]
    q = d.add("QuantizeLinear", [x.name, *parts], x.shape)
    d.made.pop()
    return d.add("DequantizeLinear", [q.name, *parts], x.shape)


def softmax(d: Drawing, x: Drawn) -> Drawn:
    return d.of("Softmax", x, axis=d.number(*range(1, len(x.shape))) if d.opset >= 13 else len(x.shape) - 1)


def mean_over(d: Drawing, x: Drawn) -> Drawn:
    """Over an axis that is no batch, kept."""
    axis = d.number(*range(1, len(x.shape)))
    shape = tuple(1 if each == axis else size for each, size in enumerate(x.shape))
    op = str(d.choose("ReduceMean", "ReduceMax", "ReduceSum"))
    mean = d.axes(op, x, [axis], shape, since=13 if op == "ReduceSum" else 18, keepdims=1)
    return d.add("Sub", [x.name, mean.name], x.shape)


def branch(d: Drawing, x: Drawn) -> Drawn:
    """Some blocks inside an If."""
    bodies = []
    condition = d.constant(True, np.bool_)
    shape = x.shape
    for which in ("then", "else"):
        inner = Drawing(d.draw, d.opset, d.is_dynamic, constants=d.constants, as_nodes=d.as_nodes, names=d.names)
        inner.made.append(x)
        wide = d.number(4, 6)
        y = linear(inner, activation(inner, linear(inner, x, wide)), x.shape[channel_axis(x)])
        if y.shape != shape:
            return x
        body = "; ".join(inner.lines).replace(";", " ")
        bodies.append(f"{which}_branch = {y.name}_{which} () => ({_type(y, d)}) {{ {body} }}")
    made = Drawn(d.name(), shape)
    d.lines.append(f"{made.name} = If({condition}) <{', '.join(bodies)}>")
    d.made.append(made)
    return made


def _type(x: Drawn, d: Drawing) -> str:
    sizes = ["N" if d.is_dynamic else str(x.shape[0]), *map(str, x.shape[1:])]
    return f"float[{', '.join(sizes)}] {x.name}"


def linear(d: Drawing, x: Drawn, outputs: int) -> Drawn:
    """Plain channels of one's own, for each rank."""
    axis, size = channel_axis(x), x.shape[channel_axis(x)]
    if len(x.shape) == 4:
        return d.add(
            "Conv", [x.name, d.weight(outputs, size, 1, 1), d.weight(outputs)], (x.shape[0], outputs, *x.shape[2:])
        )
    if len(x.shape) == 2:
        return d.add("Gemm", [x.name, d.weight(outputs, size), d.weight(outputs)], (x.shape[0], outputs), transB=1)
    assert axis == len(x.shape) - 1
    made = d.add("MatMul", [x.name, d.weight(size, outputs)], (*x.shape[:-1], outputs))
    return d.add("Add", [made.name, d.weight(outputs)], made.shape)


ANY = [activation, activation, clip, along_channels, along_channels, residual, residual, joined, split, sliced,
       gathered, quantized, softmax, mean_over, branch]  # fmt: skip

# --- pictures (N, C, H, W) -------------------------------------------------------------------------------------------


def convolution(d: Drawing, x: Drawn) -> Drawn:
    """Plain, in groups, or depthwise; padded or not."""
    channels, (height, width) = x.shape[1], x.shape[2:]
    group = d.number(*[each for each in (1, 1, 2, 3, channels) if channels % each == 0])
    outputs = group * d.number(*([1, 2] if group == channels else [2, 3])) if group > 1 else d.number(4, 6, 8)
    if outputs > 24:
        return x
    kernel = d.number(1, 3)
    inputs = [
        x.name,
        d.weight(outputs, channels // group, kernel, kernel),
        *([d.weight(outputs)] if d.chance() else []),
    ]
    pad = kernel // 2
    return d.add("Conv", inputs, (x.shape[0], outputs, height, width), group=group, pads=[pad] * 4)


def convolution_back(d: Drawing, x: Drawn) -> Drawn:
    channels = x.shape[1]
    group = d.number(*[each for each in (1, 1, 2, channels) if channels % each == 0])
    outputs = d.number(2, 3) if group > 1 else d.number(4, 6)
    if outputs * group > 24:
        return x
    inputs = [x.name, d.weight(channels, outputs, 3, 3), *([d.weight(outputs * group)] if d.chance() else [])]
    return d.add("ConvTranspose", inputs, (x.shape[0], outputs * group, *x.shape[2:]), group=group, pads=[1] * 4)


def normalization(d: Drawing, x: Drawn) -> Drawn:
    count = x.shape[1]
    if d.chance():
        return d.add("InstanceNormalization", [x.name, d.weight(count), d.weight(count)], x.shape)
    inputs = [x.name, *(d.weight(count) for _ in range(3)), d.weight(count, positive=True)]
    return d.add("BatchNormalization", inputs, x.shape)


def pool(d: Drawing, x: Drawn) -> Drawn:
    op = str(d.choose("MaxPool", "AveragePool", "LpPool"))
    return d.of(op, x, kernel_shape=[3, 3], pads=[1] * 4)


def global_pool(d: Drawing, x: Drawn) -> Drawn:
    """To (N, C), in one of four ways."""
    kind = d.choose("flatten", "squeeze", "reshape", "mean")
    if kind == "mean":
        return d.axes("ReduceMean", x, [2, 3], x.shape[:2], since=18, keepdims=0)
    pooled = d.of("GlobalAveragePool", x, (*x.shape[:2], 1, 1))
    if kind == "squeeze":
        return d.axes("Squeeze", pooled, [2, 3], x.shape[:2])
    return d.of("Flatten", pooled, x.shape[:2], axis=1) if kind == "flatten" else d.reshape(pooled, x.shape[1])


def excited(d: Drawing, x: Drawn) -> Drawn:
    """Squeeze and excite."""
    pooled = d.of("GlobalAveragePool", x, (*x.shape[:2], 1, 1))
    less = d.of("Relu", linear(d, pooled, 4))
    return d.add("Mul", [x.name, d.of("Sigmoid", linear(d, less, x.shape[1])).name], x.shape)


def resized(d: Drawing, x: Drawn) -> Drawn:
    scales = d.constant([1, 1, 2, 2], np.float32)
    if x.shape[2] > 4:
        return x
    shape = (*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2)
    if d.opset < 9:
        return d.of("Upsample", x, shape, scales=[1.0, 1.0, 2.0, 2.0])
    if d.opset < 10:
        return d.add("Upsample", [x.name, scales], shape)
    if d.opset < 11:
        return d.add("Resize", [x.name, scales], shape)
    if d.chance():
        sizes = d.constant(shape)
        if d.is_dynamic:
            return x
        return d.add(
            "Resize",
            [x.name, "", "", sizes]
            if d.opset >= 13
            else [x.name, d.constant([], np.float32), d.constant([], np.float32), sizes],
            shape,
        )
    return d.add("Resize", [x.name, d.constant([], np.float32), scales], shape)


def extended(d: Drawing, x: Drawn) -> Drawn:
    pads = [0, 0, 1, 1, 0, 0, 1, 0]
    shape = (*x.shape[:2], x.shape[2] + 2, x.shape[3] + 1)
    if shape[2] > 9:
        return x
    if d.opset < 11:
        return d.of("Pad", x, shape, pads=pads, value=0.5)
    return d.add("Pad", [x.name, d.constant(pads), d.constant(0.5, np.float32)], shape)


def channels_last(d: Drawing, x: Drawn) -> Drawn:
    """Something along the last axis between two Transposes."""
    turned = d.of("Transpose", x, (x.shape[0], *x.shape[2:], x.shape[1]), perm=[0, 2, 3, 1])
    changed = d.add("Mul", [turned.name, d.weight(x.shape[1])], turned.shape)
    if d.chance():
        changed = d.add("MatMul", [changed.name, d.weight(x.shape[1], 6)], (*turned.shape[:3], 6))
    return d.of("Transpose", changed, (x.shape[0], changed.shape[3], *x.shape[2:]), perm=[0, 3, 1, 2])


def spread(d: Drawing, x: Drawn) -> Drawn:
    """DepthToSpace of channels of one's own."""
    if x.shape[2] > 4:
        return x
    wide = linear(d, x, 12)
    mode = {} if d.opset < 11 else {"mode": str(d.choose("DCR", "CRD"))}
    return d.of("DepthToSpace", wide, (x.shape[0], 3, x.shape[2] * 2, x.shape[3] * 2), blocksize=2, **mode)


def flattened(d: Drawing, x: Drawn) -> Drawn:
    count = math.prod(x.shape[1:])
    return d.of("Flatten", x, (x.shape[0], count), axis=1) if d.chance() else d.reshape(x, count)


def tokens(d: Drawing, x: Drawn) -> Drawn:
    """(N, C, H, W) to (N, H W, C)"""
    places = x.shape[2] * x.shape[3]
    flat = d.reshape(x, x.shape[1], places)
    return d.of("Transpose", flat, (x.shape[0], places, x.shape[1]), perm=[0, 2, 1])


def expanded(d: Drawing, x: Drawn) -> Drawn:
    if d.opset < 9:
        return x
    pooled = d.of("GlobalMaxPool", x, (*x.shape[:2], 1, 1))
    shape = [1, 1, *x.shape[2:]] if d.is_dynamic or d.chance() else list(x.shape)
    return d.add("Expand", [pooled.name, d.constant(shape)], x.shape)


PICTURES = [convolution, convolution, convolution, convolution_back, normalization, pool, excited, resized, extended,
            channels_last, spread, flattened, tokens, global_pool, expanded, *ANY]  # fmt: skip

# --- rows (N, C) and sequences (N, L, C) -----------------------------------------------------------------------------


def gemm(d: Drawing, x: Drawn) -> Drawn:
    outputs, trans = d.number(4, 6, 8), d.number(0, 1)
    size = x.shape[1]
    weight = d.weight(outputs, size) if trans else d.weight(size, outputs)
    more = [d.weight(outputs)] if d.chance() or d.opset < 11 else []
    return d.add("Gemm", [x.name, weight, *more], (x.shape[0], outputs), transB=trans, alpha=0.5)


def product(d: Drawing, x: Drawn) -> Drawn:
    return (
        linear(d, x, d.number(4, 6, 8))
        if len(x.shape) == 3
        else d.add("MatMul", [x.name, d.weight(x.shape[1], 6)], (x.shape[0], 6))
    )


def as_picture(d: Drawing, x: Drawn) -> Drawn:
    size = x.shape[1]
    places = next((each for each in (4, 2, 1) if size % (each * each) == 0), 1)
    return d.reshape(x, size // places**2, places, places)


def as_sequence(d: Drawing, x: Drawn) -> Drawn:
    return d.axes("Unsqueeze", x, [1], (x.shape[0], 1, x.shape[1]))


def layer_norm(d: Drawing, x: Drawn) -> Drawn:
    if d.opset < 17:
        return x
    size = x.shape[-1]
    return d.add("LayerNormalization", [x.name, d.weight(size), d.weight(size)], x.shape, axis=-1)


def hidden(d: Drawing, x: Drawn) -> Drawn:
    """A block of a transformer: hidden units, added back."""
    wide = activation(d, linear(d, x, d.number(6, 8)))
    return d.add("Add", [x.name, linear(d, wide, x.shape[-1]).name], x.shape)


def attention(d: Drawing, x: Drawn) -> Drawn:
    """Heads, with the sizes stated or computed."""
    length, size = x.shape[1:]
    heads, width = d.number(2, 3), d.number(2, 4)
    parts = []
    for which in range(3):
        wide = linear(d, x, heads * width)
        apart = d.reshape(wide, length, heads, width)
        order = [0, 2, 3, 1] if which == 1 else [0, 2, 1, 3]
        shape = tuple(apart.shape[each] for each in order)
        parts.append(d.of("Transpose", apart, shape, perm=order))
    scores = d.add("MatMul", [parts[0].name, parts[1].name], (x.shape[0], heads, length, length))
    scaled = d.add("Mul", [scores.name, d.constant(0.5, np.float32)], scores.shape)
    weights = d.of("Softmax", scaled, axis=3)
    mixed = d.add("MatMul", [weights.name, parts[2].name], parts[2].shape)
    turned = d.of("Transpose", mixed, (x.shape[0], length, heads, width), perm=[0, 2, 1, 3])
    return linear(d, d.reshape(turned, length, heads * width), size)


def recurrent(d: Drawing, x: Drawn) -> Drawn:
    """Over a sequence (L, N, C), in one or two directions."""
    op, size = str(d.choose("LSTM", "GRU", "RNN")), d.number(3, 4)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    both = d.number(1, 2)
    turned = d.of("Transpose", x, (x.shape[1], x.shape[0], x.shape[2]), perm=[1, 0, 2])
    inputs = [turned.name, d.weight(both, gates * size, x.shape[2]), d.weight(both, gates * size, size)]
    if d.chance():
        inputs.append(d.weight(both, 2 * gates * size))
        if d.chance() and not d.is_dynamic:
            inputs += ["", d.weight(both, x.shape[0], size)]
    out, last = Drawn(d.name(), (x.shape[1], both, x.shape[0], size)), d.name()
    direction = '"bidirectional"' if both == 2 else str(d.choose('"forward"', '"reverse"'))
    d.lines.append(f"{out.name}, {last} = {op}<hidden_size = {size}, direction = {direction}>({', '.join(inputs)})")
    d.made.pop()
    if both == 2 or d.chance():
        mixed = d.of("Transpose", out, (x.shape[0], x.shape[1], both, size), perm=[2, 0, 1, 3])
        d.made.pop()
        return d.reshape(mixed, x.shape[1], both * size)
    single = d.axes("Squeeze", out, [1], (x.shape[1], x.shape[0], size))
    d.made.pop()
    return d.of("Transpose", single, (x.shape[0], x.shape[1], size), perm=[1, 0, 2])


def convolved(d: Drawing, x: Drawn) -> Drawn:
    """Conv of one dimension over the sequence."""
    turned = d.of("Transpose", x, (x.shape[0], x.shape[2], x.shape[1]), perm=[0, 2, 1])
    d.made.pop()
    made = d.add("Conv", [turned.name, d.weight(6, x.shape[2], 3)], (x.shape[0], 6, x.shape[1]), pads=[1, 1])
    d.made.pop()
    return d.of("Transpose", made, (x.shape[0], x.shape[1], 6), perm=[0, 2, 1])


def summed_up(d: Drawing, x: Drawn) -> Drawn:
    if d.chance():
        return d.axes("ReduceMean", x, [1], (x.shape[0], x.shape[2]), since=18, keepdims=0)
    return d.add("Gather", [x.name, d.constant(0)], (x.shape[0], x.shape[2]), axis=1)


ROWS: list[Block] = [gemm, gemm, product, as_picture, as_sequence, *ANY]
SEQUENCES: list[Block] = [product, product, layer_norm, hidden, attention, attention, recurrent, convolved, summed_up,
                          *ANY]  # fmt: skip
BLOCKS: dict[int, list[Block]] = {2: ROWS, 3: SEQUENCES, 4: PICTURES}
STARTS: list[Shape] = [(BATCH, 3, 4, 4), (BATCH, 6), (BATCH, LENGTH, 6)]


@st.composite
def networks(draw: st.DrawFn, *, max_blocks: int = 8) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one to ``max_blocks`` blocks between two linear operators, and its input."""
    opset = draw(st.sampled_from(OPSETS))
    d = Drawing(draw, opset, draw(st.booleans()))
    x = Drawn("x", draw(st.sampled_from(STARTS)))
    y = linear(d, x, draw(st.sampled_from([4, 6, 8])))
    for _ in range(draw(st.integers(1, max_blocks))):
        y = draw(st.sampled_from(BLOCKS[len(y.shape)]))(d, y)
    y = linear(d, y, 3)
    body = f"g ({_type(x, d)}) => ({_type(y, d)}) {{ {'  '.join(d.lines)} }}"
    proto = model(body, opset=opset)
    for name, values in d.constants.items():
        tensor = numpy_helper.from_array(values, name)
        if name in d.as_nodes:
            proto.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        else:
            proto.graph.initializer.append(tensor)
    onnx.checker.check_model(proto)
    return proto, {"x": np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)}
