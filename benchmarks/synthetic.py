"""Models of random weights in families of growing size, and inputs for them: what benchmarks/cost.py measures on.

    t1 t10 t100 t1000   transformer encoders of so many million parameters (64 tokens, LayerNormalization, Erf-GELU)
    c1 c10 c60          residual networks, likewise (basic blocks, basic blocks, 50 bottleneck blocks; 96 x 96 pixels)
    g500 g5000 g20000   graphs of so many nodes, each tenth a MatMul of 16 x 16, with shape arithmetic around
    w3000               3,000 weights of 9 x 9, 1 MB in all
    m4000               a chain of 16 MatMuls of 256 MB each, 4 GB in all

The same bytes each time: every weight is drawn from the seed of its own name. What is larger than protobuf holds has
its data in a file beside it, written weight by weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
TOKENS, VOCABULARY_STEP = 64, 1024
PIXELS, PATCH, IMAGE_AXES = 96, 48, 3
CLASSES = 10
OUTSIDE_BYTES = 1024  # ONNX Runtime infers shapes from smaller tensors, which it does not look for in another file
SAMPLES = 64

Arrays = dict[str, NDArray[np.generic]]


@dataclass
class Network:
    """A graph under construction: nodes named after their outputs, weights drawn by name; their data go to ``file``."""

    file: BinaryIO | None = None
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    parameters: int = 0

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node; gives its output."""
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, *shape: int, scale: float) -> str:
        """Add a weight of normal values."""
        return self.constant(name, self._normal(name, *shape) * np.float32(scale))

    def _normal(self, name: str, *shape: int) -> NDArray[np.float32]:
        return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)

    def dense(self, name: str, rows: int, columns: int) -> str:
        """A weight under which values keep their magnitude."""
        return self.weight(name, rows, columns, scale=rows**-0.5)

    def filters(self, name: str, after: int, before: int, kernel: int) -> str:
        """Convolution kernels, likewise; each of mean 0, so that the mean of all channels does not outgrow the rest."""
        values = self._normal(name, after, before, kernel, kernel)
        values -= values.mean(axis=(1, 2, 3), keepdims=True)
        return self.constant(name, values * np.float32((2 / (before * kernel**2)) ** 0.5))

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add an initializer of these values."""
        self.parameters += values.size
        self.initializers.append(
            self._outside(name, values)
            if self.file is not None and values.nbytes >= OUTSIDE_BYTES
            else numpy_helper.from_array(values, name)
        )
        return name

    def _outside(self, name: str, values: NDArray[np.generic]) -> TensorProto:
        assert self.file is not None
        tensor = TensorProto(name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": Path(self.file.name).name, "offset": self.file.tell(), "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        values.tofile(self.file)
        return tensor


@dataclass(frozen=True)
class Synthetic:
    """How to make a model. family: those of one family are of one kind and grow. build: adds to a network what lies
    between the input and the output that it names. shape: of one sample; width: of its output; tokens: how many ids
    there are, where it takes ids. outside: whether its weights lie in a file of their own."""

    family: str
    build: Callable[[Network], str]
    shape: tuple[int, ...]
    width: int = CLASSES
    tokens: int = 0
    outside: bool = False
    samples: int = SAMPLES

    def inputs(self, samples: int) -> Arrays:
        """That many samples, the first of them the same whatever the number."""
        rng = np.random.default_rng(0)
        if self.tokens:
            return {"x": rng.integers(0, self.tokens, (samples, *self.shape), np.int64)}
        if len(self.shape) == IMAGE_AXES:  # of patches: the mean over noise is the same for all
            coarse = rng.standard_normal((samples, self.shape[0], PIXELS // PATCH, PIXELS // PATCH), np.float32)
            return {"x": coarse.repeat(PATCH, axis=2).repeat(PATCH, axis=3)}
        return {"x": rng.standard_normal((samples, *self.shape), np.float32)}


def write(name: str, folder: Path) -> None:
    """Make ``calib.npz`` and ``model.onnx`` in a folder."""
    made = SYNTHETIC[name]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "calib.npz", **made.inputs(made.samples))  # type: ignore[arg-type]
    write_model(made, folder / "model.onnx")


def write_model(made: Synthetic, path: Path) -> None:
    """Write the model and, where its weights lie outside, ``<path>.data``, with one weight in memory at a time."""
    if made.outside:
        with path.with_name(f"{path.name}.data").open("wb") as file:
            model = build(made, Network(file))
    else:
        model = build(made, Network())
    onnx.save(model, path)


def size_of(name: str) -> int:
    """What the growth of a model's family goes by: the number in its name, millions of parameters or nodes."""
    return int(name[1:])


