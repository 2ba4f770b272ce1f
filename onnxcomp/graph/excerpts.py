"""One node of a graph as a model of its own, to see what it takes at its sizes: values and names are not part of it.

    z = Conv(h, w)  h: (1, 32, 16, 16), w: (64, 32, 3, 3)    ->    a model y = Conv(x, w) of these shapes

Two nodes of one operator, with the same attributes and sizes, have the same excerpt. Weights are drawn when it is
opened; small constants (bounds, axes, sizes) are what they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_behind, has_references
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.writer import node_proto, tensor_proto
from onnxcomp.model import load
from onnxcomp.tensors import make_tensor

MOST_KEPT = 1  # of the floats of a constant: bounds and slopes, which are no weights
SEED = 0  # values do not matter, as long as they are usual ones
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
LOOKUPS = {"Gather": 1, "GatherElements": 1, "GatherND": 1}


@dataclass(frozen=True)
class Excerpt:
    """A model of few nodes whose weights have no values. content: serialized, so that equal ones are equal."""

    content: bytes

    @property
    def label(self) -> str:
        """Operators and what they read, in words."""
        proto = ModelProto.FromString(self.content)
        shapes = [tuple(each.dims) for each in proto.graph.initializer if len(each.dims) > 1]
        fed = [tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in proto.graph.input]
        return f"{' + '.join(each.op_type for each in proto.graph.node)} of {fed} by {shapes}"

    @property
    def nbytes(self) -> int:
        """Of its constants."""
        constants = ModelProto.FromString(self.content).graph.initializer
        return sum(math.prod(each.dims) * _dtype(each.data_type).itemsize for each in constants)

    def opened(self) -> Graph:
        """The nodes as a graph, with values."""
        return open_graph(load(self.filled()))

    def filled(self) -> ModelProto:
        """The model with values."""
        proto = ModelProto.FromString(self.content)
        rng = np.random.default_rng(SEED)
        for tensor in proto.graph.initializer:
            if _is_hollow(tensor.data_type, tensor.dims):
                tensor.CopyFrom(make_tensor(tensor.name, _drawn(tuple(tensor.dims), tensor.data_type, rng)))
        return proto

    def feeds(self) -> dict[str, Array]:
        """Inputs for it."""
        proto = ModelProto.FromString(self.content)
        rng = np.random.default_rng(SEED)
        rows = _rows(proto)
        found = {}
        for each in proto.graph.input:
            kind = each.type.tensor_type
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            if each.name in rows:
                found[each.name] = rng.integers(0, rows[each.name], shape).astype(_dtype(kind.elem_type))
            else:
                found[each.name] = _drawn(shape, kind.elem_type, rng)
        return found


def excerpted(graph: Graph) -> Excerpt:
    """What was made of an opened excerpt, as one."""
    return _of_proto(close_graph(graph).proto)


def excerpt(graph: Graph, node: Node, shapes: Shapes) -> Excerpt | None:
    """A node by itself; None where the shape or type of something that it reads is not known, or where it holds graphs.

    What stands behind Transpose nodes is a constant here, too.
    """
    proto = node_proto(graph, node)
    if has_references(node) or any(each.HasField("g") or each.graphs for each in proto.attribute):
        return None
    made = ModelProto(ir_version=max(4, graph.ir_version))  # before, constants had to be inputs too
    for domain, version in sorted(graph.opset_imports.items()):
        made.opset_import.add(domain=domain, version=version)
    names: dict[int, str] = {}
    for tensor in node.inputs:
        if tensor.name and id(tensor) not in names:
            names[id(tensor)] = f"t{len(names)}"
            if not _state(made, graph, tensor, names[id(tensor)], shapes):
                return None
    written = made.graph.node.add()
    written.CopyFrom(proto)
    written.name, written.doc_string = "node", ""
    del written.metadata_props[:]
    written.input[:] = [names[id(each)] if each.name else "" for each in node.inputs]
    written.output[:] = [f"y{at}" if each.name else "" for at, each in enumerate(node.outputs)]
    made.graph.name = "excerpt"
    made.graph.output.extend(
        helper.make_tensor_value_info(f"y{at}", shapes.data_type(each) or TensorProto.FLOAT, None)
        for at, each in enumerate(node.outputs)
        if each.name
    )
    return _of_proto(made)


def _state(made: ModelProto, graph: Graph, tensor: Any, name: str, shapes: Shapes) -> bool:
    """Add an input or a constant of the tensor's shape and type; False where these are not known."""
    shape, kind = shapes.static(tensor), shapes.data_type(tensor)
    if shape is None or not kind:
        return False
    if isinstance(tensor, Constant):
        if _is_hollow(kind, shape):
            made.graph.initializer.add(name=name, dims=shape, data_type=kind)
        else:
            made.graph.initializer.append(tensor_proto(graph, tensor, name))
    elif constant_behind(tensor) is not None and kind in FLOATS:
        made.graph.initializer.add(name=name, dims=shape, data_type=kind)
    else:
        made.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    return True


def _of_proto(proto: ModelProto) -> Excerpt:
    """Without values of weights, names of nodes, and what the writer of the model said of it."""
    made = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=proto.graph)
    for node in made.graph.node:
        node.name = ""
    for tensor in made.graph.initializer:
        if _is_hollow(tensor.data_type, tensor.dims):
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return Excerpt(made.SerializeToString(deterministic=True))


def _is_hollow(data_type: int, dims: Sequence[int]) -> bool:
    """Whether a constant's values are left out."""
    return data_type in FLOATS and math.prod(dims) > MOST_KEPT


def _rows(proto: ModelProto) -> Mapping[str, int]:
    """Of inputs that choose from something, how much there is to choose from."""
    sizes: dict[str, Sequence[int]] = {each.name: each.dims for each in proto.graph.initializer}
    for each in proto.graph.input:
        sizes[each.name] = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
    found = {}
    for node in proto.graph.node:
        if node.op_type in LOOKUPS and (dims := sizes.get(node.input[0])):
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            found[node.input[LOOKUPS[node.op_type]]] = dims[axis]
    return found


def _drawn(shape: tuple[int, ...], data_type: int, rng: np.random.Generator) -> Array:
    """Values about as large as weights and activations are; of other types than floats, ones."""
    if data_type not in FLOATS:
        return np.ones(shape, _dtype(data_type))
    width = max(1, int(np.prod(shape[1:])))
    drawn: Array = (rng.standard_normal(shape, np.float32) / np.sqrt(width)).astype(_dtype(data_type))
    return drawn


def _dtype(data_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
