"""Choose the nodes that compute with integers and the tensors that get a grid, so that no conversion is idle.

Every Conv, Gemm and MatMul wants its input on a grid, and a Conv its output too: only then is it replaced by
its integer kernel. A node between them joins when all it reads is on a grid already and something that stays
reads what it makes; a node at the end of such a chain, read by float nodes alone, would only lose accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.integer_units import Unit
from onnxcomp.graph.ir import Constant

# These two hand out floats when no QuantizeLinear follows them, and lose nothing by it.
FLOAT_RESULT = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class Plan:
    """units: what computes with integers, in topological order.

    grids: tensor -> the tensor whose range gives its grid, and the factor that its scale is to be multiplied by.
    makers: tensor on a grid -> the unit that makes it in integers; others are made by float nodes.
    """

    units: list[Unit]
    grids: dict[Any, tuple[Any, float]]
    makers: dict[Any, Unit]


def make_plan(units: Sequence[Unit], *, unusable: Set[Any] = frozenset()) -> Plan:
    """The plan for the units of one graph, given in topological order; ``unusable`` tensors get no grid."""
    chosen = [each for each in units if not each.is_compute or not _touches(each, unusable)]
    wanted = {tensor for unit in chosen if unit.is_compute for tensor in _needed(unit)}
    reached = set(wanted)
    grown = []
    for unit in chosen:
        inputs = _variables(unit)
        if not unit.is_compute and (not inputs <= reached or unusable & {*inputs, *unit.tails}):
            continue
        grown.append(unit)
        if not unit.is_compute:
            reached.update(unit.tails)
    kept: list[Unit] = []
    read: set[Any] = set()
    for unit in reversed(grown):
        if unit.is_compute or read & set(unit.tails):
            kept.append(unit)
            read |= _variables(unit)
    kept.reverse()
    return _with_grids(kept, read)


def _with_grids(units: list[Unit], read: Set[Any]) -> Plan:
    grids: dict[Any, tuple[Any, float]] = {tensor: (tensor, 1.0) for tensor in read}
    makers: dict[Any, Unit] = {}
    for unit in units:
        for tail in unit.tails:
            if tail in read or unit.node.op not in FLOAT_RESULT:
                root, factor = grids[unit.inputs[0]] if unit.moves_only else (tail, 1.0)
                grids[tail] = root, factor * (unit.factor or 1.0)
                makers[tail] = unit
    return Plan(units, grids, makers)


def _needed(unit: Unit) -> set[Any]:
    """The tensors that must be on a grid for the unit's integer kernel."""
    return _variables(unit) | (set() if unit.node.op in FLOAT_RESULT else set(unit.tails))


def _touches(unit: Unit, tensors: Set[Any]) -> bool:
    return bool(_needed(unit) & tensors)


def _variables(unit: Unit) -> set[Any]:
    return {each for each in unit.inputs if not isinstance(each, Constant)}
