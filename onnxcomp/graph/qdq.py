"""Write QuantizeLinear and DequantizeLinear around tensors.

    x -> reader                      ->   x -> Q -> DQ -> reader            (pair: x stays for other readers)
    node -> y -> readers             ->   node -> y' -> Q -> DQ -> y        (fence: y keeps its name and readers)
    Q -> DQ -> x -> Div by 6 -> y    ->   Q -> DQ with a sixth of the scale (rescale)
    W                                ->   W_int8 -> DQ                      (codes)

Names are short: each stands several times in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Variable
from onnxcomp.graph.surgery import Graph, Scope
from onnxcomp.numerics.integer import Grid, quantize


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

    def fence(self, tensor: Any) -> None:
        """Let everything that reads the tensor read it quantized and dequantized."""
        maker = tensor.inputs[0]
        position = next(index for index, each in enumerate(maker.outputs) if each is tensor)
        raw = self._variable("r")
        raw.dtype, raw.shape = tensor.dtype, tensor.shape
        maker.outputs[position] = raw
        self._quantize(raw, tensor, tensor)

    def rescale(self, source: Any, tensor: Any) -> None:
        """Let ``tensor``, which nothing makes any more, be what the codes of ``source`` stand for on its own grid."""
        if source not in self._codes:
            self.pair(source)
        grid = self._grids[tensor]
        self._codes[tensor] = self._codes[source]
        inputs = [self._codes[source], self._store(grid.scale), self._store(grid.zero_point)]
        self._graph.node(self._scope, "DequantizeLinear", inputs, [tensor])

    def constant(self, values: Array, grid: Grid) -> Variable:
        """A constant operand as codes of a grid of its own."""
        return self.codes(quantize(values, grid), grid.scale, grid.zero_point)

    def codes(
        self, codes: Array, scale: Array, zero_point: Array | None, *, axis: int | None = None, name: str = ""
    ) -> Variable:
        """What integer codes stand for; scale () or, along ``axis``, (channels,)."""
        stored = self._graph.constant(self._scope, name or self._name("c"), codes)
        inputs = [stored, self._store(scale), *([] if zero_point is None else [self._store(zero_point)])]
        result = self._variable("f")
        attrs = {} if axis is None else {"axis": axis}
        self._graph.node(self._scope, "DequantizeLinear", inputs, [result], attrs=attrs)
        return result

    def _quantize(self, source: Any, tensor: Any, result: Any) -> None:
        grid = self._grids[tensor]
        constants = [self._store(grid.scale), self._store(grid.zero_point)]
        codes = self._codes[tensor] = self._variable("q")
        self._graph.node(self._scope, "QuantizeLinear", [source, *constants], [codes])
        self._graph.node(self._scope, "DequantizeLinear", [codes, *constants], [result])

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
