"""Which inputs are pictures, and along which axes height and width lie: as the first node that slides over them does.

    x (n, h, w, c) -> Transpose -> Conv        (1, 2)
    x (n, c, h, w) -> Sub -> Mul -> Conv       (2, 3)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto

from onnxcomp.operators import ONNX_DOMAINS

SLIDING = ("Conv", "MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger")
SAME_AXES = ("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Clip", "Relu", "Pad", "BatchNormalization",
             "InstanceNormalization", "QuantizeLinear", "DequantizeLinear")  # fmt: skip
RANK = 4

Axes = tuple[int, ...]


def picture_planes(proto: ModelProto) -> dict[str, tuple[int, int]]:
    """(height, width) of each input of four axes that is read as a picture; one that is read in two ways is none."""
    stored = {each.name for each in proto.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    planes = {}
    for given in proto.graph.input:
        rank = len(given.type.tensor_type.shape.dim)
        if given.name not in stored and rank == RANK:
            found = set(_planes(given.name, tuple(range(RANK)), readers))
            if len(found) == 1 and 0 not in (plane := found.pop()):
                planes[given.name] = plane
    return planes


def _planes(name: str, axes: Axes, readers: dict[str, list[NodeProto]]) -> Iterator[tuple[int, int]]:
    """What the nodes that slide over a tensor take for its plane. axes: of the input, one for each of the tensor."""
    for node in readers.get(name, ()):
        if node.domain not in ONNX_DOMAINS or (node.input[0] != name and node.op_type in SLIDING):
            continue
        if node.op_type in SLIDING:
            yield axes[-2], axes[-1]
        elif node.op_type in SAME_AXES:
            yield from _planes(node.output[0], axes, readers)
        elif node.op_type == "Transpose":
            perm = next((list(each.ints) for each in node.attribute if each.name == "perm"), list(range(RANK))[::-1])
            yield from _planes(node.output[0], tuple(np.array(axes)[perm].tolist()), readers)
