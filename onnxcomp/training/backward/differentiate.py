"""The derivative of a graph, written behind it; only what stands between a parameter and the loss is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.training.backward.families import RULES
from onnxcomp.training.backward.sweep import between, sweep
from onnxcomp.training.backward.values import Value, Writer

assert RULES  # all families have registered theirs


@dataclass(frozen=True)
class Derivative:
    """What was written.

    gradients: by parameter, as far as the loss depends on it. reasons: by operator, why it could not be differentiated;
    the gradients are then incomplete.
    """

    gradients: dict[Any, Value]
    reasons: dict[str, str]


def differentiate(graph: Graph, shapes: Shapes, loss: Any, parameters: Sequence[Any]) -> Derivative:
    """Write d loss / d parameter into the main graph, whose nodes are in order.

    loss: a float tensor of one element. parameters: tensors of the main graph.
    """
    writer = Writer(graph, shapes)
    way = between(graph.main.graph.nodes, shapes, [loss], parameters)
    made = sweep(writer, way, {loss: _one(writer, loss)})
    return Derivative({each: made.adjoints[each] for each in parameters if each in made.adjoints}, made.reasons)


def _one(writer: Writer, loss: Any) -> Value:
    dtype = helper.tensor_dtype_to_np_dtype(writer.shapes.data_type(loss))
    static = writer.shapes.static(loss)
    if static is not None:
        return writer.constant(np.ones(static, dtype))
    return writer.constant(np.ones((), dtype)).expand(writer.shape(writer.value(loss)))
