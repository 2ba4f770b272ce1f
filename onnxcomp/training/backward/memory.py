"""How much memory a graph takes when it runs, from its shapes alone: the most that is alive at once.

Each tensor lives from the node that makes it to the last that reads it; what only looks at the same elements in another
shape takes nothing. ONNX Runtime's arena takes more than that, as its blocks double.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.model import Model

Array = NDArray[Any]
ARENA = 1.5  # measured: ResNet-8 and ResNet-18 took 1.2 times what is alive at once, BERT 1.1, MobileNetV2 1.5
SAME_ELEMENTS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def peak_bytes(model: Model, feeds: Mapping[str, Array]) -> int:
    """Of one run with inputs of these shapes, the model's constants, its inputs and outputs included."""
    graph = open_graph(model)
    held = sum(each.nbytes for each in graph.main.constants)
    for each in graph.main.graph.inputs:
        if each.name in feeds:
            each.shape, each.dtype = list(feeds[each.name].shape), feeds[each.name].dtype
            each.origin = None  # which states it as the model has it
    shapes = infer_shapes(graph, computed=True)
    sizes = {each: _bytes(shapes, each) or 0 for each in graph.main.graph.inputs}
    nodes = ordered(graph.main.graph.nodes)
    given = sum(sizes.values())
    return held + given + int(ARENA * _most_alive(nodes, shapes, sizes, set(graph.main.graph.outputs)))


def _most_alive(nodes: list[Node], shapes: Shapes, sizes: dict[Any, int], outputs: set[Any]) -> int:
    roots: dict[Any, Any] = {}
    last: dict[Any, int] = {}
    for index, node in enumerate(nodes):
        for tensor in (*node.inputs, *inner_reads(node)):
            last[roots.get(tensor, tensor)] = index
        if node.op in SAME_ELEMENTS and not isinstance(node.inputs[0], Constant):
            roots[node.outputs[0]] = roots.get(node.inputs[0], node.inputs[0])
    kept = {roots.get(each, each) for each in outputs}
    ends: dict[int, list[Any]] = {}
    alive = most = 0
    made: dict[Any, int] = {}
    for index, node in enumerate(nodes):
        for tensor in node.outputs:
            if tensor in roots or not tensor.name:
                continue
            known = _bytes(shapes, tensor)
            made[tensor] = sizes[tensor] = _like_inputs(node, sizes) if known is None else known
            alive += made[tensor]
            if tensor not in kept:
                ends.setdefault(max(last.get(tensor, index), index), []).append(tensor)
        most = max(most, alive)
        alive -= sum(made[tensor] for tensor in ends.pop(index, ()))
    return most


def _bytes(shapes: Shapes, tensor: Any) -> int | None:
    static, data_type = shapes.static(tensor), shapes.data_type(tensor)
    if static is None or not data_type:
        return None
    return math.prod(static) * int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def _like_inputs(node: Node, sizes: dict[Any, int]) -> int:
    """For an output whose shape is not known: as much as the largest input."""
    return max((sizes.get(each, 0) for each in node.inputs), default=0)
