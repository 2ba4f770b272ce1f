"""Write QuantizeLinear and DequantizeLinear around tensors.

    x -> reader                      ->   x -> Q -> DQ -> reader            (pair: x stays for other readers)
    node -> y -> readers             ->   node -> y' -> Q -> DQ -> y        (fence: y keeps its name and readers)
    Q -> DQ -> x -> Div by 6 -> y    ->   Q -> DQ with a sixth of the scale (rescale)
    x (N,3,H,W) -> Conv              ->   x -> Q -> Pad -> DQ -> Conv       (filled: up to a multiple of channels)
    W_int8                           ->   W_int8 -> DQ                      (decode)

Names are short: each stands several times in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.numerics.integers.affine_int8 import Grid, quantize

# The opsets from which DequantizeLinear takes one scale, one for each index of an axis, blocks, and codes of 16 bits.
PER_TENSOR_OPSET, PER_AXIS_OPSET, BLOCK_OPSET, SIXTEEN_BIT_OPSET = 10, 13, 21, 21


class QdqWriter:
    """Adds the nodes to one scope. grids: tensor -> its grid; equal grids are stored once."""

    def __init__(self, graph: Graph, scope: Scope, grids: Mapping[Any, Grid]) -> None:
        self._graph = graph
        self._scope = scope
        self._grids = grids
        self._count = 0
        self._stored: dict[Any, Constant] = {}
        self._paired: dict[Any, Variable] = {}
        self._codes: dict[Any, Variable] = {}

    def pair(self, tensor: Any) -> Variable:
        """The tensor after quantizing and dequantizing, made once however many ask for it."""
        if tensor not in self._paired:
            self._paired[tensor] = self._variable("f")
            self._quantize(tensor, tensor, self._paired[tensor])
        return self._paired[tensor]

    def fence(self, tensor: Any) -> Variable:
        """Let everything that reads the tensor read it quantized and dequantized; gives what its node then makes."""
        maker = tensor.inputs[0]
        position = next(index for index, each in enumerate(maker.outputs) if each is tensor)
        raw = self._variable("r")
        raw.dtype, raw.shape = tensor.dtype, tensor.shape
        maker.outputs[position] = raw
        self._quantize(raw, tensor, tensor)
        return raw

    def rescale(self, source: Any, tensor: Any) -> None:
        """Let ``tensor``, which nothing makes any more, be what the codes of ``source`` stand for on its own grid."""
        if source not in self._codes:
            self.pair(source)
        self._codes[tensor] = self._codes[source]
        self.decode_as(tensor, self._codes[source], self._grids[tensor])

    def codes_of(self, values: Array, grid: Grid, name: str = "") -> Constant:
        """The codes of a constant's values, as a constant of the scope."""
        return self._graph.constant(self._scope, name or self._name("c"), quantize(values, grid))

    def decode(self, codes: Any, grid: Grid, *, axis: int | None = None, plain: bool = False) -> Variable:
        """What integer codes stand for; ``plain``: without the zero point, which is 0, as biases want it."""
        result = self._variable("f")
        self.decode_as(result, codes, grid, axis=axis, plain=plain)
        return result

    def decode_as(self, result: Any, codes: Any, grid: Grid, *, axis: int | None = None, plain: bool = False) -> None:
        """Let ``result``, which nothing makes yet, be what integer codes stand for."""
        inputs = [codes, self._store(grid.scale), *([] if plain else [self._store(grid.zero_point)])]
        attrs = {} if axis is None else {"axis": axis}
        self._graph.node(self._scope, "DequantizeLinear", inputs, [result], attrs=attrs)

    def quantized(self, source: Any, grid: Grid, result: Any) -> Any:
        """Let ``result``, which nothing makes yet, be ``source`` quantized and dequantized; gives the codes."""
        constants = [self._store(grid.scale), self._store(grid.zero_point)]
        codes = self._variable("q")
        self._graph.node(self._scope, "QuantizeLinear", [source, *constants], [codes])
        self._graph.node(self._scope, "DequantizeLinear", [codes, *constants], [result])
        return codes

    def scaled(self, source: Any, factor: float) -> Variable:
        """A tensor on a grid times a positive number: its codes on a grid of another scale."""
        if source not in self._codes:
            self.pair(source)
        return self.decode(self._codes[source], self._grids[source].times(factor))

    def filled(self, tensor: Any, count: int, *, rank: int) -> Variable:
        """A tensor on a grid with ``count`` channels of zeros more along axis 1, added to its codes."""
        if tensor not in self._codes:
            self.pair(tensor)
        grid = self._grids[tensor]
        widths = np.zeros(2 * rank, np.int64)
        widths[rank + 1] = count
        wide = self._variable("q")
        inputs = [self._codes[tensor], self._store(widths), self._store(grid.zero_point)]
        self._graph.node(self._scope, "Pad", inputs, [wide])
        return self.decode(wide, grid)

    def source_of(self, paired: Any) -> Any:
        """The tensor that a result of ``pair`` stands for."""
        return next(source for source, result in self._paired.items() if result is paired)

    def variable(self) -> Variable:
        """A new tensor between two nodes."""
        return self._variable("f")

    def _quantize(self, source: Any, tensor: Any, result: Any) -> None:
        self._codes[tensor] = self.quantized(source, self._grids[tensor], result)

    def _store(self, values: Array) -> Constant:
        plain = np.asarray(values)
        key = (plain.dtype.str, plain.shape, plain.tobytes())
        if key not in self._stored:
            self._stored[key] = self._graph.constant(self._scope, self._name("s"), plain)
        return self._stored[key]

    def _variable(self, letter: str) -> Variable:
        return self._graph.variable(self._name(letter))

    def _name(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"
