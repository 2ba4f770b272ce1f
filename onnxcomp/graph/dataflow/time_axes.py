"""The axes of a model's inputs along which it walks or slides: time or space, so no axis of samples.

    x (T, N, F) -> Transpose -> LSTM<layout = 1>: axis 0 of x is time

From every input its axes are followed through whatever keeps them apart, to LSTM, GRU, RNN, Scan, Loop, CumSum and
the places that a Conv slides over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.graph.ir.functions import written_out
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import given, ints, is_onnx, producer, tensor_behind
from onnxcomp.graph.ir.reader import shown
from onnxcomp.graph.ir.scopes import subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.model import Model
from onnxcomp.operators import RECURRENT

Axes = tuple[frozenset[tuple[str, int]], ...]
"""For each axis of a tensor the axes of inputs that it is."""
NONE: frozenset[tuple[str, int]] = frozenset()

SLIDING = frozenset({"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
# Elementwise, or along axes that stay where they are.
KEEPS = frozenset({
    "Identity", "Cast", "CastLike", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "Tanh",
    "HardSigmoid", "HardSwish", "Mish", "Softplus", "Softsign", "ThresholdedRelu", "Erf", "Exp", "Log", "Sqrt", "Neg",
    "Abs", "Reciprocal", "Clip", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "Equal",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Sin", "Cos", "Floor", "Round", "Ceil",
})  # fmt: skip
OF_FIRST = frozenset({
    "Dropout", "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization", "LpNormalization", "Slice", "Pad", "Split", "QuantizeLinear",
    "DequantizeLinear", "CumSum", "Trilu", "ReverseSequence",
})  # fmt: skip
BATCHLESS_SCAN_OPSET = 9  # before, Scan's inputs had the batch first
COUNTS = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"})  # what may stand between a size and a Loop
STEPS = COUNTS | {"Add", "Sub", "Concat"}  # and between a Loop's count and what it looks up


def time_axes(model: Model) -> Mapping[str, frozenset[int]]:
    """For each input of the main graph the axes that cannot hold the samples; inputs without any are left out."""
    graph = shown(written_out(model))
    walk = _Walk(graph.opset)
    for each in graph.main.graph.inputs:
        if each.shape is not None:
            walk.axes[each] = tuple(frozenset({(each.name, axis)}) for axis in range(len(each.shape)))
    walk.visit(graph.main.graph)
    found: dict[str, set[int]] = {}
    for name, axis in walk.walked:
        found.setdefault(name, set()).add(axis)
    return {name: frozenset(axes) for name, axes in found.items()}


class _Walk:
    """Follows axes down a graph; ``walked``: those of inputs that are not the samples'."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self.axes: dict[Any, Axes] = {}
        self.walked: set[tuple[str, int]] = set()

    def visit(self, body: gs.Graph) -> None:
        for node in ordered(body.nodes):
            if not is_onnx(node):
                continue
            self._mark(node)
            for out, axes in zip(node.outputs, self._outputs(node), strict=False):
                if axes is not None and out.name:
                    self.axes[out] = axes

    # --- what runs along an axis ---

    def _mark(self, node: Node) -> None:
        if node.op in RECURRENT:
            self._walk(node.inputs[0], 1 if node.attrs.get("layout", 0) else 0)
        elif node.op == "CumSum":
            for axis in ints(given(node, 1)) or []:
                self._walk(node.inputs[0], axis)
        elif node.op in SLIDING:
            for axis in range(2, len(self.axes.get(node.inputs[0], ()))):
                self._walk(node.inputs[0], axis)
        elif node.op == "Scan":
            self._mark_scan(node)
        elif node.op == "Loop":
            self._mark_loop(node)

    def _walk(self, tensor: Any, axis: int) -> None:
        axes = self.axes.get(tensor, ())
        if -len(axes) <= axis < len(axes):
            self.walked |= axes[axis]

    def _mark_scan(self, node: Node) -> None:
        count = node.attrs.get("num_scan_inputs", 0)
        first = 0 if self._opset >= BATCHLESS_SCAN_OPSET else 1
        along = node.attrs.get("scan_input_axes") or [first] * count
        for tensor, axis in zip(node.inputs[len(node.inputs) - count :], along, strict=False):
            self._walk(tensor, axis)

    def _mark_loop(self, node: Node) -> None:
        """A Loop runs along what it looks up by its own count, and along the axis whose size is that count."""
        counted = producer(tensor_behind(given(node, 0), *COUNTS))
        if counted is not None and is_onnx(counted, "Gather", "Slice", "Shape"):
            self._mark_counted(counted)
        for body in subgraphs_of(node):
            for inner in body.nodes:
                if is_onnx(inner, "Gather", "Slice") and self._steps(given(inner, 1), body.inputs[0]):
                    axes = [inner.attrs.get("axis", 0)] if inner.op == "Gather" else ints(given(inner, 3)) or []
                    for axis in axes:
                        self._walk(inner.inputs[0], axis)

    def _mark_counted(self, node: Node) -> None:
        """The axis whose size Shape, and a choice of one of its elements, gives."""
        shape = node if node.op == "Shape" else producer(node.inputs[0])
        if shape is None or not is_onnx(shape, "Shape"):
            return
        place = [shape.attrs.get("start", 0)] if node is shape else ints(given(node, 1)) or []
        for axis in place[:1]:
            self._walk(shape.inputs[0], axis)

    def _steps(self, index: Any, count: Any) -> bool:
        """Whether an index is made of a loop's count."""
        waiting = [index]
        while waiting:
            tensor = waiting.pop()
            if tensor is count:
                return True
            node = producer(tensor)
            if node is not None and is_onnx(node) and node.op in STEPS:
                waiting += node.inputs
        return False

    # --- where axes go ---

    def _outputs(self, node: Node) -> Sequence[Axes | None]:
        first = self.axes.get(node.inputs[0]) if node.inputs else None
        if node.op in KEEPS:
            return [_aligned(self._axes(each) for each in node.inputs if each.name)]
        if node.op == "If":
            return self._branches(node)
        if node.op == "MatMul":
            return [self._product(node)]
        if node.op == "Gather":
            return [self._gathered(node)]
        if node.op == "Concat":
            return [_aligned(self._axes(each) for each in node.inputs)]
        if first is None:
            return []
        if node.op in OF_FIRST:
            return [first] * len(node.outputs)
        if node.op in RECURRENT:
            return _of_recurrent(first, bool(node.attrs.get("layout", 0)))
        if node.op in SLIDING and len(first) > 2:
            return [(first[0], NONE, *first[2:])]
        return [_moved(node, first)]

    def _axes(self, tensor: Any) -> Axes | None:
        return (NONE,) * len(tensor.shape) if isinstance(tensor, Constant) else self.axes.get(tensor)

    def _branches(self, node: Node) -> list[Axes | None]:
        bodies = subgraphs_of(node)
        for body in bodies:
            self.visit(body)
        results = zip(*(body.outputs for body in bodies), strict=False)
        return [_aligned(self._axes(each) for each in outputs) for outputs in results]

    def _product(self, node: Node) -> Axes | None:
        one, other = (self._axes(each) for each in node.inputs)
        if one is None or len(one) < 2 or (other is not None and len(other) < 2):
            return None
        batch = _aligned([one[:-2], other[:-2] if other else None]) or ()
        return (*batch, one[-2], other[-1] if other else NONE)

    def _gathered(self, node: Node) -> Axes | None:
        data, index = (self._axes(each) for each in node.inputs[:2])
        if data is None or index is None:
            return None
        axis = node.attrs.get("axis", 0) % max(1, len(data))
        return (*data[:axis], *index, *data[axis + 1 :])


