"""Put a plan into effect on one scope: QuantizeLinear and DequantizeLinear where the target finds its kernels.

    x -> Conv(W, b) -> Relu -> y      ->   x -> Q -> DQ -> Conv(DQ(W_int8), DQ(b_int32)) -> Relu -> Q -> DQ -> y
    HardSigmoid(x)                    ->   Q -> DQ with alpha times the scale -> Add(beta) -> Clip(0, 1) -> Q -> DQ
    HardSwish(x)                      ->   Mul(x, HardSigmoid(x))

What is noted of each unit is enough to find out later what the target made of it (``idle``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.graph.integers.placement import Placement
from onnxcomp.graph.integers.qdq_weights import CodeStore, LinearWriter
from onnxcomp.graph.integers.qdq_writer import QdqWriter
from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.graph.integers.units import Unit
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import given, is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.numerics.integers.affine_int8 import Grid, activation_grid, quantize_bias

PAD_OPSET = 13  # of all types; before, with the widths as an attribute, or of floats only
NORMS = ("LayerNormalization", "InstanceNormalization")


@dataclass(frozen=True)
class Mark:
    """By what a unit is found in the model that the target optimized.

    codes: constants that its kernel takes as they are. made: the tensors that it makes, as floats.
    """

    codes: frozenset[str]
    made: frozenset[str]


@dataclass
class Rewritten:
    """What was done.

    keys: of all units of the plans. changes: each unit that computes for its own sake, in order, and details of it.
    marks: by the unit's key.
    """

    keys: frozenset[str] = frozenset()
    changes: list[tuple[Unit, dict[str, Any]]] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)


class QdqInsertion:
    """Puts the plan of one scope into effect.

    grids: every tensor of the plan -> its grid. rank: of a tensor, None where it is not known.
    """

    def __init__(
        self,
        graph: Graph,
        scope: Scope,
        plan: Placement,
        grids: dict[Any, Grid],
        rank: Callable[[Any], int | None],
        style: QuantizationStyle,
        store: CodeStore,
    ) -> None:
        self._graph = graph
        self._scope = scope
        self._plan = plan
        self._grids = grids
        self._rank = rank
        self._style = style
        self._writer = QdqWriter(graph, scope, grids)
        self._linear = LinearWriter(graph, scope, style, store, self._writer)
        self._made: dict[str, set[str]] = {}

    def run(self, done: Rewritten) -> None:
        """Rewrite, and note in ``done`` what was done."""
        fenced = [
            tensor for tensor, maker in self._plan.makers.items() if maker.bias_add is None or self._is_flat(maker)
        ]
        made = set(fenced)
        followers = self._followers()
        for unit in self._plan.units:
            details = self._put(unit, made)
            if unit.is_compute:
                details |= {"between": followers[unit.key]} if followers[unit.key] else {}
                done.changes.append((unit, details))
            self._made.setdefault(unit.key, set()).update(each.name for each in unit.tails)
        for tensor in fenced:
            self._close(tensor, self._plan.makers[tensor])
        self._fence_bodies(fenced)
        for unit in self._plan.units:
            codes = frozenset(self._linear.made.get(unit.key, ()))
            done.marks[unit.key] = Mark(codes, frozenset(self._made[unit.key]))

    def _put(self, unit: Unit, fenced: set[Any]) -> dict[str, Any]:
        """Let a unit read what is on grids."""
        if unit.table is not None:
            return self._linear.look_up(unit)
        details: dict[str, Any] = {}
        if unit.linear is not None:
            scale = float(self._grids[unit.inputs[0]].scale)
            tensor = unit.inputs[0]
            filled = self._filled(unit)
            rank = self._rank(tensor)
            details = self._linear.put(unit, scale, is_flat=self._is_flat(unit), rank=rank, filled=filled)
            if filled:
                unit.node.inputs[0] = self._writer.filled(tensor, filled, rank=len(unit.linear.weight.shape))
                return details
        norm_scale = self._norm_scale(unit)
        for index in unit.data if unit.factor is None else ():
            tensor = unit.node.inputs[index]
            unit.node.inputs[index] = self._operand(unit, tensor, tensor in fenced)
        if norm_scale is not None:
            self._put_norm_bias(unit, norm_scale)
        return details

    def _filled(self, unit: Unit) -> int:
        """How many input channels a first Conv is to get more.

        None behind a Transpose: the kernel's own layout has channels last, so that the two cancel, and filling up
        the last axis takes as long as it saves.
        """
        linear, tensor = unit.linear, unit.inputs[0]
        if linear is None or not is_onnx(unit.node, "Conv") or unit.node.attrs.get("group", 1) != 1:
            return 0
        outputs, channels, *kernel = linear.weight.shape
        is_whole = outputs % self._style.whole_outputs == 0 and max(kernel, default=1) > 1
        if not is_whole or channels >= self._style.least_channels or linear.is_turned:
            return 0
        is_first = not tensor.inputs or not is_onnx(tensor.inputs[0], "Transpose")
        return self._style.least_channels - channels if is_first and self._scope.opset >= PAD_OPSET else 0

    def _operand(self, unit: Unit, tensor: Any, fenced: bool) -> Any:
        if not isinstance(tensor, Constant):
            return tensor if fenced else self._writer.pair(tensor)
        values = tensor.values
        grid = self._activation_grid(float(values.min()), float(values.max()))
        codes = self._writer.codes_of(values, grid)
        self._linear.made.setdefault(unit.key, set()).add(codes.name)
        return self._writer.decode(codes, grid)

    def _close(self, tensor: Any, maker: Unit) -> None:
        """Put what a unit makes on its grid."""
        if maker.factor is not None:
            source = maker.inputs[0]
            self._graph.remove_node(self._scope, maker.node)
            self._writer.rescale(source, tensor)
            self._made[maker.key] = set()
            return
        if self._style.drops_clips and maker.clip is not None and self._is_cut_off(tensor):
            self._drop(maker.clip)
        raw = self._writer.fence(tensor)
        made = self._made[maker.key]
        made.discard(tensor.name)
        made.add(raw.name)
        if maker.node.op in self._style.expands:
            self._expand(maker, raw)

    def _is_cut_off(self, tensor: Any) -> bool:
        """Whether the grid holds nothing below zero."""
        zero_point = self._grids[tensor].zero_point
        return int(zero_point) == int(np.iinfo(zero_point.dtype).min)

    def _drop(self, clip: Node) -> None:
        """Let what a Relu or Clip reads take the place of what it makes."""
        source, tensor = clip.inputs[0], clip.outputs[0]
        maker = source.inputs[0]
        self._graph.remove_node(self._scope, clip)
        maker.outputs[next(index for index, each in enumerate(maker.outputs) if each is source)] = tensor

    def _expand(self, unit: Unit, raw: Any) -> None:
        """Write out a HardSigmoid or HardSwish, whose node makes ``raw``, in operators that have kernels."""
        node, operand = unit.node, unit.node.inputs[0]
        source = operand if operand in self._grids else self._writer.source_of(operand)
        swish = node.op == "HardSwish"
        alpha = 1 / 6 if swish else float(node.attrs.get("alpha", 0.2))
        beta = 0.5 if swish else float(node.attrs.get("beta", 0.5))
        put = self._graph.node
        shift = np.asarray(beta, np.float32)
        codes = self._writer.codes_of(shift, shift_grid := self._activation_grid(min(beta, 0.0), max(beta, 0.0)))
        self._linear.made.setdefault(unit.key, set()).add(codes.name)
        total, gate = self._writer.variable(), self._writer.variable() if swish else raw
        ends = [self._graph.constant(self._scope, "e", np.asarray(each, np.float32)) for each in (0, 1)]
        scaled = self._writer.scaled(source, alpha)
        put(self._scope, "Add", [scaled, self._writer.decode(codes, shift_grid)], [total])
        self._graph.remove_node(self._scope, node)
        put(self._scope, "Clip", [total, *ends], [gate])
        self._made[unit.key].add(gate.name)
        if swish:
            product = self._writer.variable()
            self._writer.quantized(gate, self._activation_grid(0.0, 1.0), product)
            put(self._scope, "Mul", [operand, product], [raw])

    def _activation_grid(self, low: float, high: float) -> Grid:
        style = self._style
        return activation_grid(low, high, dtype=style.activation, symmetric=style.activation_symmetric)

    def _norm_scale(self, unit: Unit) -> float | None:
        """The scale of a normalization's input, where its bias is to be an integer."""
        if not self._style.integer_bias or not is_onnx(unit.node, *NORMS):
            return None
        constants = (given(unit.node, 2), unit.node.inputs[1])
        if not all(isinstance(each, Constant) and each.dtype == np.float32 for each in constants):
            return None
        return float(self._grids[unit.inputs[0]].scale)

    def _put_norm_bias(self, unit: Unit, input_scale: float) -> None:
        values = unit.node.inputs[2].values
        weight_scale = self._linear_scale(unit.node.inputs[1])
        step = np.asarray(input_scale * weight_scale)
        stored = self._graph.constant(self._scope, "b", quantize_bias(values, step))
        grid = Grid(step.astype(np.float32), np.zeros((), np.int32))
        unit.node.inputs[2] = self._writer.decode(stored, grid, plain=True)

    def _linear_scale(self, decoded: Any) -> float:
        """The scale of what a DequantizeLinear made."""
        return float(decoded.inputs[0].inputs[1].values)

    def _fence_bodies(self, fenced: list[Any]) -> None:
        """Let subgraphs read from a grid, too, what float nodes that only move values make of a fenced tensor.

        ONNX Runtime (1.31) moves a DequantizeLinear behind such nodes, and where a subgraph alone reads what
        they make, opening the session ends the whole process.
        """
        movers = self._style.moves - {"Resize"} | {"Identity"}
        own, done = {id(node) for node in self._scope.graph.nodes}, set(fenced)
        waiting = list(fenced)
        while waiting:
            tensor = waiting.pop()
            readers = [each for each in tensor.outputs if id(each) in own and is_onnx(each, *movers)]
            for out in (each for node in readers if node.inputs[0] is tensor for each in _moved(node)):
                if out in done:
                    continue
                done.add(out)
                waiting.append(out)
                self._grids.setdefault(out, self._grids[tensor])
                if any(id(each) not in own for each in out.outputs):
                    self._writer.fence(out)

    def _followers(self) -> dict[str, list[str]]:
        """For each compute node, which nodes after it run on integers because it does."""
        found: dict[str, list[str]] = {unit.key: [] for unit in self._plan.units if unit.is_compute}
        owner: dict[Any, str] = {}
        for unit in self._plan.units:
            key = unit.key if unit.is_compute else next((owner[each] for each in unit.inputs if each in owner), None)
            if key is None:
                continue
            owner.update((tail, key) for tail in unit.tails)
            if not unit.is_compute:
                found[key].append(unit.key)
        return found

    def _is_flat(self, unit: Unit) -> bool:
        """Whether a MatMul is one of two matrices, which a Gemm can do with its bias."""
        return bool(unit.inputs) and self._rank(unit.inputs[0]) == 2


def _moved(node: Node) -> list[Any]:
    """The outputs of a node that moves values which hold such values; MaxPool's second holds positions."""
    return [each for each in (node.outputs if node.op == "Split" else node.outputs[:1]) if each.name]
