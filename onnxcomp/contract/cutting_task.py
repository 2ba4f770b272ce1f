"""Cutting units out of one graph: which of a group go first, how much that counts, and what is solved anew."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import Outcome
from onnxcomp.contract.solving_anew import solve_anew
from onnxcomp.contract.unit_effects import UnitEffects, unit_effects
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup, dependencies
from onnxcomp.graph.channels.owners import ChannelCut
from onnxcomp.graph.channels.removal import remove_units
from onnxcomp.graph.cutting.compensation import compensated, give_bias, movable_bias
from onnxcomp.graph.cutting.folding import fold, merging_of
from onnxcomp.graph.cutting.importance import BY_WEIGHTS, l2_norms
from onnxcomp.graph.cutting.readers import Consumer, Consumers, owners
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight, with_arrays
from onnxcomp.numerics.rounding.gram import CAUTIOUS_SHRINKAGE, shrunk
from onnxcomp.numerics.structure.merging import Merging
from onnxcomp.numerics.structure.unit_elimination import Elimination, UnitReader, eliminated

# Shares of a group's units that go to see how much its errors count at the model's outputs: more where groups are few.
LOOKS = {16: (0.125, 0.25, 0.5, 0.75), 48: (0.25, 0.5), 256: (0.25,)}
LIKENESS = "likeness"  # an importance: units merge into others instead of being dropped
TAYLOR = "taylor"  # an importance: what gradients say of a unit
LEAST_ERROR = 1e-12
MOST_COLUMNS = 6144  # of a reader whose moment is inverted: half a minute, and 150 MB


class CuttingTask:
    """What a cutting pass knows of one graph; the graph changes by ``cut`` alone."""

    def __init__(self, graph: Graph, found: Dependencies, importance: str, context: Context) -> None:
        self.graph, self.found, self.context = graph, found, context
        self.importance = importance
        self._consumers = Consumers(found)
        memo = graph.model.memo
        self._eliminations: dict[str, Elimination] = memo.setdefault((CuttingTask, importance, context.calibration), {})
        self._harms: dict[str, Array] = memo.setdefault((CuttingTask, importance, context.calibration, "harms"), {})
        self._moments: Mapping[str, Moments] | None = None
        self._mergings: dict[str, Merging] = {}

    # --- which go first ----------------------------------------------------------------------------------------------

    def elimination(self, group: DependencyGroup) -> Elimination:
        """The order in which a group's units go, and the error with so many gone."""
        if group.name not in self._eliminations:
            self._eliminations[group.name] = self._eliminated(group)
        return self._eliminations[group.name]

    def _eliminated(self, group: DependencyGroup) -> Elimination:
        kind = self.importance
        if kind == "auto" or (kind == TAYLOR and self._lack_of(group)):
            kind = "l2" if self.context.calibration is None else "reconstruction"
        if kind == LIKENESS:
            return self._merging(group).elimination
        if kind == "reconstruction" and self._is_solvable(group):
            return eliminated(list(self._readers(group)), group.units.size)
        if kind == TAYLOR:
            return self._by_effects(group)
        scores = self._activation(group) if kind == "activation" else None
        if kind in BY_WEIGHTS:
            scores = BY_WEIGHTS[kind](self.found, group)
        if scores is None:
            scores = l2_norms(self.found, group)
        if scores is None:
            scores = np.ones(group.units.size)
        order = np.argsort(scores, kind="stable")
        total = max(float(scores.sum()), LEAST_ERROR)
        return Elimination(order, np.concatenate([[0.0], np.cumsum(scores[order]) / total]))

    def _by_effects(self, group: DependencyGroup) -> Elimination:
        """By what their going does to the model's outputs, where those that stay may be scaled to make up for it."""
        products = self._effects.products[group.name]
        moment = shrunk(products[None], CAUTIOUS_SHRINKAGE)[0]
        return eliminated([UnitReader(np.ones((1, len(products))), moment, np.arange(len(products)))], len(products))

    @functools.cached_property
    def _effects(self) -> UnitEffects:
        return unit_effects(self.found, self._consumers, self.context)

    def _lack_of(self, group: DependencyGroup) -> str:
        """Why gradients that were asked for tell nothing of a group."""
        return self._effects.lack_of(group) if self.importance == TAYLOR else ""

    def _merging(self, group: DependencyGroup) -> Merging:
        if group.name not in self._mergings:
            self._mergings[group.name] = merging_of(self.found, group)
        return self._mergings[group.name]

    def is_told(self, group: DependencyGroup) -> bool:
        """Whether the data show what all readers of a group lose."""
        consumers = self._consumers.of(group)
        shown = all(each.weight.name in self._known() for each in consumers)
        return shown and len(consumers) == len({each.constant for each in group.consumers}) and self._is_solvable(group)

    def _is_solvable(self, group: DependencyGroup) -> bool:
        """Whether the moments of its readers are small enough to be inverted."""
        consumers = self._consumers.of(group)
        return bool(consumers) and all(each.numbers.shape[1] <= MOST_COLUMNS for each in consumers)

    def _readers(self, group: DependencyGroup) -> Iterator[UnitReader]:
        for each in self._consumers.of(group):
            packed = np.asarray(each.form.pack(np.asarray(each.weight.values)), np.float64)
            moment = shrunk(self._moment(each, packed.shape))
            power = sum(_power(matrix, moment[_own(moment, at)]) for at, matrix in enumerate(packed))
            for at, matrix in enumerate(packed):
                yield UnitReader(matrix, moment[_own(moment, at)], owners(each.numbers[at], group), power)

    def _moment(self, consumer: Consumer, shape: tuple[int, ...]) -> Array:
        """Of what a consumer reads, about the mean where its bias takes that up; the identity where it is not known."""
        known = self._known().get(consumer.weight.name)
        if known is None:
            return np.eye(shape[2])[None]
        gram = np.asarray(known.gram, np.float64)
        if self._has_bias(consumer.weight):
            gram = gram - np.einsum("gi,gj->gij", known.mean, known.mean, dtype=np.float64)
        return gram

    def _has_bias(self, weight: Weight) -> bool:
        is_convolution = any(role.kind.startswith("conv") for role in weight.roles)
        return is_convolution or movable_bias(self.graph, weight) is not None

    def _known(self) -> Mapping[str, Moments]:
        if self._moments is None:
            read = [each.weight for each in self._consumers.all()]
            has_data = self.context.calibration is not None
            self._moments = self.context.observe.moments(self.graph, read) if has_data else {}
        return self._moments

    def _activation(self, group: DependencyGroup) -> Array | None:
        """The mean square of what each unit holds, of each consumer over their mean."""
        total = np.zeros(group.units.size)
        for each in self._consumers.of(group):
            known = self._known().get(each.weight.name)
            if known is not None:
                squares = np.broadcast_to(np.einsum("gkk->gk", known.gram), each.numbers.shape).reshape(-1)
                units = owners(each.numbers.reshape(-1), group)
                held = units >= 0
                sums = np.bincount(units[held], weights=squares[held], minlength=group.units.size)
                total += sums / max(float(sums.mean()), LEAST_ERROR)
        return total if total.any() else None

    # --- how much it counts ------------------------------------------------------------------------------------------

    def harms(self, group: DependencyGroup) -> Array:
        """What it costs the model's outputs that so many of the group's units go, (n + 1,), rising from 0: their
        divergence where it can be measured, the readers' error else."""
        if group.name not in self._harms:
            errors = self.elimination(group).errors
            shares = next((looks for most, looks in LOOKS.items() if len(self.found.groups) <= most), ())
            is_measured = self.context.divergence is not None and self.context.calibration is not None
            self._harms[group.name] = self._looked(group, shares) if is_measured and shares else errors
        return self._harms[group.name]

    def errors(self, group: DependencyGroup) -> Array:
        """What its readers lose then, (n + 1,)."""
        return self.elimination(group).errors

    def _looked(self, group: DependencyGroup, shares: Sequence[float]) -> Array:
        """Divergences measured at some numbers of units, and between them in proportion to the readers' error."""
        errors = self.elimination(group).errors
        counts = sorted({min(group.units.size - 1, max(1, round(share * group.units.size))) for share in shares})
        measured = [self._divergence(group, count) for count in counts]
        harms = np.maximum.accumulate([0.0, *(each if np.isfinite(each) else 1 / LEAST_ERROR for each in measured)])
        places = np.array([0.0, *(max(float(errors[count]), LEAST_ERROR) for count in counts)])
        slope = harms[-1] / places[-1]
        beyond = np.maximum(errors - places[-1], 0) * slope
        return np.asarray(np.interp(errors, places, harms) + beyond)

    def _divergence(self, group: DependencyGroup, count: int) -> float:
        """Of the model when the first units of a group alone go, and each reader makes up for them."""
        elimination = self.elimination(group)
        cut = ChannelCut(self.found.sets, group.units[elimination.order[:count]])
        values: dict[str, Array] = {}
        for each in self._consumers.of(group):
            known = self._known().get(each.weight.name)
            dropped = each.dropped(cut)
            packed = each.form.pack(np.asarray(each.weight.values))
            if known is None:
                made = np.where(dropped[:, None], 0, packed)
            else:
                bias = movable_bias(self.graph, each.weight)
                mean = None if bias is None else known.mean
                found = compensated(packed, dropped, known.gram, known.gram, mean, mean)
                made = found.matrices
                if bias is not None and found.shift is not None:
                    old = np.asarray(bias.tensor.values)  # type: ignore[union-attr]
                    key = self.graph.main.key(bias.name)
                    values[key] = (old + found.shift.reshape(old.shape)).astype(old.dtype)
            values[each.weight.name] = each.form.unpack(made).reshape(each.weight.shape).astype(each.weight.dtype)
        assert self.context.divergence is not None
        return self.context.divergence(with_arrays(self.graph.model, values))

    # --- cutting -----------------------------------------------------------------------------------------------------

    def cut(self, chosen: Sequence[tuple[DependencyGroup, int]], outcome: Outcome, *, repair: bool) -> None:
        """Cut the first units of groups, and have the weights that are left make up for it."""
        if not chosen:
            return
        gone = [self._spared(group.units[self.elimination(group).order[:count]]) for group, count in chosen]
        units = np.concatenate(gone)
        if self.importance == LIKENESS:
            for (group, _), own in zip(chosen, gone, strict=True):
                homes = self._merging(group).homes(np.flatnonzero(np.isin(group.units, own)))
                fold(self.found, group, self._consumers.of(group), homes)
        if repair and self.context.calibration is not None:
            self._repair(units, outcome)
        outcome.origins.update(remove_units(dependencies(self.graph), units))
        for (group, _), own in zip(chosen, gone, strict=True):
            kept = group.units.size - own.size
            lack = self._lack_of(group)
            what = f"{own.size} of {group.units.size} {group.kind} cut{f', without gradients: {lack}' if lack else ''}"
            error = float(self.elimination(group).errors[own.size])
            outcome.change(group.name, what, kept=kept, error=error, nodes=sorted({each.key for each in group.slices}))

    def _spared(self, units: Array) -> Array:
        """The units without the last of each axis that would be left with nothing."""
        left = units
        for line in self.found.counts():
            if np.isin(line, left).all():
                places = {int(unit): at for at, unit in enumerate(left)}
                left = left[left != max(line.tolist(), key=lambda unit: places[int(unit)])]
        return left

    def _repair(self, units: Array, outcome: Outcome) -> None:
        """Solve weights anew in order, for the original's outputs from what they read by then."""
        cut = ChannelCut(self.found.sets, units)
        blinded = {each.weight.name: each for each in self._consumers.all() if each.dropped(cut).any()}
        for each in blinded.values():
            give_bias(self.graph, each.weight)
            packed = np.array(each.form.pack(np.asarray(each.weight.values)))
            packed[np.broadcast_to(each.dropped(cut)[:, None], packed.shape)] = 0
            each.weight.set(each.form.unpack(packed).reshape(each.weight.shape))
        solve_anew(self.graph, self.context, outcome)


def _own(moment: Array, at: int) -> int:
    return at if len(moment) > 1 else 0


def _power(matrix: Array, moment: Array) -> float:
    return float(np.sum((matrix @ moment) * matrix))
