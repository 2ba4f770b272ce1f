"""Types and shapes of a graph's tensors, as far as onnx.shape_inference proves them.

What a model states about itself can be wrong, and ONNX Runtime runs it all the same. Only the shapes of
graph inputs are enforced, so these and the operators' own rules are all that is believed; the type of what
an unknown operator makes is, its shape is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorShapeProto, ValueInfoProto, numpy_helper

from onnxcomp.graph.infer.inference_model import skeleton
from onnxcomp.graph.infer.plain_operators import restate_elementwise, restate_microsoft, stated_opset
from onnxcomp.graph.infer.shape_values import AxisSize, partly_known_integers
from onnxcomp.graph.ir.nodes import Constant, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.untouched import state_of
from onnxcomp.input_shapes import Dims

Shape = tuple[int | None, ...]


class Shapes:
    """What is known of each tensor; edits that keep a tensor's values keep it valid."""

    def __init__(self) -> None:
        self._types: dict[Any, int] = {}
        self._shapes: dict[Any, Shape] = {}
        self._symbols: dict[Any, tuple[str, ...]] = {}

    def copy(self) -> Shapes:
        """The same, for edits of one's own."""
        made = Shapes()
        made._types, made._shapes, made._symbols = self._types.copy(), self._shapes.copy(), self._symbols.copy()
        return made

    def note(self, tensor: Any, data_type: int, shape: Shape | None, symbols: tuple[str, ...] = ()) -> None:
        """State a tensor's element type (0: unknown) and shape (None: unknown rank); symbols: of its dimensions, if any
        has one, "" where they have none."""
        if any(symbols):
            self._symbols[tensor] = symbols
        if data_type:
            self._types[tensor] = data_type
        if shape is not None:
            self._shapes[tensor] = shape

    def data_type(self, tensor: Any) -> int:
        """The ONNX element type, 0 where it is not known or the value is no tensor."""
        return tensor.data_type if isinstance(tensor, Constant) else self._types.get(tensor, 0)

    def shape(self, tensor: Any) -> Shape | None:
        """The dimensions, None for each that is not fixed; None where the rank is not known."""
        return tuple(tensor.shape) if isinstance(tensor, Constant) else self._shapes.get(tensor)

    def rank(self, tensor: Any) -> int | None:
        """The number of dimensions, None where it is not known."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def static(self, tensor: Any) -> tuple[int, ...] | None:
        """The dimensions where all of them are fixed, else None."""
        shape = self.shape(tensor)
        if shape is None or any(dim is None for dim in shape):
            return None
        return tuple(dim for dim in shape if dim is not None)

    def same_size(self, first: Any, axis: int, second: Any, other: int) -> bool:
        """Whether an axis (from 0) of one tensor is proven to have the size of an axis of another."""
        if (first, axis) == (second, other):
            return True
        one, two = (list(self._symbols.get(each, ())) for each in (first, second))
        return axis < len(one) and other < len(two) and bool(one[axis]) and one[axis] == two[other]

    def same_form(self, first: Any, second: Any) -> bool:
        """Whether two tensors of the same elements in the same order are proven to have the same shape.

        One dimension may be open in both: the number of elements then settles it.
        """
        one, other = self.shape(first), self.shape(second)
        if one is None or other is None or len(one) != len(other):
            return False
        open_at = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a is None or b is None]
        closed = [(a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)) if i not in open_at]
        if any(a != b for a, b in closed):
            return False
        return not open_at or (len(open_at) == 1 and math.prod(a or 0 for a, _ in closed) > 0)


def infer_shapes(
    graph: Graph,
    *,
    batch: int | None = None,
    every: int | None = None,
    computed: bool = False,
    inputs: Mapping[str, Dims] | None = None,
) -> Shapes:
    """Types and shapes of the tensors of the main graph and its subgraphs; of functions, nothing is known.

    computed: follow the whole numbers that the graph computes from shapes, too, into what is reshaped by them.

    batch: the size to assume for the first dimension of the inputs where the model leaves it open; never for
    a rewrite, only for describing a model. every: likewise, for all dimensions of inputs that are open. inputs:
    likewise, the shapes of these inputs.
    """
    state, key = state_of(graph), (batch, every, computed, tuple(sorted((inputs or {}).items())))
    if key not in graph.inferred or graph.inferred[key][0] != state:
        graph.inferred[key] = state, _inferred(graph, batch, every, computed=computed, inputs=inputs or {})
    found: Shapes = graph.inferred[key][1]
    return found.copy()


def _inferred(
    graph: Graph, batch: int | None, every: int | None, *, computed: bool, inputs: Mapping[str, Dims]
) -> Shapes:
    shapes = Shapes()
    proto = believed(skeleton(graph))
    restate_elementwise((proto.graph, *inner_graphs(proto.graph)), stated_opset(proto.opset_import))
    _state_inputs(proto, inputs)
    if every is not None:
        _assume_every(proto, every)
    if batch is not None:
        _assume_batch(proto, batch)
    if computed:
        _name_open(proto)
        restate_microsoft(proto.graph, graph.main.opset)
    _collect(graph, infer(proto, computed=computed).graph, shapes)
    if computed and restate_copied_sizes(graph, proto.graph, shapes):
        _collect(graph, infer(proto, computed=computed).graph, shapes)
    return shapes


def _name_open(proto: ModelProto) -> None:
    """Give each open dimension of an input a name of its own, which inference carries on; those that the model gives
    may promise too much."""
    for each in proto.graph.input:
        if each.type.HasField("tensor_type"):
            for axis, dim in enumerate(each.type.tensor_type.shape.dim):
                if is_open(dim):
                    dim.dim_param = f"{each.name}, axis {axis}"


def restate_copied_sizes(graph: Graph, proto: GraphProto, shapes: Shapes) -> bool:
    """Write 0 for the sizes that a Reshape in the skeleton computes from those that its data has at the same place, so
    that inference knows the others; whether there was any."""
    partial, _ = partly_known_integers(graph, shapes)
    found = False
    for body, scope in bodies_of(graph, proto):
        nodes = {node.outputs[0].name: node for node in scope.graph.nodes if node.op == "Reshape"}
        for inner in body.node:
            node = nodes.get(inner.output[0]) if inner.op_type == "Reshape" else None
            sizes = None if node is None or node.attrs.get("allowzero") else partial.get(node.inputs[1])
            stated = None if node is None or sizes is None else _copied(node.inputs[0], sizes, shapes)
            if stated is not None:
                name = f"{inner.output[0]}_sizes"
                body.initializer.append(numpy_helper.from_array(np.array(stated, np.int64), name))
                inner.input[1] = name
                found = True
    return found


def _copied(data: Any, sizes: Any, shapes: Shapes) -> list[int] | None:
    """The sizes that a Reshape states, with 0 for those that its data has; None where others are open, or none is."""
    stated: list[int] = []
    for place, size in enumerate(sizes.reshape(-1).tolist()):
        is_open_size = isinstance(size, AxisSize)
        if is_open_size and not shapes.same_size(size.tensor, size.axis, data, place):
            return None
        stated.append(0 if is_open_size else int(size))
    return stated if any(isinstance(each, AxisSize) for each in sizes.flat) else None


def _state_inputs(proto: ModelProto, inputs: Mapping[str, Dims]) -> None:
    for each in proto.graph.input:
        if inputs.get(each.name) and each.type.HasField("tensor_type"):
            del each.type.tensor_type.shape.dim[:]
            for size in inputs[each.name]:
                added = each.type.tensor_type.shape.dim.add()
                if isinstance(size, int):
                    added.dim_value = size
                elif size is not None:
                    added.dim_param = size


def _assume_batch(proto: ModelProto, batch: int) -> None:
    """Fix the first dimension of every input, and every input dimension of the same symbol."""
    dims = [list(each.type.tensor_type.shape.dim) for each in proto.graph.input if each.type.HasField("tensor_type")]
    symbols = {own[0].dim_param for own in dims if own and own[0].dim_param}
    for own in dims:
        for index, dim in enumerate(own):
            if is_open(dim) and (dim.dim_param in symbols or (index == 0 and not dim.dim_param)):
                dim.dim_value = batch


def _assume_every(proto: ModelProto, size: int) -> None:
    for each in proto.graph.input:
        if each.type.HasField("tensor_type"):
            for dim in each.type.tensor_type.shape.dim:
                if is_open(dim):
                    dim.dim_value = size


def believed(proto: ModelProto) -> ModelProto:
    """The skeleton without the statements that nothing enforces: shapes of all but the main graph's inputs.

    Initializers that are inputs too may be replaced when the model runs, so their values go as well. What is stated of
    initializers, as torch's exporter does, goes whole: inference would take a statement without a shape for theirs.
    """
    inputs = {each.name for each in proto.graph.input} if proto.ir_version >= 4 else set()
    kept = [each for each in proto.graph.initializer if each.name not in inputs]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    _forget_shapes(proto.graph.output)
    for body in inner_graphs(proto.graph):
        _forget_shapes([*body.input, *body.output])
    for body in (proto.graph, *inner_graphs(proto.graph)):
        known = {each.name for each in body.initializer}
        stated = [each for each in body.value_info if each.name not in known]
        _forget_shapes(stated)
        del body.value_info[:]
        body.value_info.extend(stated)
    return proto


def infer(proto: ModelProto, *, computed: bool = False) -> ModelProto:
    """The model with what onnx can infer; the model as it is where onnx refuses it."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=computed)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return proto


