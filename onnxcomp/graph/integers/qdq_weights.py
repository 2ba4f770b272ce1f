"""Put a node's weight and bias on integer grids.

    Conv(x, W, b)              ->   Conv(x, DQ(W_int8), DQ(b_int32))
    Add(MatMul(x, W), b)       ->   Gemm(x, DQ(W_int8), DQ(b_int32))         of two matrices
    Gather(T, rows)            ->   DQ(Gather(T_int8, rows))

A bias stands in the unit of the accumulator, so that it adds no error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.integers.qdq_writer import QdqWriter
from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.graph.integers.units import Unit
from onnxcomp.graph.ir.nodes import Array, Constant, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import set_input
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.numerics.integers.affine_int8 import Grid, bias_floor, quantize_bias, quantize_weight, weight_grid
from onnxcomp.numerics.integers.symmetric_int8 import FULL_LIMIT, REDUCED_LIMIT


class CodeStore:
    """The codes of weights, each stored once however many nodes of a scope read it.

    ONNX Runtime (1.32) may make a MatMulNBits of what it finds no other kernel for, and does not load the model
    where the codes are in a scope further out.
    """

    def __init__(self, graph: Graph, style: QuantizationStyle) -> None:
        self._graph = graph
        self._style = style
        self._codes: dict[Any, Constant] = {}
        # Codes of uint8 x uint8 do not saturate: both are widened before they are multiplied.
        self.limit = REDUCED_LIMIT if style.reduce_range and style.weight == "int8" else FULL_LIMIT

    def grid(self, values: Array, axis: int | None, floor: Array | None = None) -> Grid:
        """The grid of a weight, as the target wants it."""
        style = self._style
        kind: dict[str, Any] = {"dtype": style.weight, "symmetric": style.weight_symmetric}
        return weight_grid(values, axis, limit=self.limit, floor=floor, **kind)

    def codes(
        self, scope: Scope, constant: Constant, form: Any, values: Array, grid: Grid, axis: int | None
    ) -> Constant:
        """The codes of a constant that a node of the scope reads in some form: turned, multiplied."""
        key = (id(scope), constant, form, axis, grid.scale.tobytes(), grid.zero_point.tobytes())
        if key not in self._codes:
            limit = self.limit if self._style.weight_symmetric else None
            name = f"{constant.name}_{self._style.weight}"
            self._codes[key] = self._graph.constant(scope, name, quantize_weight(values, grid, axis, limit=limit))
        return self._codes[key]


class LinearWriter:
    """Rewrites the constant operands of one scope's nodes.

    ``made`` collects, for each unit's key, the names of the constants that its kernel must take as they are.
    """

    def __init__(
        self, graph: Graph, scope: Scope, style: QuantizationStyle, store: CodeStore, writer: QdqWriter
    ) -> None:
        self._graph = graph
        self._scope = scope
        self._style = style
        self._store = store
        self._writer = writer
        self._decoded: dict[Any, Variable] = {}
        self.made: dict[str, set[str]] = {}

    def put(
        self, unit: Unit, input_scale: float, *, is_flat: bool, rank: int | None, filled: int = 0
    ) -> dict[str, Any]:
        """Let the node read its weight, and its bias, as integers.

        rank: of its input, None where unknown. filled: input channels that it gets more, all of zeros.
        """
        linear, node = unit.linear, unit.node
        assert linear is not None
        by_channel = self._style.per_channel and node.op in self._style.channelled
        axis = linear.channel_axis if by_channel and _has_channels(linear) else None
        bias = self._bias_values(unit, is_flat, rank)
        values = _values(linear)
        floor = None if bias is None else _floor(bias, input_scale, values, axis)
        grid = self._store.grid(values, axis, floor)
        if filled:
            values = np.pad(values, [(0, filled if each == 1 else 0) for each in range(values.ndim)])
        form = (linear.perm, linear.alpha, filled)
        codes = self._store.codes(self._scope, linear.weight, form, values, grid, axis)
        node.inputs[1] = self._read(unit, codes, grid, axis)
        if bias is not None:
            self._put_bias(unit, bias, np.resize(input_scale * grid.scale.astype(np.float64), bias.shape), by_channel)
        elif unit.bias is not None and linear.beta != 1 and not self._style.integer_bias:
            node.inputs[2] = self._graph.constant(self._scope, "b", unit.bias * np.float32(linear.beta))
        node.attrs.pop("alpha", None)
        node.attrs.pop("beta", None)
        return {"weight": linear.weight.name, "scales": int(grid.scale.size)}

    def look_up(self, unit: Unit) -> dict[str, Any]:
        """Look codes up in a table, and decode what was found: one scale a column, or one in all."""
        table, node = unit.table, unit.node
        assert table is not None
        values = np.asarray(table.values)
        axis = values.ndim - 1 if self._style.per_channel else None
        grid = self._store.grid(values, axis)
        node.inputs[0] = self._store.codes(self._scope, table, (), values, grid, axis)
        result = node.outputs[0]
        found = self._writer.variable()
        node.outputs[0] = found
        self._writer.decode_as(result, found, grid, axis=None if axis is None else -1)
        return {"weight": table.name, "scales": int(grid.scale.size)}

    def _read(self, unit: Unit, codes: Constant, grid: Grid, axis: int | None) -> Variable:
        self.made.setdefault(unit.key, set()).add(codes.name)
        if codes not in self._decoded:
            self._decoded[codes] = self._writer.decode(codes, grid, axis=axis)
        return self._decoded[codes]

    def _bias_values(self, unit: Unit, is_flat: bool, rank: int | None) -> Array | None:
        """What is to be written as an integer bias, in float64; None where there is none or it stays float."""
        if unit.bias is None or unit.linear is None or not self._style.integer_bias:
            return None
        if unit.bias_add is None:
            return unit.bias.astype(np.float64) * unit.linear.beta
        if not is_flat:
            self._widen_bias(unit, unit.bias, rank)
            return None
        self._become_gemm(unit)
        return unit.bias.astype(np.float64)

    def _put_bias(self, unit: Unit, bias: Array, steps: Array, by_channel: bool) -> None:
        scale = (steps if by_channel else steps[:1].reshape(())).astype(np.float32)
        stored = self._graph.constant(self._scope, "b", quantize_bias(bias, steps))
        self.made.setdefault(unit.key, set()).add(stored.name)
        grid = Grid(scale, np.zeros(scale.shape, np.int32))
        decoded = self._writer.decode(stored, grid, axis=0 if by_channel else None, plain=True)
        set_input(unit.node, 2, decoded)

    def _widen_bias(self, unit: Unit, bias: Array, rank: int | None) -> None:
        """Give the bias as many dimensions as what it is added to.

        ONNX Runtime otherwise joins MatMul and Add to a float Gemm before it looks for integer patterns.
        """
        add = unit.bias_add
        if rank is None or rank < 2 or add is None:
            return
        index = next(i for i, each in enumerate(add.inputs) if isinstance(each, Constant))
        if len(add.inputs[index].shape) != rank:
            shaped = bias.reshape((1,) * (rank - 1) + (-1,))
            add.inputs[index] = self._graph.constant(self._scope, f"{add.inputs[index].name}_wide", shaped)

    def _become_gemm(self, unit: Unit) -> None:
        """MatMul and Add become one Gemm, which has an integer kernel with a bias."""
        assert unit.bias_add is not None
        result = unit.bias_add.outputs[0]
        self._graph.remove_node(self._scope, unit.bias_add)
        unit.node.op = "Gemm"
        unit.node.outputs[0] = result


def _has_channels(op: LinearOp) -> bool:
    """Whether its output channels may have scales of their own: not where many matrices lie one upon another."""
    return op.is_convolution or len(op.perm) == 2


def _values(op: LinearOp) -> Array:
    """The weight as the node sees it, times what a Gemm multiplies with."""
    values = op.seen(np.asarray(op.weight.values))
    return values if op.alpha == 1 else values * np.float32(op.alpha)


def _floor(bias: Array, input_scale: float, values: Array, axis: int | None) -> Array:
    """The least weight scales that keep the bias's codes in range."""
    least = bias_floor(bias, input_scale)
    if axis is None:
        return np.asarray(least.max(initial=0.0))
    # A grouped ConvTranspose has more biases than scales: group after group reads the same ones.
    folded: Array = least.reshape(-1, values.shape[axis]).max(axis=0)
    return folded
