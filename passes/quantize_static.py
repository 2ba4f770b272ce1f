"""Weights and activations become 8-bit integers, so that Conv, Gemm and MatMul run on integer kernels.

    x -> Conv(W, b) -> Relu -> y
    x -> Q -> DQ -> Conv(DQ(W_int8), DQ(b_int32)) -> Relu -> Q -> DQ -> y

ONNX Runtime replaces each such pattern by one kernel. The grids of the activations come from calibration:
the range that each tensor takes while samples run through the model. Weights have one scale an output channel,
biases the unit of the accumulator, so that they add no error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.calibration.observe import Observation, observe
from onnxcomp.contract import Context, Effect, Needs, Outcome, Pass, parameter
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.edit import is_onnx, node_key
from onnxcomp.graph.integer_plan import Plan, make_plan
from onnxcomp.graph.integer_units import COMPUTE, FORM, Unit, compute_unit, element_unit
from onnxcomp.graph.ir import Array, Constant, Node, Variable
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.qdq import QdqWriter
from onnxcomp.graph.surgery import Graph
from onnxcomp.graph.writer import ordered
from onnxcomp.numerics.integer import (
    Grid,
    activation_grid,
    bias_floor,
    quantize_bias,
    quantize_weight,
    weight_scales,
)  # fmt: skip
from onnxcomp.numerics.ranges import BY_ENDS, CALIBRATORS, range_by
from onnxcomp.runtime import Session
from onnxcomp.target import QuantizationStyle

PER_CHANNEL_OPSET = 13
PER_TENSOR_OPSET = 10
# u8 x s8 products are added in pairs in 16 bits on x86 without VNNI: 2 * 255 * 64 fits, 2 * 255 * 127 does not.
REDUCED_LIMIT = 64
# Nodes that hand on their first input's values, each on the same grid.
MOVERS = (FORM | {"Identity"}) - {"Resize"}
FULL_LIMIT = 127


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic(Pass):
    """Run Conv, Gemm, MatMul and what stands between them in 8-bit integers, by calibrated ranges.

    Nodes inside subgraphs and functions stay in float: their tensors cannot be watched from outside. So do
    ConvTranspose nodes on CPU, which has no integer kernel for them, unless ``all_nodes`` says otherwise,
    and nodes one of whose tensors had no finite values in the calibration data.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes", "latency"), exact=False)
    paper = "https://arxiv.org/abs/1712.05877"
    makes = frozenset({"qdq"})
    preserves = frozenset({"factors", "qdq"})

    calibrator: str = parameter(
        "error", choices=CALIBRATORS, help="how ranges are taken from what was seen"
    )
    coverage: float = parameter(0.9999, low=0.5, high=1.0, help="share of the values that percentile covers")
    samples: int = parameter(512, low=1, help="calibration samples used, at most")
    # Measured on MiniLM at 32 to 256 tokens: 0.37 to 0.44 of float32 without them, 0.39 to 0.45 with.
    products: bool = parameter(False, help="quantize MatMul of two activations, too")
    all_nodes: bool = parameter(False, help="quantize nodes that the target has no integer kernel for, too")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        style = _style(graph, context)
        units = self._units(graph, context, outcome)
        plan = make_plan(units)
        if not any(each.is_compute for each in plan.units):
            return outcome
        seen = self._observe(graph, plan, context)
        plan = _usable_plan(units, seen, outcome)
        if not any(each.is_compute for each in plan.units):
            return outcome
        reason = raise_opset(graph, PER_CHANNEL_OPSET if style.per_channel else PER_TENSOR_OPSET)
        if reason:
            outcome.skip(graph.model.name, reason)
            return outcome
        grids = {each: self._grid(seen[root.name], factor, style) for each, (root, factor) in plan.grids.items()}
        _Rewrite(graph, plan, grids, seen, style).run(outcome)
        return outcome

    def _units(self, graph: Graph, context: Context, outcome: Outcome) -> list[Unit]:
        """What can compute with integers in the main graph, in topological order.

        Taking back names the compute nodes; what stands between them follows as it fits.
        """
        between = dataclasses.replace(context, include=None)
        units = []
        for scope in graph.scopes:
            for node in ordered(scope.graph.nodes):
                key = node_key(scope, node)
                names = (key, *(scope.key(each.name) for each in node.inputs if isinstance(each, Constant)))
                if not is_onnx(node, *COMPUTE):
                    wanted = scope is graph.main and between.selects(*names)
                    unit = element_unit(graph, scope, node) if wanted else None
                    units.extend([unit] if unit else [])
                    continue
                if not context.selects(*names):
                    continue
                found = self._compute_unit(graph, scope, node, context)
                if isinstance(found, str):
                    outcome.skip(key, found)
                else:
                    units.append(found)
        return units

    def _compute_unit(self, graph: Graph, scope: Any, node: Any, context: Context) -> Unit | str:
        if scope is not graph.main:
            return f"it is inside a {scope.kind}, whose tensors cannot be watched"
        on_cpu = context.target is None or context.target.name == "cpu"
        if node.op == "ConvTranspose" and on_cpu and not self.all_nodes:
            return "ONNX Runtime has no integer ConvTranspose on CPU (all_nodes quantizes it all the same)"
        unit = compute_unit(graph, scope, node)
        if isinstance(unit, Unit) and unit.linear is None and not self.products:
            return "it multiplies two activations"
        return unit

    def _observe(self, graph: Graph, plan: Plan, context: Context) -> Mapping[str, Observation]:
        if context.calibration is None:
            raise CalibrationError(f"{self.pass_name()}: needs calibration data. Give it with --calib-data.")
        return observe(
            graph.model,
            sorted(each.name for each in plan.grids),
            context.calibration,
            ends_only=self.calibrator in BY_ENDS,
            limit=self.samples,
            open_session=Session if context.target is None else context.target.session,
            progress=context.progress,
        )

    def _grid(self, observation: Observation, factor: float, style: QuantizationStyle) -> Grid:
        low, high = range_by(self.calibrator, observation.values, coverage=self.coverage)
        grid = activation_grid(low, high, dtype=style.activation, symmetric=style.activation_symmetric)
        return grid if factor == 1 else Grid(grid.scale * np.float32(factor), grid.zero_point)