def _aligned(several: Iterable[Axes | None]) -> Axes | None:
    """The axes of tensors that are broadcast to each other: the last ones are the same. What is unknown is left out."""
    known = [tuple(reversed(each)) for each in several if each is not None]
    if not known:
        return None
    return tuple(NONE.union(*own) for own in zip_longest(*known, fillvalue=NONE))[::-1]


def _moved(node: Node, axes: Axes) -> Axes | None:
    """What an operator makes of the axes of its first input; None where it mixes them."""
    if node.op == "Transpose":
        order = node.attrs.get("perm") or range(len(axes))[::-1]
        return tuple(axes[axis] for axis in order) if len(order) == len(axes) else None
    if node.op in ("Squeeze", "Unsqueeze"):
        places = node.attrs.get("axes") or ints(given(node, 1))
        return None if places is None else _resized(axes, places, grows=node.op == "Unsqueeze")
    if node.op == "Flatten" and node.attrs.get("axis", 1) == 1 and axes:
        return (axes[0], NONE)
    if node.op == "Gemm" and not node.attrs.get("transA", 0) and len(axes) == 2:
        return (axes[0], NONE)
    if node.op == "Reshape":
        return _reshaped(ints(given(node, 1)), axes)
    return None


def _resized(axes: Axes, places: Sequence[int], *, grows: bool) -> Axes:
    rank = len(axes) + (len(places) if grows else 0)
    chosen = {place % rank for place in places} if rank else set()
    if not grows:
        return tuple(each for axis, each in enumerate(axes) if axis not in chosen)
    left = iter(axes)
    return tuple(NONE if axis in chosen else next(left, NONE) for axis in range(rank))


def _reshaped(shape: list[int] | None, axes: Axes) -> Axes | None:
    """The first axes that are copied as they are (0 in the shape)."""
    if shape is None:
        return None
    copied = next((place for place, size in enumerate(shape) if size != 0), len(shape))
    return (*axes[:copied], *(NONE for _ in shape[copied:]))


def _of_recurrent(axes: Axes, is_batch_first: bool) -> list[Axes | None]:
    """The axes of Y, Y_h and Y_c from those of X."""
    if len(axes) != 3:
        return []
    if is_batch_first:
        batch, time, _ = axes
        return [(batch, time, NONE, NONE), (batch, NONE, NONE), (batch, NONE, NONE)]
    time, batch, _ = axes
    return [(time, NONE, batch, NONE), (NONE, batch, NONE), (NONE, batch, NONE)]
