"""Decide which nodes compute in int8 and which tensors get a grid, avoiding conversions that fuse into nothing.

Every Conv, Gemm and MatMul wants its input on a grid, and a Conv its output too: only then is it replaced by
its integer kernel. A node between them joins when what it reads is on a grid already and something that stays
reads what it makes; a node at the end of such a chain, read by float nodes alone, would only lose accuracy. An
operand that is much smaller than the result may get its grid for that node alone: the scale of a channel beside
the feature map that it multiplies.

Where a target computes in integers only, every node that it knows joins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.graph.integers.units import Unit
from onnxcomp.graph.ir.nodes import Constant

# Whether a tensor that a unit reads is small beside what it makes.
IsSmall = Callable[[Unit, Any], bool]


@dataclass(frozen=True, eq=False)
class Placement:
    """units: what computes with integers, in topological order.

    grids: tensor -> the tensor whose range gives its grid, and the factor that its scale is to be multiplied by.
    makers: tensor on a grid -> the unit that makes it in integers; others are made by float nodes.
    """

    units: list[Unit]
    grids: dict[Any, tuple[Any, float]]
    makers: dict[Any, Unit]

    @property
    def is_worth_it(self) -> bool:
        """Whether anything computes with integers for its own sake."""
        return any(each.is_compute for each in self.units)


def make_plan(
    units: Sequence[Unit],
    style: QuantizationStyle,
    *,
    unusable: Set[Any] = frozenset(),
    is_small: IsSmall = lambda unit, tensor: True,
) -> Placement:
    """The plan for the units of one graph, given in topological order; ``unusable`` tensors get no grid."""
    chosen = [each for each in units if not _needed(each, style) & unusable]
    if style.everywhere:
        chosen = [each for each in chosen if not unusable & {*_variables(each), *each.tails}]
        read = {tensor for unit in chosen for tensor in (*_variables(unit), *unit.tails)}
        return _with_grids(chosen, read, style)
    kept = _read_by_kept(_grown(chosen, style, unusable, is_small))
    return _with_grids(kept, {tensor for unit in kept for tensor in _variables(unit)}, style)


def _grown(units: list[Unit], style: QuantizationStyle, unusable: Set[Any], is_small: IsSmall) -> list[Unit]:
    """What computes, and the nodes whose data are then on grids, from the first to the last."""
    reached = {tensor for unit in units if unit.is_compute for tensor in _needed(unit, style)}
    computing = {id(unit.node) for unit in units if unit.is_compute}
    grown = []
    for unit in units:
        if not unit.is_compute:
            inputs = _variables(unit)
            if unusable & {*inputs, *unit.tails}:
                continue
            ready = id(unit.joins) in computing if unit.joins else inputs & reached
            if not ready or not all(is_small(unit, each) for each in inputs - reached if not unit.joins):
                continue
            reached.update(unit.tails)
        grown.append(unit)
    return grown


def _read_by_kept(units: list[Unit]) -> list[Unit]:
    """What computes, and the nodes whose results something that stays reads."""
    kept: list[Unit] = []
    read: set[Any] = set()
    for unit in reversed(units):
        if unit.is_compute or unit.joins or read & set(unit.tails):
            kept.append(unit)
            read |= _variables(unit)
    return kept[::-1]


def _with_grids(units: list[Unit], read: Set[Any], style: QuantizationStyle) -> Placement:
    grids: dict[Any, tuple[Any, float]] = {tensor: (tensor, 1.0) for tensor in read}
    makers: dict[Any, Unit] = {}
    for unit in units:
        for tail in unit.tails:
            if tail in read or not _hands_out_floats(unit, style):
                root, factor = grids[unit.inputs[0]] if unit.moves_only else (tail, 1.0)
                grids[tail] = root, factor * (unit.factor or 1.0)
                makers[tail] = unit
    return Placement(units, grids, makers)


def _hands_out_floats(unit: Unit, style: QuantizationStyle) -> bool:
    """Whether the unit's kernel needs no grid after it."""
    return unit.node.op in style.float_results or unit.joins is not None or unit.table is not None


def _needed(unit: Unit, style: QuantizationStyle) -> set[Any]:
    """The tensors that must be on a grid for the unit's integer kernel; none for what stands between others."""
    if not unit.is_compute:
        return set()
    return _variables(unit) | (set() if _hands_out_floats(unit, style) else set(unit.tails))


def _variables(unit: Unit) -> set[Any]:
    return {each for each in unit.inputs if not isinstance(each, Constant)}
