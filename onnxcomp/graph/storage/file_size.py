"""What nodes and constants weigh in the file, and what goes away with a tensor that is no longer computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

from onnx import TensorProto

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import producer
from onnxcomp.graph.ir.reader import Graph, subgraphs_of
from onnxcomp.graph.ir.writer import node_proto
from onnxcomp.tensors import bits_of, whole_bytes

AS_NODE_BYTES = 34  # of a Constant node around its tensor: operator, attribute, their lengths
TENSOR_BYTES = 8  # of a tensor beside name, dimensions and data: type, field tags, lengths


def message_bytes(content_bytes: int) -> int:
    """A message inside another: its tag, its length as a varint, its content."""
    return 1 + max(1, (content_bytes.bit_length() + 6) // 7) + content_bytes


def node_bytes(graph: Graph, node: Node) -> int:
    """What the file loses with the node."""
    return message_bytes(node_proto(graph, node).ByteSize())


def constant_bytes(constant: Constant) -> int:
    """What the file and its external data lose with the constant."""
    origin = constant.origin
    if origin is not None:
        size = whole_bytes(origin) if isinstance(origin, TensorProto) else origin.ByteSize()
        return message_bytes(size + (AS_NODE_BYTES if constant.as_node else 0))
    data = (constant.size * bits_of(constant.data_type) + 7) // 8
    return _with_header(constant.name, len(constant.shape), data, constant.as_node)


def array_bytes(name: str, values: Array, *, as_node: bool = False) -> int:
    """What the file gains by the values as a constant (at most: dimensions are counted at their longest)."""
    return _with_header(name, 2 * values.ndim, values.nbytes, as_node) + 2


def _with_header(name: str, dims_bytes: int, data_bytes: int, as_node: bool) -> int:
    """Bytes of a constant; dimensions take a tag and one byte or more each."""
    around = AS_NODE_BYTES if as_node else 0
    return message_bytes(TENSOR_BYTES + len(name.encode()) + 2 * dims_bytes + data_bytes + around)


def freed_by(targets: Iterable[Any], outputs: Set[int]) -> Iterator[Node | Constant]:
    """What would become unused if the targets were known instead of computed, nearest first.

    outputs: ids of all graphs' outputs. Nodes with subgraphs are counted as staying, and so is what they read.
    """
    replaced = set(targets)
    reads: dict[Any, int] = {}
    gone: set[Node] = set()

    def unneeded(tensor: Any) -> bool:
        left = reads.get(tensor, len(tensor.outputs))
        return tensor in replaced or (left == 0 and id(tensor) not in outputs)

    waiting = [maker for each in replaced if (maker := producer(each)) is not None]
    while waiting:
        node = waiting.pop()
        if node in gone or subgraphs_of(node) or not all(unneeded(out) for out in node.outputs):
            continue
        gone.add(node)
        yield node
        for tensor in node.inputs:
            reads[tensor] = reads.get(tensor, len(tensor.outputs)) - 1
            if not unneeded(tensor):
                continue
            if isinstance(tensor, Constant):
                yield tensor
            elif (maker := producer(tensor)) is not None:
                waiting.append(maker)
