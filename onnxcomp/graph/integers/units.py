"""Which nodes can compute with integers, and what belongs to each of them.

A unit is a node with what an integer kernel does along with it:

    Conv -> Relu                one kernel: the zero point cuts off what is below zero
    MatMul -> Add(bias) -> Clip one kernel, or two of which the second is cheap
    MaxPool, Reshape, ...       move codes about; the grid stays the same
    Mul and Div by 6            nothing to run: the same codes on a grid of another scale
    Gather of a constant table  looks codes up, and decodes what it found

Which operators these are is the target's ``QuantizationStyle``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import (
    clip_bounds,
    constant_behind,
    constant_value,
    given,
    is_onnx,
    node_key,
    producer,
    sole_reader,
)
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.bias import is_per_channel
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op
from onnxcomp.operators import LINEAR

# Operator -> which of its inputs are data, None for all; of the others it is the first.
DATA: dict[str, tuple[int, ...] | None] = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "PRelu": (0, 1),
    "Where": (1, 2),
    "Concat": None,
    "Min": None,
    "Max": None,
    "LayerNormalization": (0, 1),
    "InstanceNormalization": (0, 1),
}
TABLE_VALUES = 2**14  # of smaller tables the codes save less than the nodes that decode them take


@dataclass(frozen=True, eq=False)
class Unit:
    """A node that can compute with integers.

    data: positions of the inputs that carry activations. tails: the tensors whose grid its results are on:
    its outputs, or what comes after the nodes folded into it. bias: (channels,) float32, before a Gemm's beta; None
    without. bias_add: the Add that brings a MatMul's.
    factor: what the one input's codes stand for times this is the result; the node itself need not run.
    joins: the Conv or product that an Add goes into. table: what a Gather looks up.
    clip: the Relu or Clip before the tail.
    """

    key: str
    node: Node
    moves_only: bool
    data: tuple[int, ...]
    tails: tuple[Any, ...]
    linear: LinearOp | None = None
    bias: Array | None = None
    bias_add: Node | None = None
    factor: float | None = None
    joins: Node | None = None
    table: Constant | None = None
    clip: Node | None = None

    @property
    def is_compute(self) -> bool:
        """Whether quantizing this unit pays off on its own."""
        return self.node.op in LINEAR or self.table is not None

    @property
    def inputs(self) -> list[Any]:
        """The tensors that it reads as activations, constants among them."""
        return [self.node.inputs[index] for index in self.data]


def compute_unit(graph: Graph, scope: Scope, node: Node, style: QuantizationStyle) -> Unit | str:
    """The unit of a Conv, ConvTranspose, Gemm or MatMul, or the reason why there is none."""
    key = node_key(scope, node)
    if node.op == "MatMul":
        return _matmul(graph, scope, node, key, style)
    linear = _linear(scope, node)
    if isinstance(linear, str):
        return linear
    bias = _stated_bias(linear)
    if isinstance(bias, str):
        return bias
    tail, clip = _clipped(graph, scope, node.outputs[0])
    return Unit(key, node, False, (0,), (tail,), linear, bias, clip=clip)


def table_unit(scope: Scope, node: Node) -> Unit | None:
    """The unit of a Gather that looks up rows of a constant table, None for any other Gather."""
    table = node.inputs[0]
    if not isinstance(table, Constant) or isinstance(node.inputs[1], Constant) or node.attrs.get("axis", 0) != 0:
        return None
    if len(table.shape) < 2 or table.size < TABLE_VALUES or _unfit(table):
        return None
    return Unit(node_key(scope, node), node, False, (), (node.outputs[0],), table=table)


def element_unit(graph: Graph, scope: Scope, node: Node, style: QuantizationStyle) -> Unit | None:
    """The unit of a node that stands between others, None where the target has no integer form of it."""
    if not is_onnx(node) or not node.outputs:
        return None
    key = node_key(scope, node)
    factor = _positive_factor(node) if style.rescales else None
    if factor is not None:
        index, number = factor
        return Unit(key, node, True, (index,), (node.outputs[0],), factor=number)
    moves = node.op in style.moves
    if moves and _keeps_codes(node):
        unit: Unit | None = Unit(key, node, True, (0,), tuple(node.outputs))
    elif node.op in style.between | style.expands or (moves and style.everywhere):
        unit = _computing(graph, scope, node, style)
    else:
        return None
    return unit if unit is not None and _reads_floats(unit, style) else None


def _computing(graph: Graph, scope: Scope, node: Node, style: QuantizationStyle) -> Unit | None:
    """The unit of a node whose results are on a grid of their own."""
    positions = DATA.get(node.op, (0,))
    data = tuple(range(len(node.inputs))) if positions is None else positions
    if len(node.inputs) <= max(data) or len([each for each in node.outputs if each.name]) != 1:
        return None
    expanded = node.op in style.expands
    tail, clip = (node.outputs[0], None) if expanded else _clipped(graph, scope, node.outputs[0])
    joined = _joined(graph, scope, node, style)
    if joined is None:
        return Unit(node_key(scope, node), node, False, data, (tail,), clip=clip)
    index, maker = joined
    return Unit(node_key(scope, node), node, False, (1 - index,), (tail,), joins=maker, clip=clip)


def _joined(graph: Graph, scope: Scope, node: Node, style: QuantizationStyle) -> tuple[int, Node] | None:
    """Which operand of an Add comes straight from a product with a constant that does nothing else."""
    if not style.joins_sums or node.op != "Add" or any(isinstance(each, Constant) for each in node.inputs):
        return None
    for index, operand in enumerate(node.inputs):
        maker = producer(operand)
        if maker is None or not is_onnx(maker, *style.computes) or sole_reader(graph, scope, operand) is not node:
            continue
        if constant_behind(maker.inputs[1]) is not None:
            return index, maker
    return None


def _reads_floats(unit: Unit, style: QuantizationStyle) -> bool:
    """Whether the unit reads something computed, and its constants are float32."""
    constants = [each for each in unit.inputs if isinstance(each, Constant)]
    if any(each.dtype != np.float32 or not each.size for each in constants) or len(constants) == len(unit.data):
        return False
    return not (unit.moves_only and constants)


def _positive_factor(node: Node) -> tuple[int, float] | None:
    """Where a Mul or Div by a positive number has its other operand, and the number that it multiplies by."""
    if node.op not in ("Mul", "Div"):
        return None
    for index in (1, 0) if node.op == "Mul" else (1,):
        values = constant_value(node.inputs[index])
        if values is None or values.size != 1 or values.ndim > 1 or values.dtype != np.float32:
            continue
        number = float(values.reshape(-1)[0])
        if isinstance(node.inputs[1 - index], Constant) or not 1e-6 < number < 1e6:
            return None
        return 1 - index, number if node.op == "Mul" else 1 / number
    return None


def _keeps_codes(node: Node) -> bool:
    if node.op == "Resize":
        return bool(node.attrs.get("mode", "nearest") == "nearest")
    if node.op == "Pad":
        return node.attrs.get("mode", "constant") != "constant" or _pads_zeros(node)
    if node.op == "MaxPool":
        return len([each for each in node.outputs if each.name]) == 1
    return all(each.name for each in node.outputs)


def _pads_zeros(node: Node) -> bool:
    fill = given(node, 2)
    value = node.attrs.get("value", 0.0) if fill is None else constant_value(fill)
    return value is not None and not np.any(value)


def _matmul(graph: Graph, scope: Scope, node: Node, key: str, style: QuantizationStyle) -> Unit | str:
    left, result = node.inputs[0], node.outputs[0]
    if constant_behind(node.inputs[1]) is None:
        if isinstance(left, Constant) and left.dtype != np.float32:
            return f"its weight is {left.dtype}"
        tail, clip = _clipped(graph, scope, result)
        return Unit(key, node, False, (0, 1), (tail,), clip=clip)
    found = _linear(scope, node)
    if isinstance(found, str):
        return found
    add, bias = _bias_add(graph, found) if len(found.perm) == 2 and style.integer_bias else (None, None)
    tail, clip = _clipped(graph, scope, result if add is None else add.outputs[0])
    return Unit(key, node, False, (0,), (tail,), found, bias, add, clip=clip)


def _linear(scope: Scope, node: Node) -> LinearOp | str:
    """What multiplies float32 data with a weight of finite float32 values on the right."""
    found = linear_op(scope, node, index=1)
    if isinstance(found, str):
        return found
    return "both its operands are constants" if isinstance(found.data, Constant) else _unfit(found.weight) or found


def _stated_bias(op: LinearOp) -> Array | str | None:
    """The bias of a Gemm or convolution, (channels,); None where there is none."""
    if op.addend is None:
        return None
    values = constant_value(op.addend)
    if values is None or values.dtype != np.float32:
        return "its bias is not a float32 constant"
    if op.is_convolution:
        return values
    if values.ndim > 2 or (values.ndim == 2 and values.shape[0] != 1):
        return "its bias differs from row to row"
    return np.broadcast_to(values.reshape(-1), (op.channels,))


def _unfit(weight: Constant) -> str | None:
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}"
    if not weight.size:
        return "its weight is empty"
    return None if np.isfinite(weight.values).all() else "its weight has values that are not finite"


def _bias_add(graph: Graph, op: LinearOp) -> tuple[Node | None, Array | None]:
    """The Add of one number a column that follows a MatMul, and these numbers (columns,)."""
    bias, columns = op.bias(graph), op.channels
    values = constant_value(bias.tensor)
    if values is None or values.dtype != np.float32 or not is_per_channel(bias.tensor, columns) or values.ndim > 3:
        return None, None
    return bias.holder, values.reshape(-1)


def _clipped(graph: Graph, scope: Scope, tensor: Any) -> tuple[Any, Node | None]:
    """What comes after a Relu or a Clip from zero up, and that node; else the tensor itself, and None."""
    reader = sole_reader(graph, scope, tensor)
    if reader is None or not is_onnx(reader) or reader.inputs[0] is not tensor:
        return tensor, None
    if reader.op == "Relu" or (reader.op == "Clip" and _starts_at_zero(reader)):
        return reader.outputs[0], reader
    return tensor, None


def _starts_at_zero(clip: Node) -> bool:
    """Whether a Clip cuts off all below zero and perhaps what is above a positive constant."""
    low, high = clip_bounds(clip) or (None, None)
    return low == 0 and (high is None or high > 0)
