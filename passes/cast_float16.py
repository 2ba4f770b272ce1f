"""Float32 becomes float16, bfloat16 or float8: half the bytes, and half the time where the target computes in it.

    scope "weights":  w: float32 -> MatMul          becomes    w: float16 -> Cast -> MatMul
    scope "all":      x -> MatMul(w) -> Relu -> y   becomes    x -> Cast -> MatMul(w: float16) -> Relu -> Cast -> y

Weights alone: ONNX Runtime folds the Cast when it opens the model, so that it runs as before. All: every operator
computes in the short type whose schema takes it and which the target loads so. The others, and those that would
overflow or lose what matters, stay in float32 between Casts, as few as possible.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, Skip, Structure, parameter
from onnxcomp.errors import ParameterError, TargetError
from onnxcomp.graph.infer.element_types import ElementTypes
from onnxcomp.graph.infer.op_schemas import FLOAT
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.ir.rewire import move_up
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.precision.casts import choose, write_casts
from onnxcomp.graph.precision.limits import Limits
from onnxcomp.graph.precision.units import FloatUnit, FloatUnits, Read, float_units
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite, has_levels
from onnxcomp.numerics.integers.short_float import DTYPES, misfit, power_of_two_scale, rounded
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.target.short_floats import computes_in

# From these opsets on Cast knows the type.
OPSETS = {"float16": 7, "bfloat16": 13, "float8e4m3fn": 19, "float8e5m2": 19}
FOLDED_BYTES = 2**30  # ONNX Runtime does not fold what is larger


@dataclass(frozen=True, kw_only=True)
class CastFloat16(Pass):
    """Convert a float32 model, or its weights alone, to float16, bfloat16 or float8.

    Left in float32: nodes with a constant that is out of range or would become zero, and what works with numbers of
    that size; Casts from and to whole numbers, and angles; with calibration data, what went beyond half the type's
    range or stayed below its least normal number. Local functions, sequences, and nodes between quantizing ones
    stay as they are. Float8 is for weights alone; these get a power of two as scale.

    ``convert`` takes names or patterns of the model's inputs and outputs that shall change type too.
    """

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1710.03740"
    destroys = frozenset({Structure.COMPACT})
    prepared_by = ("inline-functions",)

    dtype: str = parameter("float16", choices=tuple(DTYPES), help="the element type to convert to")
    scope: str = parameter(
        "auto", choices=("auto", "all", "weights"), help="what changes; auto: all where the target computes in it"
    )
    min_size: int = parameter(256, low=1, help="elements of the smallest weight that changes alone")
    samples: int = parameter(64, low=1, help="calibration samples used, at most, to find what overflows")
    convert: str = parameter("", help="inputs and outputs of the model to convert too: patterns, parted by commas")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "all" and self.dtype.startswith("float8"):
            raise ParameterError(
                f"{self.pass_name()}: scope must be weights for {self.dtype}, got {self.scope!r}. "
                f"See `onnxcomp passes {self.pass_name()}`."
            )

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self.scope != "weights" and not self.dtype.startswith("float8")

    def shortens_ends(self) -> bool:
        return bool(self.convert)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        opset = OPSETS[self.dtype]
        if graph.opset >= opset:
            return self._convert(graph, context)
        reason = self._too_old(opset, context)
        # On a copy first: a model that nothing comes of is not raised either.
        rehearsal = open_graph(graph.model)
        reason = reason or raise_opset(rehearsal, opset)
        if reason:
            return Outcome(skipped=[Skip(graph.model.name, reason)])
        outcome = self._convert(rehearsal, context)
        if not outcome.changed:
            return outcome
        raise_opset(graph, opset)
        return self._convert(graph, context)

    def _convert(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        if self._converts_all(context):
            _Conversion(self, graph, context, outcome).run()
        else:
            self._convert_weights(graph, context, outcome)
        return outcome

    def _converts_all(self, context: Context) -> bool:
        name = "cpu" if context.target is None else context.target.name
        return self.scope == "all" or (self.scope == "auto" and computes_in(name, self.dtype))

    def _too_old(self, opset: int, context: Context) -> str | None:
        if context.max_opset is None or context.max_opset >= opset:
            return None
        return f"{self.dtype} needs opset {opset}, and {context.max_opset} is the highest allowed"

    # --- weights alone ---

    def _convert_weights(self, graph: Graph, context: Context, outcome: Outcome) -> None:
        for weight in weights(graph, min_size=self.min_size):
            if not context.selects(weight.name, *weight.node_names):
                continue
            reason = self._weight_reason(weight)
            if reason:
                outcome.skip(weight.name, reason)
                continue
            scale = power_of_two_scale(weight.values, self.dtype) if self.dtype.startswith("float8") else 1.0
            error = self._store(graph, weight, scale)
            outcome.change(weight.name, f"kept in {self.dtype}", error=error)

    def _weight_reason(self, weight: Weight) -> str | None:
        """Why the weight is left alone, or None."""
        if weight.tensor.data_type != FLOAT:
            return f"it is {weight.dtype} already"
        if has_levels(weight, 2**16):
            return "its levels take fewer bytes than that"
        if weight.size_bytes > FOLDED_BYTES:
            return "ONNX Runtime would convert it at every run: it folds 1 GiB at most"
        if not all_finite(weight.values):
            return "it has values that are not finite"
        if self.dtype.startswith("float8"):
            return None
        fault = misfit(weight.values, self.dtype)
        return None if fault is None else f"it is {fault} for {self.dtype}"

    def _store(self, graph: Graph, weight: Weight, scale: float) -> float:
        """Put the short weight and its Cast in the place of the weight; gives the relative squared error."""
        old, tensor = weight.values, weight.tensor
        short = rounded(old if scale == 1 else old / np.float32(scale), self.dtype)
        back = short.astype(np.float32) * np.float32(scale)
        error = relative_error(old, back)
        move_up(weight.scope, tensor)
        first = next(iter(weight.scope.graph.nodes), None)
        wide = graph.variable(f"{tensor.name}_float32", np.float32, list(tensor.shape))
        graph.replace_reads(tensor, wide)
        cast = wide if scale == 1 else graph.variable(f"{tensor.name}_unscaled", np.float32, list(tensor.shape))
        graph.node(weight.scope, "Cast", [tensor], [cast], attrs={"to": FLOAT}, before=first)
        if scale != 1:
            factor = graph.constant(weight.scope, f"{tensor.name}_scale", np.array(scale, np.float32))
            graph.node(weight.scope, "Mul", [cast, factor], [wide], before=first)
        tensor.values = short
        graph.encodings.pop(weight.name, None)
        return error


class _Conversion:
    """One conversion of a whole model."""

    def __init__(self, rewrite: CastFloat16, graph: Graph, context: Context, outcome: Outcome) -> None:
        self._rewrite = rewrite
        self._graph = graph
        self._context = context
        self._outcome = outcome
        self._shapes: Shapes = infer_shapes(graph)
        self._types = ElementTypes(graph, self._shapes, self._ask)

    def run(self) -> None:
        name = self._rewrite.dtype
        short = int(helper.np_dtype_to_tensor_dtype(DTYPES[name]))
        units = float_units(self._graph, self._types, short, self._types.loads)
        wanted = [each for each in units.found if self._context.selects(*each.names)]
        ends = self._ends()
        limits = Limits(wanted, self._types, self._shapes, name, self._peaks(wanted))
        kept = limits.kept()
        changed = choose(self._graph, [*wanted, *ends], kept, ends)
        if not any(unit.node is not None for unit in changed):
            changed = set()
        write_casts(self._graph, changed, name)
        self._report(units, wanted, kept, changed)

    def _report(
        self, units: FloatUnits, wanted: list[FloatUnit], kept: Mapping[FloatUnit, str], changed: set[FloatUnit]
    ) -> None:
        done = dict.fromkeys(unit.key for unit in wanted if unit in changed)
        reasons = {key: why for key, why in units.left.items() if self._context.selects(key)}
        for unit in wanted:
            if unit not in changed:
                reasons.setdefault(unit.key, kept.get(unit, "casting to and fro would cost more than it gains"))
        for key in done:
            self._outcome.change(key, f"computes in {self._rewrite.dtype}")
        for key, why in reasons.items():
            if key not in done:
                self._outcome.skip(key, why)

    def _ends(self) -> list[FloatUnit]:
        """The inputs and outputs of the model that shall change type, a unit each."""
        patterns = [each.strip() for each in self._rewrite.convert.split(",") if each.strip()]
        main = self._graph.main

        def wanted(tensor: Any) -> bool:
            named = any(fnmatch.fnmatchcase(tensor.name, each) for each in patterns)
            return named and self._types.of(tensor) == FLOAT and not isinstance(tensor, Constant)

        fixed = {each.values.name if hasattr(each, "values") else each.name for each in main.overridable}
        inputs = [each for each in main.graph.inputs if each.name not in fixed]
        units = [FloatUnit(each.name, main, None, 0, [], [each]) for each in inputs]
        outputs = enumerate(main.graph.outputs)
        units += [FloatUnit(each.name, main, None, 0, [Read(main, None, i)]) for i, each in outputs]
        return [each for each in units if all(wanted(tensor) for tensor in each.tensors)]

    def _peaks(self, units: list[FloatUnit]) -> Mapping[Any, float]:
        """The largest finite magnitude that tensors took on the calibration data."""
        if self._context.calibration is None:
            return {}
        keys = {
            each: scope.key(each.name)
            for scope in self._graph.scopes
            for each in (
                *scope.graph.inputs,
                *(out for node in scope.graph.nodes if node.origin for out in node.outputs),
            )
        }
        wanted = {each: keys[each] for unit in units for each in unit.tensors if each in keys}
        seen = self._context.observe.ranges(
            self._graph.model, sorted(set(wanted.values())), ends_only=True, limit=self._rewrite.samples
        )
        extents = {each: seen[key].values for each, key in wanted.items() if seen[key].values.count}
        return {each: max(abs(extent.low), abs(extent.high)) for each, extent in extents.items()}

    def _ask(self, model: ModelProto) -> tuple[str, ...] | None:
        """The types of the model's outputs on the target; None where it does not load. The model remembers it."""
        content = model.SerializeToString(deterministic=True)
        target = self._context.target
        memo = self._graph.model.memo.setdefault((CastFloat16, None if target is None else target.provider), {})
        if content not in memo:
            try:
                memo[content] = tuple(each.type for each in self._context.open_session(content).outputs)
            except TargetError:
                memo[content] = None
        found: tuple[str, ...] | None = memo[content]
        return found
