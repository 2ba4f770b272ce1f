"""The shapes at which a model is timed: those of all its tensors while the sample runs that latencies are measured on.

What inference does not prove of them (sizes that a graph computes) is seen in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import helper

from onnxcomp.contract.context import Context
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.extract import up_to
from onnxcomp.graph.infer.shapes import Shape, Shapes, infer_shapes
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.input_shapes import Dims

SEEN_AT_ONCE = 64  # tensors that are held together


def timed_shapes(graph: Graph, context: Context) -> Shapes:
    """Of the model that the graph was opened from; the model remembers them. Without data, those that are proven for a
    batch of one."""
    memo, key = graph.model.memo, (timed_shapes, context.calibration)
    if key not in memo:
        memo[key] = dict(_by_name(graph, _observed(graph, context)))
    return filled_in(graph, context, memo[key])


def filled_in(graph: Graph, context: Context, known: Mapping[str, Shape]) -> Shapes:
    """The shapes of a graph of which some are cut: what inference does not prove is as it was. known: by name."""
    shapes = _inferred(graph, context)
    for name, tensor in _tensors(graph):
        before, now = known.get(name), shapes.shape(tensor)
        if before is None or (now is not None and len(now) != len(before)):
            continue
        sizes = zip(now or (None,) * len(before), before, strict=True)
        shapes.note(tensor, 0, tuple(was if size is None else size for size, was in sizes))
    return shapes


def _by_name(graph: Graph, shapes: Shapes) -> Iterator[tuple[str, Shape]]:
    for name, tensor in _tensors(graph):
        shape = shapes.shape(tensor)
        if shape is not None:
            yield name, shape


def _inferred(graph: Graph, context: Context) -> Shapes:
    data = context.calibration
    if data is None:
        return infer_shapes(graph, batch=1, computed=True)
    stated: dict[str, Dims] = {name: tuple(shape) for name, shape in data.timed_shapes().items()}
    return infer_shapes(graph, computed=True, inputs=stated)


def _observed(graph: Graph, context: Context) -> Shapes:
    """What inference proves, and of the rest what a run shows; that of a model that does not run so stays open."""
    shapes = _inferred(graph, context)
    open_yet = {name: tensor for name, tensor in _tensors(graph) if shapes.static(tensor) is None}
    if context.calibration is None or not open_yet:
        return shapes
    feeds, names = context.calibration.timed_sample(), list(open_yet)
    part = up_to(graph.model, names)
    try:
        with part.opened_on(context.open_session) as session:
            for start in range(0, len(names), SEEN_AT_ONCE):
                for name, value in session.run(feeds, names[start : start + SEEN_AT_ONCE]).items():
                    if isinstance(value, np.ndarray):
                        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                        shapes.note(open_yet[name], kind, value.shape)
    except (TargetError, VerificationError):
        return shapes
    return shapes


def _tensors(graph: Graph) -> Iterator[tuple[str, object]]:
    """What the nodes of the main graph make, by name."""
    for node in graph.main.graph.nodes:
        for each in node.outputs:
            if each.name:
                yield each.name, each
