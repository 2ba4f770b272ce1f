"""Residual blocks: what a sum adds to a tensor that stands beside it, and all that is computed for it alone.

    y = x + f(x)     becomes     y = x + c,   c: the mean of f(x), one value a channel

The sum and the name of what it makes stay, so that what reads y is found as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_keys, is_onnx, node_key, producer
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.report.macs import count_macs

CHANNELS_FIRST = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization")
CHANNELS_LAST = ("MatMul", "Gemm", "LayerNormalization", "RMSNormalization")


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """What a sum adds, and what goes with it.

    key: of the sum. branch: which of its inputs goes. nodes: those that nothing else needs. constants: of these, by
    key, that nothing else reads. macs: of the nodes for one sample. axis: of the channels, of ``rank`` in all.
    """

    key: str
    sum: Node
    branch: int
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    macs: int
    axis: int
    rank: int

    @property
    def result(self) -> Any:
        """The tensor that goes."""
        return self.sum.inputs[self.branch]

    @property
    def kept(self) -> Any:
        """The tensor that stays."""
        return self.sum.inputs[1 - self.branch]

    @property
    def nbytes(self) -> int:
        """Of the constants."""
        return sum(each.nbytes for each in self.constants.values())

    def drop(self, graph: Graph, mean: Array) -> None:
        """Add the mean (channels,) in the block's place."""
        shape = [-1 if axis == self.axis else 1 for axis in range(self.rank)]
        values = mean.reshape(shape).astype(self.result.dtype or np.float32)
        self.sum.inputs[self.branch] = graph.constant(graph.main, f"{self.result.name}_mean", values)
        for node in self.nodes:
            graph.remove_node(graph.main, node)


def residual_blocks(graph: Graph) -> tuple[list[ResidualBlock], dict[str, str]]:
    """The blocks of the main graph in the order of their sums, and why other sums of two tensors are none, by key."""
    search = _Search(graph)
    blocks, declined = [], {}
    for node in graph.main.graph.nodes:
        if is_onnx(node, "Add", "Sum") and len(node.inputs) == 2 and not _has_constant(node):
            found = search.block(node)
            if isinstance(found, str):
                declined[node_key(graph.main, node)] = found
            else:
                blocks.append(found)
    return blocks, declined


class _Search:
    """Looks for blocks in a graph that nobody changes meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shapes = infer_shapes(graph, computed=True)
        self._macs = count_macs(graph)
        self._keys = constant_keys(graph)
        self._outputs = {id(each) for scope in graph.scopes for each in scope.graph.outputs}

    def block(self, node: Node) -> ResidualBlock | str:
        """The block that a sum adds, or why there is none."""
        regions = [self._region(node, branch) for branch in range(2)]
        reads = [_reads(each) for each in regions]
        if id(node.inputs[0]) in reads[1]:
            branch, is_own = 1, True
        elif id(node.inputs[1]) in reads[0]:
            branch, is_own = 0, True
        elif reads[0] & reads[1]:
            branch, is_own = int(self._count(regions[1]) > self._count(regions[0])), False
        else:
            return "its operands are not computed from the same tensor"
        region = regions[branch]
        if not any(each in self._macs for each in region):
            return "nothing that multiplies would go with what it adds"
        if not self._stays(node.inputs[1 - branch], node, is_own=is_own):
            return "its shape may be another one without what it adds"
        axis = self._channel_axis(node.inputs[branch])
        return ResidualBlock(
            node_key(self._graph.main, node), node, branch, tuple(region), self._owned(region), self._count(region),
            axis, len(self._shapes.shape(node.outputs[0]) or ()),
        )  # fmt: skip

    def _region(self, reader: Node, branch: int) -> list[Node]:
        """The nodes that are there for one input of a sum alone, from the last to the first."""
        first, other = producer(reader.inputs[branch]), producer(reader.inputs[1 - branch])
        if first is None or first is other:
            return []
        gone: dict[int, Node] = {}
        waiting = [first]
        while waiting:
            node = waiting.pop()
            readers = [each for out in node.outputs for each in out.outputs]
            is_needed = node is other or any(id(each) not in gone and each is not reader for each in readers)
            if id(node) in gone or is_needed or any(id(out) in self._outputs for out in node.outputs):
                continue
            if not self._graph.main.graph.holds(node):
                continue
            gone[id(node)] = node
            waiting += [made for each in (*node.inputs, *inner_reads(node)) if (made := producer(each)) is not None]
        return list(gone.values())

    def _count(self, region: list[Node]) -> int:
        counted = [self._macs.get(each) for each in region]
        return sum(each.count for each in counted if each is not None)

    def _stays(self, kept: Any, node: Node, *, is_own: bool) -> bool:
        """Whether what stays has the sum's shape; ``is_own``: what goes is computed from it, so that dimensions that
        are open in it are taken to be its own."""
        before, now = self._shapes.shape(node.outputs[0]), self._shapes.shape(kept)
        if before is None or now is None or len(before) != len(now):
            return False
        return all(
            one == other if one is not None and other is not None
            else one is None and (is_own or self._shapes.same_size(node.outputs[0], axis, kept, axis))
            for axis, (one, other) in enumerate(zip(before, now, strict=True))
        )  # fmt: skip

    def _owned(self, region: list[Node]) -> dict[str, Constant]:
        nodes = {id(each) for each in region}
        read = dict.fromkeys(each for node in region for each in node.inputs if isinstance(each, Constant))
        return {self._keys[each]: each for each in read if all(id(reader) in nodes for reader in each.outputs)}

    def _channel_axis(self, tensor: Any) -> int:
        """Where the channels of a branch's result are, by what made it; the last axis where that is not told."""
        rank = len(self._shapes.shape(tensor) or ())
        place: list[int] = list(range(rank))
        node = producer(tensor)
        while node is not None and not is_onnx(node, *CHANNELS_LAST):
            if is_onnx(node, *CHANNELS_FIRST):
                return place.index(1) if len(place) > 1 else 0
            if is_onnx(node, "Transpose") and len(node.attrs.get("perm", ())) == len(place):
                place = [node.attrs["perm"][axis] for axis in place]
            elif len(self._shapes.shape(node.outputs[0]) or ()) != len(place):
                break
            node = next((made for each in node.inputs if (made := producer(each)) is not None), None)
        return max(rank - 1, 0)


def _reads(region: list[Node]) -> set[int]:
    """What a region reads of what is made outside of it, by id."""
    made = {id(out) for node in region for out in node.outputs}
    read = (each for node in region for each in (*node.inputs, *inner_reads(node)))
    return {id(each) for each in read if not isinstance(each, Constant) and id(each) not in made and each.name}


def _has_constant(node: Node) -> bool:
    return any(isinstance(each, Constant) for each in node.inputs)
