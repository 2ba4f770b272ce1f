"""Integer weights, integer biases and the scales of activations, as what is trained of a quantized model.

    DQ(W_int8, s)            ->   W, float, on the grid of s            put back as W_int8 = round(W / s), s
    Q(x, s), DQ(.., s)       ->   s, one parameter for the pair         put back as it is
    DQ(b_int32, s_x s_w)     ->   b, float                              put back as round(b / (s_x s_w))

A private copy has the floats; the model that is written has the integers. A bias stands in the unit of the accumulator,
so it is written anew whenever one of the two scales has moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_value, is_onnx, producer
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.numerics.encodings.encoding import Encoding, GridEncoding

CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
FLOAT_SUFFIX = " as floats"
HANDING_ON = frozenset({
    "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity", "Gather",
    "Concat", "DepthToSpace", "SpaceToDepth", "Resize",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A constant of small integers that one DequantizeLinear of the main graph reads. name: of the integers."""

    name: str
    node: Node
    encoding: GridEncoding
    lowest: int

    @property
    def float_name(self) -> str:
        """What the floats are called in a private copy."""
        return self.name + FLOAT_SUFFIX

    @property
    def values(self) -> Array:
        """What the integers stand for, float32."""
        codes = np.asarray(self.node.inputs[0].values).astype(np.int32) - self.lowest
        return self.encoding.decode(codes.astype(np.uint8), codes.shape)

    def put(self, graph: Graph, values: Array, encoding: Encoding) -> None:
        """Write values that the encoding makes as integers, with its scale."""
        assert isinstance(encoding, GridEncoding)
        codes = encoding.encode(values)
        assert codes is not None and encoding.scale is not None
        old, scale = self.node.inputs[0], self.node.inputs[1]
        integers = codes.astype(np.int32) + self.lowest
        give(graph, [(self.node, 0)], integers.astype(old.dtype))
        give(graph, [(self.node, 1)], encoding.scale.reshape(tuple(scale.shape)).astype(scale.dtype))


@dataclass(frozen=True, eq=False)
class IntegerBias:
    """A constant of int32 that one DequantizeLinear of the main graph reads for a linear node."""

    name: str
    node: Node
    reader: Node

    @property
    def float_name(self) -> str:
        return self.name + FLOAT_SUFFIX

    @property
    def values(self) -> Array:
        """float32."""
        codes = np.asarray(self.node.inputs[0].values).astype(np.float64)
        return (codes * np.asarray(self.node.inputs[1].values, np.float64)).astype(np.float32)

    def put(self, graph: Graph, values: Array) -> None:
        """Write the floats in the unit of the accumulator as it is now."""
        scale = self._unit()
        if scale is None:
            scale = np.asarray(self.node.inputs[1].values, np.float64)
        codes = np.rint(values.astype(np.float64) / np.where(scale == 0, 1, scale))
        limits = np.iinfo(np.int32)
        give(graph, [(self.node, 0)], np.clip(codes, limits.min, limits.max).astype(np.int32))
        give(graph, [(self.node, 1)], scale.astype(np.float32))

    def _unit(self) -> Array | None:
        """The scale of what the linear node reads times that of its weight, in the form of the bias's own scale."""
        makers = [producer(each) for each in self.reader.inputs[:2]]
        if any(each is None or each.op != "DequantizeLinear" for each in makers):
            return None
        found = [constant_value(each.inputs[1]) for each in makers if each is not None]
        if any(each is None for each in found):
            return None
        left, right = (np.asarray(each, np.float64).reshape(-1) for each in found)
        unit = left * right
        shape = tuple(self.node.inputs[1].shape)
        if unit.size == int(np.prod(shape)):
            return np.asarray(unit.reshape(shape))
        return np.resize(unit, shape) if unit.size == 1 else None


@dataclass(frozen=True, eq=False)
class ActivationScale:
    """The scale of QuantizeLinear and DequantizeLinear nodes that go together. name: of the first one's constant."""

    name: str
    constant: Constant
    places: Sequence[tuple[Node, int]]

    def put(self, graph: Graph, values: Array) -> None:
        """Write another scale at all of them."""
        give(graph, self.places, values.astype(self.constant.dtype))


