"""Which units must stay in float32, because a shorter float would make another number of theirs.

    Mul(x, -3.4e38)             the constant is out of range: so is what it makes, up to the next Softmax
    Sqrt(Add(var, 1e-12))       the constant would become zero, and what it is added to with it
    Cast(position) -> Sin       whole numbers over 2,048 are not exact, and angles lose their fraction

What samples of calibration data show of a tensor counts more than what its makers suggest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxcomp.graph.infer.element_types import ElementTypes
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.precision.units import FloatUnit
from onnxcomp.numerics.integers.short_float import largest, misfit, smallest_normal
from onnxcomp.tensors import FLOAT_TYPES

HEADROOM = 2  # unseen data may go beyond what was seen
# What they give stays small whatever they are given: saturating, normalizing, or taking the largest.
BOUNDED = frozenset({
    "Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign", "Atan", "Sin", "Cos", "Exp", "Clip",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization",
    "MeanVarianceNormalization", "MaxPool", "GlobalMaxPool", "ReduceMax", "Attention",
})  # fmt: skip
ANGLES = frozenset({"Sin", "Cos", "Tan"})
# What makes the small number that an epsilon is added to, and what takes it further.
SQUARES = frozenset({
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool", "Pow", "Mul", "Sqrt",
    "Abs", "Exp",
})  # fmt: skip
ROOTS = frozenset({"Sqrt", "Reciprocal", "Pow", "Log"})
AVERAGES = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
SHORT_INTEGERS = frozenset({TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4})


@dataclass
class Limits:
    """Finds the units that must keep float32; ``peaks`` says how large tensors were seen to become."""

    units: Collection[FloatUnit]
    types: ElementTypes
    shapes: Shapes
    name: str
    peaks: Mapping[Any, float]

    def kept(self) -> dict[FloatUnit, str]:
        """The units that must keep float32, and why."""
        kept: dict[FloatUnit, str] = {}
        wide = self._check_constants(kept)
        for unit in self.units:
            reason = self._reason(unit)
            if reason:
                kept.setdefault(unit, reason)
        self._spread(wide, kept)
        return kept

    def _check_constants(self, kept: dict[FloatUnit, str]) -> list[Any]:
        """Units whose constants do not fit; gives the tensors that those out of range make."""
        wide: list[Any] = []
        known: dict[Any, str | None] = {}
        for unit in self.units:
            for constant in (each.tensor for each in unit.reads if isinstance(each.tensor, Constant)):
                fault = known.setdefault(constant, misfit(constant.values, self.name))
                if fault is None:
                    continue
                kept[unit] = f"its constant {constant.name} is {fault} for {self.name}"
                if fault == "too small":
                    self._keep_around(unit, kept)
                elif unit.op not in BOUNDED:
                    wide.extend(unit.writes)
        return wide

    def _keep_around(self, unit: FloatUnit, kept: dict[FloatUnit, str]) -> None:
        """An epsilon matters to numbers of its own size: what makes and takes these stays in float32 too."""
        reason = f"it works with numbers that are too small for {self.name}"
        by_node: dict[int, list[FloatUnit]] = {}
        for each in self.units:
            by_node.setdefault(id(each.node), []).append(each)

        def walk(start: FloatUnit, ops: frozenset[str], step: Callable[[FloatUnit], Iterable[Node]]) -> None:
            waiting, seen = list(step(start)), set()
            while waiting:
                node = waiting.pop()
                if node.op not in ops or id(node) in seen:
                    continue
                seen.add(id(node))
                for each in by_node.get(id(node), []):
                    kept.setdefault(each, reason)
                    if node.op not in ("Pow", "Mul") or ops is ROOTS:
                        waiting.extend(step(each))

        walk(unit, SQUARES, lambda each: [node for read in each.reads for node in read.tensor.inputs])
        walk(unit, ROOTS, lambda each: [node for out in each.writes for node in out.outputs])

    def _reason(self, unit: FloatUnit) -> str | None:
        """Why the unit itself must keep float32, or None."""
        most = largest(self.name) / HEADROOM
        for tensor in unit.tensors:
            peak = self.peaks.get(tensor)
            if peak is not None and peak > most:
                return f"its tensor {tensor.name} reaches {peak:.3g} in the calibration data"
            if peak is not None and 0 < peak < smallest_normal(self.name):
                return f"its tensor {tensor.name} stays under {peak:.3g} in the calibration data"
        if unit.node is None:
            return None
        total = self._sum(unit)
        if total > most:
            return f"it sums up to {total:.3g} in the calibration data"
        return self._exactness(unit, unit.node)

    def _exactness(self, unit: FloatUnit, node: Node) -> str | None:
        """Why a number that has to be exact would not be, or None."""
        exact = 2.0 ** (11 if self.name == "float16" else 8)  # up to here all whole numbers are exact
        seen = max((self.peaks.get(each, float("inf")) for each in unit.tensors), default=0.0)
        if node.op in ANGLES and seen * 256 > exact:
            return "angles have to be exact"
        if node.op != "Cast":
            return None
        other = self.types.of(node.inputs[0]) if unit.writes else int(node.attrs["to"])
        if other in FLOAT_TYPES or other in SHORT_INTEGERS or seen <= exact:
            return None
        return "whole numbers have to be exact"

    def _sum(self, unit: FloatUnit) -> float:
        """The largest sum that an average is made of, as far as it is known; else 0."""
        node = unit.node
        if node is None or node.op not in AVERAGES or not unit.writes:
            return 0.0
        sizes = [self.shapes.static(each) for each in (node.inputs[0], node.outputs[0])]
        peak = self.peaks.get(node.outputs[0])
        if peak is None or any(each is None for each in sizes):
            return 0.0
        count_in, count_out = (_product(each or ()) for each in sizes)
        return peak * count_in / max(1, count_out)

    def _spread(self, wide: list[Any], kept: dict[FloatUnit, str]) -> None:
        """Keep what reads tensors that may be out of range, and what these make in turn."""
        readers: dict[Any, list[FloatUnit]] = {}
        for unit in self.units:
            for read in unit.reads:
                readers.setdefault(read.tensor, []).append(unit)
        seen: set[Any] = set()
        waiting = [each for each in wide if each not in self.peaks]
        while waiting:
            tensor = waiting.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            for unit in readers.get(tensor, []):
                kept.setdefault(unit, f"its tensor {tensor.name} may be out of range")
                if unit.op not in BOUNDED:
                    waiting.extend(each for each in unit.writes if each not in self.peaks)


def _product(shape: Iterable[int]) -> int:
    total = 1
    for each in shape:
        total *= each
    return total