def inner_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Every subgraph of a graph, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield body
                yield from inner_graphs(body)


def tensor_type(info: ValueInfoProto) -> tuple[int, Shape | None]:
    """The element type and shape that a value info states; (0, None) for what is no tensor."""
    if not info.type.HasField("tensor_type"):
        return 0, None
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(None if is_open(dim) else dim.dim_value for dim in tensor.shape.dim)


def _symbols(info: ValueInfoProto) -> tuple[str, ...]:
    return tuple(dim.dim_param if is_open(dim) else "" for dim in info.type.tensor_type.shape.dim)


def is_open(dim: TensorShapeProto.Dimension) -> bool:
    """Whether a dimension is not fixed; some exporters write -1 for that."""
    return not dim.HasField("dim_value") or dim.dim_value < 0


def _forget_shapes(infos: Iterable[ValueInfoProto]) -> None:
    for info in infos:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _collect(graph: Graph, proto: GraphProto, shapes: Shapes) -> None:
    """Note what the inferred proto says of each scope's tensors, by name."""
    for body, scope in bodies_of(graph, proto):
        tensors = {each.name: each for each in scope.graph.inputs}
        tensors.update((out.name, out) for node in scope.graph.nodes for out in node.outputs)
        for info in (*body.value_info, *body.input, *body.output):
            if isinstance(tensors.get(info.name), Variable):
                shapes.note(tensors[info.name], *tensor_type(info), _symbols(info))


def bodies_of(graph: Graph, proto: GraphProto) -> Iterator[tuple[GraphProto, Scope]]:
    """The main graph's proto, as ``skeleton`` wrote it, and those of its subgraphs, each with its scope."""
    scopes = {id(scope.graph): scope for scope in graph.scopes}
    waiting = [(proto, graph.main)]
    while waiting:
        body, scope = waiting.pop()
        yield body, scope
        makers = {out.name: node for node in scope.graph.nodes for out in node.outputs if out.name}
        for inner in body.node:
            node = next((makers[name] for name in inner.output if name in makers), None)
            for attribute in inner.attribute:
                value = node.attrs.get(attribute.name) if node is not None else None
                if isinstance(value, gs.Graph):
                    waiting.append((attribute.g, scopes[id(value)]))