def integer_weights(graph: Graph) -> list[IntegerWeight]:
    """Those of the main graph whose scale and zero point are constants."""
    found = []
    for node in _decoders(graph):
        codes = node.inputs[0]
        if str(codes.dtype) not in CODES or len(codes.shape) < 2 or len(codes.outputs) != 1:
            continue
        made = _grid(node, graph)
        if made is not None:
            found.append(IntegerWeight(graph.main.key(codes.name), node, *made))
    return found


def integer_biases(graph: Graph) -> list[IntegerBias]:
    """Those of the main graph that one linear node reads."""
    found = []
    for node in _decoders(graph):
        codes, readers = node.inputs[0], list(node.outputs[0].outputs)
        is_bias = codes.dtype == np.int32 and len(codes.outputs) == 1 and len(readers) == 1
        if is_bias and len(readers[0].inputs) > 2 and readers[0].inputs[2] is node.outputs[0]:
            found.append(IntegerBias(graph.main.key(codes.name), node, readers[0]))
    return found


def activation_scales(graph: Graph) -> list[ActivationScale]:
    """The scales of what is computed, each for all nodes that must agree on it: a pair of quantizing and dequantizing,
    and pairs around what only hands values on."""
    groups: dict[Node, Node] = {}

    def first(node: Node) -> Node:
        while groups[node] is not node:
            node = groups[node]
        return node

    nodes = [node for node in graph.main.graph.nodes if _is_of_activation(node, graph)]
    groups.update((node, node) for node in nodes)
    for node in nodes:
        for other in _agreeing(node):
            if other in groups and _same_scale(node, other):
                groups[first(other)] = first(node)
    together: dict[Node, list[Node]] = {}
    for node in nodes:
        together.setdefault(first(node), []).append(node)
    found = []
    for several in together.values():
        constant = several[0].inputs[1]
        if any(each.op == "QuantizeLinear" for each in several):
            found.append(ActivationScale(graph.main.key(constant.name), constant, [(each, 1) for each in several]))
    return _apart(found)


def show_floats(graph: Graph, names: Collection[str]) -> None:
    """Put floats in the place of integers, of those that are named, and one constant in that of scales that agree."""
    for weight in integer_weights(graph):
        if weight.float_name in names:
            _replace(graph, weight.node, weight.float_name, weight.values)
    for bias in integer_biases(graph):
        if bias.float_name in names:
            _replace(graph, bias.node, bias.float_name, bias.values)
    for scale in activation_scales(graph):
        if scale.name in names:
            for node, index in scale.places:
                node.inputs[index] = scale.constant


def put_integers(graph: Graph, made: Mapping[str, tuple[Array, Encoding | None]]) -> set[str]:
    """Write trained floats and scales back; gives the names that were some of these."""
    biases = {each.name: each for each in integer_biases(graph)}
    kept = {name: made[each.float_name][0] if each.float_name in made else each.values for name, each in biases.items()}
    used = {each.float_name for each in biases.values() if each.float_name in made}
    touched = bool(used)
    for scale in activation_scales(graph):
        if scale.name in made:
            scale.put(graph, made[scale.name][0])
            used.add(scale.name)
    for weight in integer_weights(graph):
        if weight.float_name in made:
            values, encoding = made[weight.float_name]
            if encoding is not None:
                weight.put(graph, values, encoding)
            used.add(weight.float_name)
    if touched or used:
        for name, values in kept.items():
            biases[name].put(graph, values)
    return used


def give(graph: Graph, places: Sequence[tuple[Node, int]], values: Array) -> None:
    """Let nodes read other values: in their own constant where nobody else reads it, else in a new one."""
    constant = places[0][0].inputs[places[0][1]]
    nodes = [node for node, _ in places]
    if np.array_equal(constant.values, values) and all(node.inputs[index] is constant for node, index in places):
        return
    alone = all(any(reader is node for node in nodes) for reader in constant.outputs)
    reads = [(node, index) for node in nodes for index, tensor in enumerate(node.inputs) if tensor is constant]
    others = any(each not in places for each in reads)
    if alone and not others and not graph.is_output(constant) and tuple(constant.shape) == values.shape:
        constant.values = values
        target = constant
    else:
        target = graph.constant(graph.main, constant.name, values)
    for node, index in places:
        node.inputs[index] = target


# --- what stands where -----------------------------------------------------------------------------------


