"""Constants that are small in the file and large once they are computed, which ONNX Runtime does when it loads a model.

    o = [1, 1];  Tile(o, 2) -> Tile(., 2) -> ... forty times   comes to 8 TB from a file of 4 kB
"""

from __future__ import annotations

import math

from onnxcomp.errors import ModelError
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import producer
from onnxcomp.graph.ir.reader import Graph, shown, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.model import Model
from onnxcomp.tensors import bits_of

AMPLIFYING = frozenset({"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
MAX_COMPUTED_BYTES = 2**32
MAX_RATIO = 256  # computed over stored bytes, above that: weights of one bit in a codebook come to less


def refuse_amplified(model: Model) -> None:
    """Raise ModelError where what a model computes from constants alone comes to over 4 GB and 256 times its size.

    Only what is proven about shapes counts.
    """
    if not any(node.op_type in AMPLIFYING for node in model.proto.graph.node):
        return
    size_bytes, largest = _computed_bytes(shown(model))
    limit = max(MAX_COMPUTED_BYTES, MAX_RATIO * model.size_bytes)
    if size_bytes > limit:
        computed = f"its constants come to {size_bytes:,} bytes once they are computed ({largest})"
        raise ModelError(f"{model.name}: {computed}; {limit:,} are allowed.")


def _computed_bytes(graph: Graph) -> tuple[int, str]:
    """The bytes of all that is computed from constants alone, and the node that makes the largest part of them."""
    shapes = infer_shapes(graph)
    known: set[Node] = set()
    sizes = {"": 0}
    for node in ordered(graph.scopes[0].graph.nodes):
        if subgraphs_of(node) or not all(
            isinstance(each, Constant) or not each.name or producer(each) in known for each in node.inputs
        ):
            continue
        known.add(node)
        for out in node.outputs:
            shape = shapes.static(out)
            if shape is not None and shapes.data_type(out):
                sizes[f"{node.op} {out.name}"] = math.prod(shape) * bits_of(shapes.data_type(out)) // 8
    return sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
