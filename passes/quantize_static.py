"""Weights and activations become 8-bit integers, so that Conv, Gemm and MatMul run on integer kernels.

    x -> Conv(W, b) -> Relu -> y
    x -> Q -> DQ -> Conv(DQ(W_int8), DQ(b_int32)) -> Relu -> Q -> DQ -> y

An execution provider replaces each such pattern by one kernel. The grids of the activations come from calibration:
the range that each tensor takes while samples run through the model. Weights have one scale an output channel,
biases the unit of the accumulator, so that they add no error. Which nodes these are, and of which types their
integers, is the target's ``QuantizationStyle``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from onnxcomp.calibration.statistics.observe import Observation
from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, SelectingPass, Site, Structure, Survey, parameter
from onnxcomp.errors import TargetError
from onnxcomp.graph.integers.fusion_check import idle_keys
from onnxcomp.graph.integers.placement import Placement, make_plan
from onnxcomp.graph.integers.qdq_insertion import QdqInsertion, Rewritten
from onnxcomp.graph.integers.qdq_weights import CodeStore
from onnxcomp.graph.integers.qdq_writer import PER_AXIS_OPSET, PER_TENSOR_OPSET, SIXTEEN_BIT_OPSET
from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.graph.integers.units import Unit, compute_unit, element_unit, table_unit
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope, close_graph
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.numerics.integers.affine_int8 import Grid, activation_grid
from onnxcomp.numerics.integers.calibrators import BY_ENDS, CALIBRATORS, range_by
from onnxcomp.operators import LINEAR
from onnxcomp.runtime import optimized
from onnxcomp.target import STYLES

SMALL_SHARE = 1 / 8  # an operand of at most that share of the result is put on a grid for one node alone
TRIALS = 3  # models looked at, at most, to find nodes that the target leaves in float

SWITCHES: Mapping[str, bool | None] = {"target": None, "yes": True, "no": False}


@dataclass(frozen=True)
class Look:
    """What came out of looking at an optimized model: units left in float, and why it does not load, "" if it does."""

    idle: frozenset[str] = frozenset()
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic(SelectingPass):
    """Run Conv, Gemm, MatMul and what stands between them in integers, by calibrated ranges.

    Left in float are nodes for which the target has no integer kernel, unless ``all_nodes`` says otherwise: on CPU
    that is looked up in the model that ONNX Runtime optimized. So are nodes in functions (inline-functions first)
    and nodes one of whose tensors had no finite values in the calibration data. Tables of embeddings are looked up
    as codes.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1712.05877"
    makes = frozenset({Structure.INTEGERS})
    destroys = frozenset({Structure.ZEROS, Structure.LEVELS, Structure.COMPACT})
    prepared_by = ("inline-functions", "fuse-batch-norm", "fuse-pad")

    calibrator: str = parameter("error", choices=CALIBRATORS, help="how ranges are taken from what was seen")
    coverage: float = parameter(0.9999, low=0.5, high=1.0, help="share of the values that percentile covers")
    samples: int = parameter(512, low=1, help="calibration samples used, at most")
    activation: str = parameter(
        "target", choices=("target", "uint8", "int8", "uint16", "int16"), help="type of the activations' codes"
    )
    weight: str = parameter("target", choices=("target", "int8", "uint8"), help="type of the weights' codes")
    granularity: str = parameter(
        "target", choices=("target", "channel", "tensor"), help="one weight scale for each of these"
    )
    symmetric: str = parameter("target", choices=tuple(SWITCHES), help="give activations a zero point in the middle")
    # Measured on MiniLM at 32 to 256 tokens on CPU: 0.37 to 0.44 of float32 without them, 0.39 to 0.45 with.
    products: str = parameter("target", choices=tuple(SWITCHES), help="quantize MatMul of two activations, too")
    tables: str = parameter("target", choices=tuple(SWITCHES), help="look up embeddings as codes")
    all_nodes: bool = parameter(False, help="quantize nodes that the target has no integer kernel for, too")

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome, style = Outcome(), self._style(graph, context)
        units = [
            unit
            for scope in graph.scopes
            for unit in self._units(graph, scope, context, style, frozenset(), outcome)
            if unit.is_compute
        ]
        return Survey(tuple(Site(each.key) for each in units), tuple(outcome.skipped))

    def edit(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome(is_cut_short=context.is_over())
        if outcome.is_cut_short:
            return outcome
        style = self._style(graph, context)
        tried = self._try(graph, context, style) if style.shows_kernels else Look()
        if tried.fault:
            outcome.skip(graph.model.name, f"the target does not load the result: {tried.fault}")
            return outcome
        done = self._rewrite(graph, graph, context, style, tried.idle, outcome)
        for unit, details in done.changes:
            what = "looked up" if unit.table is not None else unit.node.op
            outcome.change(unit.key, f"{what} in {style.activation if unit.table is None else style.weight}", **details)
        return outcome

    def _style(self, graph: Graph, context: Context) -> QuantizationStyle:
        """The target's style with what the fields say; no scales per channel where no opset allowed can say them."""
        style = STYLES["cpu"] if context.target is None else context.target.style
        if self.all_nodes:
            style = dataclasses.replace(style, computes=style.computes | LINEAR)
        if self.activation != "target":
            style = dataclasses.replace(style, activation=self.activation)
        if self.weight != "target":
            style = dataclasses.replace(style, weight=self.weight)
        if self.granularity == "channel":
            style = dataclasses.replace(style, channelled=LINEAR)
        limited = context.max_opset is not None and max(context.max_opset, graph.opset) < PER_AXIS_OPSET
        by_channel = style.per_channel if self.granularity == "target" else self.granularity == "channel"
        return dataclasses.replace(
            style,
            per_channel=by_channel and not limited,
            activation_symmetric=_chosen(self.symmetric, style.activation_symmetric),
            products=_chosen(self.products, style.products),
            tables=_chosen(self.tables, style.tables),
        )

    def _try(self, graph: Graph, context: Context, style: QuantizationStyle) -> Look:
        """Look at what the target makes of the result, until no node is left that it would leave in float.

        The model remembers what came of each set of nodes, and of none but that very set: what a receipt applies
        again must not depend on what else was tried before.
        """
        known: dict[frozenset[str], Look] = graph.model.memo.setdefault((QuantizeStatic, self, style), {})
        idle: frozenset[str] = frozenset()
        for index in range(TRIALS):
            if index and context.is_over():
                break
            trial = open_plain(close_graph(graph))
            done = self._rewrite(trial, graph, context, style, idle, Outcome(), known=known.keys())
            if not done.keys:
                break
            if done.keys not in known:
                known[done.keys] = _look(trial, done, context)
            found = known[done.keys]
            if found.fault or self.all_nodes:
                return Look(fault=found.fault)
            if not found.idle:
                break
            idle |= found.idle
        return Look(idle)

    def _rewrite(
        self,
        graph: Graph,
        source: Graph,
        context: Context,
        style: QuantizationStyle,
        idle: Set[str],
        outcome: Outcome,
        known: Set[frozenset[str]] = frozenset(),
    ) -> Rewritten:
        """Quantize ``graph``, a copy of ``source`` or it itself; says in the outcome what is left in float.

        known: sets of units that are named, but not rewritten.
        """
        plans = []
        for scope in graph.scopes:
            units = self._units(graph, scope, context, style, idle, outcome)
            seen: dict[Any, Observation] = {}
            plan = self._plan(units, scope, source, context, style, seen, outcome)
            if plan.is_worth_it:
                plans.append((scope, plan, seen))
        done = Rewritten(frozenset(unit.key for _, plan, _ in plans for unit in plan.units))
        if not plans or done.keys in known:
            return done
        reason = raise_opset(graph, _needed_opset(style))
        if reason:
            outcome.skip(graph.model.name, reason)
            return Rewritten()
        store = CodeStore(graph, style)
        for scope, plan, seen in plans:
            grids = {each: self._grid(source, seen[root], factor, style) for each, (root, factor) in plan.grids.items()}
            QdqInsertion(graph, scope, plan, grids, _ranks(seen), style, store).run(done)
        return done

    def _units(
        self, graph: Graph, scope: Scope, context: Context, style: QuantizationStyle, idle: Set[str], outcome: Outcome
    ) -> list[Unit]:
        """What can compute with integers in one scope, in topological order.

        Taking back names the compute nodes; what stands between them follows as it fits.
        """
        units: list[Unit] = []
        folded: set[int] = set()
        for node in ordered(scope.graph.nodes):
            unit = None if id(node) in folded else self._unit(graph, scope, node, context, style, idle, outcome)
            if unit is not None:
                units.append(unit)
                folded.update((id(unit.clip), id(unit.bias_add)))
        return units

    def _unit(
        self,
        graph: Graph,
        scope: Scope,
        node: Node,
        context: Context,
        style: QuantizationStyle,
        idle: Set[str],
        outcome: Outcome,
    ) -> Unit | None:
        names = (node_key(scope, node), *(scope.key(each.name) for each in node.inputs if isinstance(each, Constant)))
        table = table_unit(scope, node) if is_onnx(node, "Gather") and style.tables else None
        if table is None and not is_onnx(node, *LINEAR):
            between = dataclasses.replace(context, include=None)
            wanted = not scope.is_in_function and names[0] not in idle and between.selects(*names)
            return element_unit(graph, scope, node, style) if wanted else None
        if not context.selects(*names):
            return None
        found = self._compute_unit(graph, scope, node, style, idle) if table is None else table
        if isinstance(found, str):
            outcome.skip(names[0], found)
            return None
        return None if scope.is_in_function else found

    def _compute_unit(
        self, graph: Graph, scope: Scope, node: Node, style: QuantizationStyle, idle: Set[str]
    ) -> Unit | str:
        if scope.is_in_function:
            return "it is inside a function, which inline-functions would write out"
        if node.op not in style.computes:
            return f"the target has no integer {node.op} (all_nodes quantizes it all the same)"
        unit = compute_unit(graph, scope, node, style)
        if isinstance(unit, Unit) and unit.linear is None and not style.products:
            return "it multiplies two activations"
        if isinstance(unit, Unit) and unit.key in idle:
            return "the target would compute it in float between conversions (all_nodes quantizes it all the same)"
        return unit

    def _plan(
        self,
        units: list[Unit],
        scope: Scope,
        source: Graph,
        context: Context,
        style: QuantizationStyle,
        seen: dict[Any, Observation],
        outcome: Outcome,
    ) -> Placement:
        """The plan without the tensors of which no range can be taken; says which nodes that costs.

        seen: is filled with what was observed of each tensor.
        """
        hoped = make_plan(units, style)
        if not hoped.is_worth_it or not hoped.grids:
            return hoped
        keys = {each: scope.key(each.name) for each in hoped.grids}
        observed = self._observe(source, sorted(keys.values()), context)
        seen.update((each, observed[key]) for each, key in keys.items())
        faults = {each: fault for each in hoped.grids if (fault := seen[each].fault)}
        plan = make_plan(units, style, unusable=faults.keys(), is_small=_small(seen))
        left = {id(each) for each in plan.units}
        for unit in hoped.units:
            if unit.is_compute and id(unit) not in left:
                tensor = next(each for each in (*unit.inputs, *unit.tails) if each in faults)
                outcome.skip(unit.key, f"its tensor {tensor.name} {faults[tensor]}")
        return plan

    def _observe(self, source: Graph, keys: list[str], context: Context) -> Mapping[str, Observation]:
        return context.observe.ranges(source.model, keys, ends_only=self.calibrator in BY_ENDS, limit=self.samples)

    def _grid(self, source: Graph, observation: Observation, factor: float, style: QuantizationStyle) -> Grid:
        low, high = self._range(source, observation, 2**16 - 1 if style.activation.endswith("16") else 255)
        grid = activation_grid(low, high, dtype=style.activation, symmetric=style.activation_symmetric)
        return grid.times(factor)

    def _range(self, source: Graph, observation: Observation, steps: int) -> tuple[float, float]:
        """The range of what was observed, which the model remembers along with the observation itself."""
        known = source.model.memo.setdefault((QuantizeStatic, self.calibrator, self.coverage, steps), {})
        if id(observation) not in known:
            known[id(observation)] = range_by(self.calibrator, observation.values, coverage=self.coverage, steps=steps)
        found: tuple[float, float] = known[id(observation)]
        return found


def _chosen(choice: str, target: bool) -> bool:
    """What a field of "target", "yes" or "no" comes to."""
    said = SWITCHES[choice]
    return target if said is None else said


def _look(trial: Graph, done: Rewritten, context: Context) -> Look:
    """What the target makes of a rewritten graph."""
    target = context.target
    options: dict[str, Any] = {} if target is None else {"provider": target.provider, "custom_ops": target.custom_ops}
    try:
        with close_graph(trial).opened_on(functools.partial(optimized, **options)) as found:
            return Look(frozenset(idle_keys(found, done.marks)))
    except TargetError as error:
        return Look(fault=str(error))


def _needed_opset(style: QuantizationStyle) -> int:
    if style.activation.endswith("16"):
        return SIXTEEN_BIT_OPSET
    return PER_AXIS_OPSET if style.per_channel else PER_TENSOR_OPSET


def _small(seen: Mapping[Any, Observation]) -> Callable[[Unit, Any], bool]:
    """Whether an operand had few values beside the result, in the calibration data."""

    def is_small(unit: Unit, tensor: Any) -> bool:
        tail = unit.tails[0]
        if tail not in seen or tensor not in seen:
            return False
        return seen[tensor].values.count <= SMALL_SHARE * seen[tail].values.count

    return is_small


def _ranks(seen: Mapping[Any, Observation]) -> Callable[[Any], int | None]:
    return lambda tensor: seen[tensor].rank if tensor in seen else None