def build(made: Synthetic, network: Network) -> onnx.ModelProto:
    """The model; its weights go where the network puts them."""
    network.nodes.append(helper.make_node("Identity", [made.build(network)], ["y"], name="y"))
    kind = TensorProto.INT64 if made.tokens else TensorProto.FLOAT
    ends = (
        helper.make_tensor_value_info("x", kind, ["batch", *made.shape]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", made.width]),
    )
    graph = helper.make_graph(network.nodes, "synthetic", [ends[0]], [ends[1]], network.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


# --- transformers ---


def transformer(width: int, layers: int, vocabulary: int, heads: int) -> Callable[[Network], str]:
    """Embedding, encoder blocks, the first token, classes."""

    def built(net: Network) -> str:
        x = net.node("Gather", net.weight("embedding", vocabulary, width, scale=1.0), "x")
        for index in range(layers):
            seen = _attention(net, f"l{index}", x, width, heads)
            x = _normalized(net, f"l{index}.a", net.node("Add", x, seen), width)
            inner = _gelu(net, f"l{index}", _affine(net, f"l{index}.up", x, width, 4 * width))
            inner = _affine(net, f"l{index}.down", inner, 4 * width, width)
            x = _normalized(net, f"l{index}.b", net.node("Add", x, inner), width)
        first = net.node("Gather", x, net.constant("first", np.array(0, np.int64)), axis=1)
        return _affine(net, "classes", first, width, CLASSES)

    return built


def _affine(net: Network, name: str, x: str, rows: int, columns: int) -> str:
    product = net.node("MatMul", x, net.dense(f"{name}.w", rows, columns))
    return net.node("Add", product, net.weight(f"{name}.b", columns, scale=0.1))


def _attention(net: Network, name: str, x: str, width: int, heads: int) -> str:
    if not any(each.name == "split" for each in net.initializers):
        net.constant("split", np.array([0, 0, heads, width // heads], np.int64))
        net.constant("joined", np.array([0, 0, width], np.int64))
        net.constant("root", np.float32(np.sqrt(width / heads)).reshape(()))
    query, key, value = (
        net.node("Reshape", _affine(net, f"{name}.{each}", x, width, width), "split") for each in "qkv"
    )
    scores = net.node(
        "MatMul", net.node("Transpose", query, perm=[0, 2, 1, 3]), net.node("Transpose", key, perm=[0, 2, 3, 1])
    )
    shares = net.node("Softmax", net.node("Div", scores, "root"), axis=-1)
    seen = net.node("MatMul", shares, net.node("Transpose", value, perm=[0, 2, 1, 3]))
    joined = net.node("Reshape", net.node("Transpose", seen, perm=[0, 2, 1, 3]), "joined")
    return _affine(net, f"{name}.o", joined, width, width)


def _normalized(net: Network, name: str, x: str, width: int) -> str:
    scale = net.constant(f"{name}.scale", np.ones(width, np.float32))
    return net.node("LayerNormalization", x, scale, net.weight(f"{name}.shift", width, scale=0.1))


def _gelu(net: Network, name: str, x: str) -> str:
    root, one, half = (
        net.constant(f"{name}.{each}", np.array(value, np.float32))
        for each, value in (("root2", 2**0.5), ("one", 1), ("half", 0.5))
    )
    erf = net.node("Erf", net.node("Div", x, root))
    return net.node("Mul", net.node("Mul", x, net.node("Add", erf, one)), half)


# --- residual networks ---


def residual(widths: Sequence[int], blocks: Sequence[int], bottleneck: int = 1) -> Callable[[Network], str]:
    """A stem, stages of blocks, the mean over the pixels, classes. bottleneck: by which blocks widen at their ends."""

    def built(net: Network) -> str:
        x = net.node("Relu", _convolution(net, "stem", "x", 3, widths[0], kernel=7, stride=2))
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if index == 0 and stage else 1
                x = _block(net, f"s{stage}.{index}", x, channels, width, stride, bottleneck)
                channels = width * bottleneck
        pooled = net.node("Flatten", net.node("GlobalAveragePool", x))
        return _affine(net, "classes", pooled, channels, CLASSES)

    return built


def _block(net: Network, name: str, x: str, channels: int, width: int, stride: int, bottleneck: int) -> str:
    if bottleneck == 1:
        steps = [(channels, width, 3, stride), (width, width, 3, 1)]
    else:
        steps = [(channels, width, 1, 1), (width, width, 3, stride), (width, width * bottleneck, 1, 1)]
    inner = x
    for index, (before, after, kernel, step) in enumerate(steps):
        inner = _convolution(net, f"{name}.{index}", inner, before, after, kernel=kernel, stride=step)
        inner = net.node("Relu", inner) if index < len(steps) - 1 else inner
    if stride > 1 or channels != width * bottleneck:
        x = _convolution(net, f"{name}.beside", x, channels, width * bottleneck, kernel=1, stride=stride)
    return net.node("Relu", net.node("Add", x, inner))


def _convolution(net: Network, name: str, x: str, before: int, after: int, *, kernel: int, stride: int) -> str:
    weight = net.filters(f"{name}.w", after, before, kernel)
    pads = [kernel // 2] * 4
    made = net.node("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
    ones = np.ones(after, np.float32)
    scale, variance = net.constant(f"{name}.scale", ones), net.constant(f"{name}.variance", ones)
    shift, mean = (net.weight(f"{name}.{each}", after, scale=0.1) for each in ("shift", "mean"))
    return net.node("BatchNormalization", made, scale, shift, mean, variance)


# --- many nodes, many weights, large weights ---


def many_nodes(count: int, width: int = 16) -> Callable[[Network], str]:
    """Ten nodes a time: a batch size taken from a shape to a Reshape, a product, what it is added to."""

    def built(net: Network) -> str:
        net.constant("first", np.array(0, np.int64))
        net.constant("axes", np.array([0], np.int64))
        net.constant("width", np.array([width], np.int64))
        half = net.constant("half", np.array(0.5, np.float32))
        x = "x"
        for index in range(count // 10):
            batch = net.node("Unsqueeze", net.node("Gather", net.node("Shape", x), "first"), "axes")
            rows = net.node("Reshape", x, net.node("Concat", batch, "width", axis=0))
            shifted = _affine(net, f"g{index}", rows, width, width)
            x = net.node("Add", net.node("Mul", "x", half), net.node("Relu", shifted))  # each step sees the input
        return x

    return built


def many_weights(count: int, width: int = 9) -> Callable[[Network], str]:
    """Small products, each added to what it was made of."""

    def built(net: Network) -> str:
        x = "x"
        for index in range(count):
            x = net.node("Tanh", net.node("Add", x, net.node("MatMul", x, net.dense(f"w{index}", width, width))))
        return x

    return built


def large_weights(count: int, width: int = 8192) -> Callable[[Network], str]:
    """A chain of products; a weight of 8192 x 8192 values has 256 MB."""

    def built(net: Network) -> str:
        x = "x"
        for index in range(count):
            x = net.node("MatMul", x, net.dense(f"w{index}", width, width))
        return x

    return built


def large(count: int) -> Synthetic:
    """A model of that many weights of 256 MB."""
    return Synthetic("m", large_weights(count), (8192,), 8192, outside=True, samples=8)


def _ids(width: int, layers: int, vocabulary: int, heads: int, *, outside: bool = False) -> Synthetic:
    built = transformer(width, layers, vocabulary * VOCABULARY_STEP, heads)
    return Synthetic("t", built, (TOKENS,), tokens=vocabulary * VOCABULARY_STEP, outside=outside)


def _pixels(widths: Sequence[int], blocks: Sequence[int], bottleneck: int = 1) -> Synthetic:
    return Synthetic("c", residual(widths, blocks, bottleneck), (3, PIXELS, PIXELS))


SYNTHETIC = {
    "t1": _ids(128, 4, 2, 4),
    "t10": _ids(320, 6, 8, 5),
    "t100": _ids(768, 12, 20, 12),
    "t1000": _ids(1792, 24, 40, 14, outside=True),
    "c1": _pixels((32, 64, 128), (2, 2, 3)),
    "c10": _pixels((64, 128, 256, 472), (2, 2, 2, 2)),
    "c60": _pixels((64, 128, 256, 512), (3, 8, 36, 3), 4),
    **{f"g{count}": Synthetic("g", many_nodes(count), (16,), 16) for count in (500, 5000, 20000)},
    "w3000": Synthetic("w", many_weights(3000), (9,), 9),
    "m4000": large(16),
}
