"""A model of one operator between two matrix products, so that there are channels to follow through it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from tests.conformance.cases import Case

FLOATS = (np.float32, np.float64, np.float16)


def wrapped(case: Case) -> Iterator[ModelProto]:
    """A model for each axis along which the first input, and the first output, can have channels.

    The input is the product of what is fed with a matrix near to the identity, so that values stay in their domain.
    """
    proto = case.model
    name = next((each.name for each in proto.graph.input if _is_floats(case.feeds.get(each.name))), "")
    target = proto.graph.output[0].name
    if not name or not _is_floats(case.outputs[target]):
        return
    fed, made = case.feeds[name], np.asarray(case.outputs[target])
    for axis in range(fed.ndim):
        for other in range(made.ndim):
            if fed.shape[axis] > 2 and made.shape[other] > 1:
                yield _between(proto, name, axis, fed, target, other, made)


def _is_floats(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in FLOATS and value.size > 0


def _between(
    proto: ModelProto, name: str, axis: int, fed: np.ndarray, target: str, other: int, made: np.ndarray
) -> ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph, random = result.graph, np.random.default_rng(axis + 10 * other)
    count = fed.shape[axis]
    square = np.eye(count) + 0.01 * random.uniform(size=(count, count))
    reader = random.standard_normal((made.shape[other], 2)) / made.shape[other]
    for node in graph.node:
        node.input[:] = [f"{each}_mixed" if each == name else each for each in node.input]
    before = _product(name, f"{name}_mixed", axis, fed.ndim, square.astype(fed.dtype), graph)
    after = _product(target, f"{target}_read", other, made.ndim, reader.astype(made.dtype), graph)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.output[:]
    shape = [2 if each == other else size for each, size in enumerate(made.shape)]
    element = helper.np_dtype_to_tensor_dtype(made.dtype)
    graph.output.append(helper.make_tensor_value_info(f"{target}_read", element, shape))
    return result


def _product(
    source: str, target: str, axis: int, rank: int, matrix: np.ndarray, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Nodes that multiply a tensor with a matrix along an axis; the matrix becomes a constant."""
    order = [*(each for each in range(rank) if each != axis), axis]
    graph.initializer.append(numpy_helper.from_array(matrix, f"{target}_matrix"))
    if axis == rank - 1:
        return [helper.make_node("MatMul", [source, f"{target}_matrix"], [target])]
    return [
        helper.make_node("Transpose", [source], [f"{target}_turned"], perm=order),
        helper.make_node("MatMul", [f"{target}_turned", f"{target}_matrix"], [f"{target}_product"]),
        helper.make_node("Transpose", [f"{target}_product"], [target], perm=[order.index(i) for i in range(rank)]),
    ]