def _style(graph: Graph, context: Context) -> QuantizationStyle:
    """The target's style, without scales per channel where the highest opset allowed cannot say them."""
    style = QuantizationStyle() if context.target is None else context.target.style
    limited = context.max_opset is not None and max(context.max_opset, graph.opset) < PER_CHANNEL_OPSET
    return dataclasses.replace(style, per_channel=False) if limited else style


def _usable_plan(units: list[Unit], seen: Mapping[str, Observation], outcome: Outcome) -> Plan:
    """The plan without the tensors of which no range can be taken; says which nodes that costs."""
    plan = make_plan(units)
    faults = {each: fault for each in plan.grids if (fault := seen[each.name].fault)}
    if not faults:
        return plan
    usable = make_plan(units, unusable=faults.keys())
    left = {id(each) for each in usable.units}
    for unit in plan.units:
        if unit.is_compute and id(unit) not in left:
            tensor = next(each for each in (*unit.inputs, *unit.tails) if each in faults)
            outcome.skip(unit.key, f"its tensor {tensor.name} {faults[tensor]}")
    return usable


def _moved(node: Node) -> list[Any]:
    """The outputs of a node that moves values which hold such values; MaxPool's second holds positions."""
    return [each for each in (node.outputs if node.op == "Split" else node.outputs[:1]) if each.name]