def _decoders(graph: Graph) -> Iterator[Node]:
    """The DequantizeLinear nodes of the main graph whose operands are all constants of it."""
    for node in graph.main.graph.nodes:
        if not is_onnx(node, "DequantizeLinear") or graph.is_output(node.outputs[0]):
            continue
        if all(_is_own(each, graph) for each in node.inputs if each.name) and node.inputs[1].dtype == np.float32:
            yield node


def _is_own(tensor: Any, graph: Graph) -> bool:
    return isinstance(tensor, Constant) and graph.scope_of(tensor) is graph.main and not graph.is_output(tensor)


def _grid(node: Node, graph: Graph) -> tuple[GridEncoding, int] | None:
    """The encoding of a decoder's floats and its lowest integer, None for a layout that no encoding has."""
    codes, scale = np.asarray(node.inputs[0].values).astype(np.int32), np.asarray(node.inputs[1].values)
    points = np.asarray(node.inputs[2].values).astype(np.int32) if len(node.inputs) > 2 and node.inputs[2].name else 0
    axis, block, shape = _layout(node, codes.shape, scale)
    if shape is None or not codes.size:
        return None
    zero = np.broadcast_to(points, scale.shape).reshape(shape) if np.ndim(points) else np.asarray(points)
    lowest, highest = _range(str(node.inputs[0].dtype), codes, zero)
    encoding = GridEncoding(
        dtype="float32",
        levels=highest - lowest + 1,
        zero_point=(zero - lowest).astype(np.int16),
        scale=scale.reshape(shape),
        axis=axis,
        block_size=block,
    )
    return (encoding, lowest) if encoding.fits(codes.shape) else None


def _layout(
    node: Node, shape: tuple[int, ...], scale: Array
) -> tuple[int | None, int | None, tuple[int, ...] | None]:
    """Axis, block size, and the shape in which the encoding wants the scale."""
    if scale.size == 1:
        return None, None, ()
    axis = int(node.attrs.get("axis", 1)) % len(shape)
    if scale.ndim == 1 and scale.size == shape[axis]:
        return axis, None, tuple(scale.size if each == axis else 1 for each in range(len(shape)))
    block = int(node.attrs.get("block_size", 0) or 0)
    fits = block and scale.ndim == len(shape) and scale.shape[axis] * block == shape[axis]
    if not fits:
        return None, None, None
    return axis, block, (*scale.shape[: axis + 1], 1, *scale.shape[axis + 1 :])


def _range(dtype: str, codes: Array, zero: Array) -> tuple[int, int]:
    """The integers that may be used: of a symmetric grid no more to either side than are, as targets may demand."""
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if not dtype.startswith("u") and not zero.any():
        limit = max(int(np.abs(codes).max()), 1)
        return max(low, -limit), min(high, limit)
    return low, high


def _is_of_activation(node: Node, graph: Graph) -> bool:
    """Whether the node quantizes or dequantizes what is computed, by a scale of float32 that is a constant."""
    if not is_onnx(node, "QuantizeLinear", "DequantizeLinear") or isinstance(node.inputs[0], Constant):
        return False
    return _is_own(node.inputs[1], graph) and node.inputs[1].dtype == np.float32


def _agreeing(node: Node) -> Iterator[Node]:
    """The nodes that read what this one makes, past those that only hand values on after dequantizing."""
    waiting = list(node.outputs[0].outputs)
    while waiting:
        reader = waiting.pop()
        if reader.op in HANDING_ON and node.op == "DequantizeLinear":
            waiting.extend(each for out in reader.outputs for each in out.outputs)
        else:
            yield reader


def _same_scale(one: Node, other: Node) -> bool:
    pairs = one.op != other.op and other.op in ("QuantizeLinear", "DequantizeLinear")
    return pairs and np.array_equal(one.inputs[1].values, other.inputs[1].values)


def _apart(scales: Sequence[ActivationScale]) -> list[ActivationScale]:
    """Those whose constants are different: where groups that need not agree share one, it is one parameter."""
    found: dict[str, ActivationScale] = {}
    for each in scales:
        known = found.get(each.name)
        places = each.places if known is None else [*known.places, *each.places]
        found[each.name] = ActivationScale(each.name, each.constant, places)
    return list(found.values())


def _replace(graph: Graph, node: Node, name: str, values: Array) -> None:
    """A constant in the place of what a decoder makes."""
    made = graph.constant(graph.main, name, values)
    graph.replace_reads(node.outputs[0], made)
    graph.remove_node(graph.main, node)
