"""The weights and biases that a model holds, wherever they lie: initializers, Constants, branches of an If.

``MatMul(x, Transpose(w))`` -> w with its channels along the axis that the transpose brings last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from benchmarks.judge.catalogue import Array

MIN_SIZE = 24
POSITIONS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Einsum": (0, 1),
}
BIAS_POSITIONS = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "Add": (0, 1),
    "LayerNormalization": (2,),
    "BatchNormalization": (2,),
    "LSTM": (3,),
    "GRU": (3,),
}
CARRIERS = ("Transpose", "Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze")


@dataclass(frozen=True)
class Held:
    """One tensor of a model, to be changed in place.

    axis: of its channels. reader: op type of the node that reads it. owner: first output of that node, or of
    the node of the main graph in whose branch it lies. is_state: what an LSTM or GRU multiplies its state by.
    """

    tensor: TensorProto
    axis: int
    reader: str
    owner: str
    is_state: bool = False

    @property
    def values(self) -> Array:
        """The values, float32."""
        return numpy_helper.to_array(self.tensor)

    def set(self, values: Array) -> None:
        """Replace the values."""
        name = self.tensor.name
        self.tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))


@dataclass(frozen=True)
class _Seen:
    tensor: TensorProto
    perm: tuple[int, ...]  # axis of what is read -> axis of the tensor


def weights(model: onnx.ModelProto) -> list[Held]:
    """Float tensors of two or more dimensions that a linear node, a recurrent one or a lookup reads."""
    return [each for each, is_bias in _held(model) if not is_bias]


def biases(model: onnx.ModelProto) -> list[Held]:
    """Float tensors that are added per channel."""
    return [each for each, is_bias in _held(model) if is_bias]


def _held(model: onnx.ModelProto) -> Iterator[tuple[Held, bool]]:
    found: dict[int, TensorProto] = {}  # held, so that no other tensor gets the same id
    for each, is_bias in _walk(model.graph, {}, None):
        if id(each.tensor) not in found:
            found[id(each.tensor)] = each.tensor
            yield each, is_bias


def _walk(graph: GraphProto, outer: dict[str, _Seen], owner: str | None) -> Iterator[tuple[Held, bool]]:
    seen = outer | {each.name: _whole(each) for each in graph.initializer}
    for node in graph.node:
        top = owner or next((name for name in node.output if name), "")
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            seen[node.output[0]] = _whole(node.attribute[0].t)
        elif node.op_type in CARRIERS and node.input[0] in seen:
            seen[node.output[0]] = _carried(node, seen[node.input[0]])
        else:
            yield from _read_by(node, seen, top)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _walk(attribute.g, seen, top)


def _whole(tensor: TensorProto) -> _Seen:
    return _Seen(tensor, tuple(range(len(tensor.dims))))


def _carried(node: NodeProto, source: _Seen) -> _Seen:
    if node.op_type != "Transpose":
        return source
    perm = next((tuple(each.ints) for each in node.attribute if each.name == "perm"), source.perm[::-1])
    return _Seen(source.tensor, tuple(source.perm[axis] for axis in perm))


def _read_by(node: NodeProto, seen: dict[str, _Seen], owner: str) -> Iterator[tuple[Held, bool]]:
    for table, is_bias in ((POSITIONS, False), (BIAS_POSITIONS, True)):
        for position in table.get(node.op_type, ()):
            source = seen.get(node.input[position]) if position < len(node.input) else None
            if source is not None and _fits(source.tensor, is_bias, node.op_type):
                is_state = node.op_type in ("LSTM", "GRU", "RNN") and position == 2
                yield Held(source.tensor, _channels(node, position, source), node.op_type, owner, is_state), is_bias


def _fits(tensor: TensorProto, is_bias: bool, reader: str) -> bool:
    sizes = [size for size in tensor.dims if size > 1]
    if tensor.data_type != TensorProto.FLOAT or not np.isfinite(numpy_helper.to_array(tensor)).all():
        return False
    if is_bias:
        return (len(sizes) == 1 and sizes[0] >= 4) or reader in ("LSTM", "GRU")
    return len(sizes) >= 2 and int(np.prod(sizes)) >= MIN_SIZE


def _channels(node: NodeProto, position: int, source: _Seen) -> int:
    """The axis of the tensor along which the node's output channels lie."""
    last = len(source.perm) - 1
    transposed = {each.name for each in node.attribute if each.name in ("transA", "transB") and each.i}
    if node.op_type in ("LSTM", "GRU", "RNN", "ConvTranspose"):
        axis = min(1, last)
    elif node.op_type in ("MatMul", "Einsum"):
        axis = last if position else max(last - 1, 0)
    elif node.op_type == "Gemm":
        axis = 0 if ("transB" in transposed) == (position == 1) and position < 2 else last
    else:
        axis = 0
    return source.perm[axis]


def near_ends(model: onnx.ModelProto) -> dict[str, list[str]]:
    """For each input ("from-x") and output ("to-y"), the owners of the first weights on the way.

    These are the first and the last layers, what a state goes through, and what makes a cache.
    """
    owners = {each.owner for each in weights(model)}
    made_by = {name: node for node in model.graph.node for name in node.output}
    read_by: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in _reads(node):
            read_by.setdefault(name, []).append(node)
    held = {each.name for each in model.graph.initializer}
    ends = {}
    for item in model.graph.input:
        if item.name not in held:
            ends[f"from-{item.name}"] = _reached([*read_by.get(item.name, [])], owners, read_by, forward=True)
    for item in model.graph.output:
        start = [made_by[item.name]] if item.name in made_by else []
        ends[f"to-{item.name}"] = _reached(start, owners, {k: [v] for k, v in made_by.items()}, forward=False)
    return {name: found for name, found in ends.items() if found}


def _reads(node: NodeProto) -> list[str]:
    """What a node reads, its branches included."""
    inner = [each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for graph in inner for each in graph.node for name in _reads(each))]


def _reached(
    start: list[NodeProto], owners: set[str], onward: dict[str, list[NodeProto]], *, forward: bool
) -> list[str]:
    found: list[str] = []
    done: set[str] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop(0)
        own = next((name for name in node.output if name), "")
        if own in done:
            continue
        done.add(own)
        if own in owners:
            found.append(own)
            continue
        for name in node.output if forward else _reads(node):
            waiting += onward.get(name, [])
    return found