class _Rewrite:
    """Puts a plan into effect."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        grids: dict[Any, Grid],
        seen: Mapping[str, Observation],
        style: QuantizationStyle,
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._grids = grids
        self._seen = seen
        self._style = style
        self._limit = REDUCED_LIMIT if style.reduce_range else FULL_LIMIT
        self._writer = QdqWriter(graph, graph.main, grids)
        self._weights: dict[Any, Variable] = {}

    def run(self, outcome: Outcome) -> None:
        fenced = [
            tensor for tensor, maker in self._plan.makers.items() if maker.bias_add is None or self._is_flat(maker)
        ]
        made = set(fenced)
        followers = self._followers()
        for unit in self._plan.units:
            details = self._put_linear(unit) if unit.linear else {}
            for index, tensor in zip(unit.data, unit.inputs, strict=True):
                if unit.factor is None:
                    unit.node.inputs[index] = self._operand(tensor, tensor in made)
            if unit.is_compute:
                details |= {"between": followers[unit.key]} if followers[unit.key] else {}
                outcome.change(unit.key, f"{unit.node.op} in {self._style.activation}", **details)
        for tensor in fenced:
            maker = self._plan.makers[tensor]
            if maker.factor is None:
                self._writer.fence(tensor)
            else:
                source = maker.inputs[0]
                self._graph.remove_node(self._graph.main, maker.node)
                self._writer.rescale(source, tensor)
        self._fence_bodies(fenced)

    def _fence_bodies(self, fenced: list[Any]) -> None:
        """Let subgraphs read from a grid, too, what float nodes that only move values make of a fenced tensor.

        ONNX Runtime (1.31) moves a DequantizeLinear behind such nodes, and where a subgraph alone reads what
        they make, opening the session ends the whole process.
        """
        own, done = {id(node) for node in self._graph.main.graph.nodes}, set(fenced)
        waiting = list(fenced)
        while waiting:
            tensor = waiting.pop()
            movers = [each for each in tensor.outputs if id(each) in own and is_onnx(each, *MOVERS)]
            for out in (each for node in movers if node.inputs[0] is tensor for each in _moved(node)):
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

    def _operand(self, tensor: Any, fenced: bool) -> Any:
        if isinstance(tensor, Constant):
            values = tensor.values
            low, high = float(values.min()), float(values.max())
            style = self._style
            grid = activation_grid(low, high, dtype=style.activation, symmetric=style.activation_symmetric)
            return self._writer.constant(values, grid)
        return tensor if fenced else self._writer.pair(tensor)

    def _is_flat(self, unit: Unit) -> bool:
        """Whether a MatMul is one of two matrices, which a Gemm can do with its bias."""
        return self._seen[unit.inputs[0].name].rank == 2

    def _put_linear(self, unit: Unit) -> dict[str, Any]:
        """Let the node read its weight, and its bias, as integers."""
        linear, node = unit.linear, unit.node
        assert linear is not None
        axis = linear.axis if self._style.per_channel else None
        values = linear.values()
        input_scale = float(self._grids[unit.inputs[0]].scale)
        bias = None if linear.bias is None else linear.bias.astype(np.float64) * linear.beta
        if unit.bias_add is not None and not self._is_flat(unit):
            self._widen_bias(unit, linear.bias)
            bias = None
        floor = None if bias is None else self._floor(bias, input_scale, values, axis)
        scales = weight_scales(values, axis, limit=self._limit, floor=floor)
        node.inputs[1] = self._weight(unit, values, scales, axis)
        if unit.bias_add is not None and bias is not None:
            self._become_gemm(unit)
        if bias is not None:
            steps = np.resize(input_scale * scales.astype(np.float64), bias.shape)
            if len(node.inputs) > 2:
                node.inputs[2] = self._bias(bias, steps)
            else:
                node.inputs.append(self._bias(bias, steps))
        node.attrs.pop("alpha", None)
        node.attrs.pop("beta", None)
        return {"weight": linear.weight.name, "scales": int(scales.size)}

    def _floor(self, bias: Array, input_scale: float, values: Array, axis: int | None) -> Array:
        least = bias_floor(bias, input_scale)
        if axis is None:
            return np.asarray(least.max(initial=0.0))
        # A grouped ConvTranspose has more biases than scales: group after group reads the same ones.
        folded: Array = least.reshape(-1, values.shape[axis]).max(axis=0)
        return folded

    def _weight(self, unit: Unit, values: Array, scales: Array, axis: int | None) -> Variable:
        assert unit.linear is not None
        constant = unit.linear.weight
        key = (constant, unit.linear.perm, unit.linear.alpha, axis, scales.tobytes())
        if key not in self._weights:
            codes = quantize_weight(values, scales, axis, limit=self._limit)
            zero_point = np.zeros(scales.shape, np.int8)
            self._weights[key] = self._writer.codes(codes, scales, zero_point, axis=axis, name=f"{constant.name}_int8")
        return self._weights[key]

    def _bias(self, bias: Array, steps: Array) -> Variable:
        codes = quantize_bias(bias, steps)
        per_tensor = not self._style.per_channel
        scale = steps[:1].reshape(()) if per_tensor else steps
        return self._writer.codes(codes, scale.astype(np.float32), None, axis=None if per_tensor else 0)

    def _widen_bias(self, unit: Unit, bias: Array | None) -> None:
        """Give the bias as many dimensions as what it is added to.

        ONNX Runtime otherwise joins MatMul and Add to a float Gemm before it looks for integer patterns.
        """
        assert bias is not None and unit.bias_add is not None
        rank = self._seen[unit.inputs[0].name].rank
        if rank is None or rank < 2:
            return
        add = unit.bias_add
        index = next(i for i, each in enumerate(add.inputs) if isinstance(each, Constant))
        if len(add.inputs[index].shape) != rank:
            shaped = bias.reshape((1,) * (rank - 1) + (-1,))
            add.inputs[index] = self._graph.constant(self._graph.main, f"{add.inputs[index].name}_wide", shaped)

    def _become_gemm(self, unit: Unit) -> None:
        """MatMul and Add become one Gemm, which has an integer kernel with a bias."""
        assert unit.bias_add is not None
        result = unit.bias_add.outputs[0]
        self._graph.remove_node(self._graph.main, unit.bias_add)
        unit.node.op = "Gemm"
        unit.node.outputs[0] = result
