"""Passes whose sites are dependency groups, of which units are cut; what reads them makes up for it.

which units go       by importance, by default what harms the consumers' outputs least (``unit_elimination``)
how many of each     so that the model keeps a share of its channels or MACs at the least error
what is left         is solved anew, weight after weight, for the original's outputs (``compensation``)
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract.context import Context
from onnxcomp.contract.cut_search import TimedCut, timed_cut
from onnxcomp.contract.cutting_task import TAYLOR, CuttingTask
from onnxcomp.contract.outcome import AskedTime, Outcome, Skip
from onnxcomp.contract.parameters import parameter
from onnxcomp.contract.passes import Effect, Exact, Structure
from onnxcomp.contract.sites import Choice, Option, Quantity, Site, SitePass, Survey
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup, dependencies
from onnxcomp.graph.cutting.costs import prices_of
from onnxcomp.graph.cutting.importance import BY_WEIGHTS
from onnxcomp.graph.cutting.readers import Consumers
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.numerics.search.cut_allocation import allocated, allowed_counts

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)  # of a group's units, for a search to choose from
NOT_FASTER = "no smaller number of them is faster on the target"
HEADS = "heads"  # a kind of groups
# Units up to which so many at once are tried where times decide: kernels take 8 or 16 channels at once.
TIMED_BLOCKS = {15: 1, 64: 8, math.inf: 16}
PRICED = {Quantity.BYTES: "bytes", Quantity.MACS: "macs"}


@dataclass(frozen=True, kw_only=True)
class CuttingPass(SitePass):
    """A pass that cuts units out of dependency groups."""

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    destroys = frozenset({Structure.ZEROS, Structure.LEVELS, Structure.COMPACT})
    prepared_by = ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")
    renews_reference = True
    variants = tuple({"ratio": share, "even": True} for share in SHARES)

    ratio: float = parameter(0.25, low=0.0, high=0.99, help="share of all units that is cut")
    even: bool = parameter(False, help="cut the same share of every group, instead of where it harms least")
    macs: float | None = parameter(None, low=0.0, high=1.0, help="share of the MACs kept, in place of ratio")
    size: float | None = parameter(None, low=0.0, high=1.0, help="share of the constants' bytes kept, likewise")
    latency: float | None = parameter(
        None,
        low=0.0,
        high=1.0,
        help="share of the model's time on the target kept, likewise: by what nodes take there at a few sizes, and by "
        "running the cut model; numbers of units kept are such as kernels take at once; with price, no more than that",
    )
    kept: int | None = parameter(None, low=1, help="units kept of every group, in place of ratio")
    price: float | None = parameter(
        None,
        low=0.0,
        help="in place of ratio: relative squared error of what reads a group that cutting all of it is worth, parts "
        "of it in proportion; needs data",
    )
    importance: str = parameter(
        "auto",
        choices=("auto", "reconstruction", "activation", TAYLOR, *BY_WEIGHTS),
        help="what a unit is worth; taylor: what gradients say the model loses without it; auto: reconstruction of its "
        "readers' outputs with data, else l2",
    )
    multiple: int = parameter(1, low=1, help="numbers of units kept are multiples of this")
    blocks: bool = parameter(
        False,
        help="where 16 or 8 divides the channels of convolutions, it divides what stays of them: kernels take so many "
        "at once, and other numbers are slower",
    )
    repair: bool = parameter(True, help="solve the weights that are left anew, where there are data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.price is None or self.latency is None:
            self.refuse_two("price", "latency", "macs", "size", "kept")
        else:
            self.refuse_two("latency", "macs", "size", "kept")

    @abstractmethod
    def is_own(self, group: DependencyGroup) -> bool:
        """Whether the pass cuts units of this kind."""

    def obstacle(self, found: Dependencies, group: DependencyGroup, consumers: Consumers) -> str | None:
        """Why the pass leaves one of its own groups alone, if it does."""
        return None

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration

    def sites(self, graph: Graph, context: Context) -> Survey:
        found, groups, skipped = self._groups(graph, context)
        task = CuttingTask(graph, found, self.importance, context)
        prices = prices_of(found, groups) if groups else {}
        sites = []
        for index, group in enumerate(groups):
            elimination = task.elimination(group)
            costs = {quantity: prices[quantity].total(np.zeros(len(groups))) for quantity in PRICED}
            options = []
            for fields, one in self.strengths():
                counts = np.zeros(len(groups), np.int64)
                counts[index] = one.even_count(group)
                taken = {quantity: prices[quantity].total(counts) for quantity in PRICED}
                options.append(Option(fields, taken, float(elimination.errors[counts[index]])))
            sites.append(Site(group.name, tuple(sorted(group.touched)), costs, tuple(options) or (Option(),)))
        return Survey(tuple(sites), tuple(skipped))

    def even_count(self, group: DependencyGroup) -> int:
        """How many of a group's units go where every group loses the same share."""
        allowed = self._allowed(group)
        wanted = self.ratio * group.units.size
        return int(allowed[np.argmin(np.abs(allowed - wanted))])

    def _allowed(self, group: DependencyGroup) -> Array:
        """How many of a group's units may go."""
        if self.latency is not None and group.kind != HEADS:
            block = next(block for most, block in TIMED_BLOCKS.items() if group.units.size <= most)
        else:
            block = group.kernel_block if self.blocks else 1
        return allowed_counts(group.units.size, math.lcm(self.multiple, block))

    def apply(self, graph: Graph, context: Context) -> Outcome:
        _, groups, skipped = self._groups(graph, context)
        outcome = self.rewrite(graph, {each.name: {} for each in groups}, context)
        outcome.skipped += skipped  # what could be cut and was not is the first reason why nothing was
        return outcome

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        found, groups, _ = self._groups(graph, _unlimited(context))
        counts: dict[str, int] = {}
        task = CuttingTask(graph, found, self.importance, context)
        for own, names in self.by_fields(choice):
            assert isinstance(own, CuttingPass)
            counts.update((name, count) for name, count in own._counts(task, groups).items() if name in names)
        chosen = [(group, counts.get(group.name, 0)) for group in groups if group.name in choice]
        timed = self._timed(task, groups) if any(own.is_timed for own, _ in self.by_fields(choice)) else None
        for group, count in chosen:
            if not count:
                slow = timed is not None and group.name in timed.slow
                outcome.skip(group.name, NOT_FASTER if slow else "nothing of it is to go")
        task.cut([(group, count) for group, count in chosen if count], outcome, repair=self.repair)
        if timed is not None and groups:
            self._decide(outcome, groups, timed)
        return outcome

    @property
    def is_timed(self) -> bool:
        """Whether how much goes depends on what it takes on the target."""
        return self.latency is not None and not self.even and self.kept is None

    def _timed(self, task: CuttingTask, groups: Sequence[DependencyGroup]) -> TimedCut:
        assert self.latency is not None
        allowed = [self._allowed(group) for group in groups]
        if self.price is not None:
            most = [self._worthwhile(task, group, self.price) for group in groups]
            allowed = [own[own <= each] for own, each in zip(allowed, most, strict=True)]
        return timed_cut(task, groups, allowed, self.latency, by_errors=self.price is not None)

    def _decide(self, outcome: Outcome, groups: Sequence[DependencyGroup], timed: TimedCut) -> None:
        """Note of what was cut how much is left, which times decided, and the share of the model's time that it
        leaves beside what was asked for."""
        assert self.latency is not None
        is_run = timed.share is not None
        left = timed.share if is_run else timed.foreseen
        told = AskedTime(self.latency, left, "the model's", is_run, timed.is_least)
        outcome.notes += [f"{self.pass_name()}: {each}" for each in told.notes]
        alone = {group.name: share for group, share in zip(groups, timed.alone, strict=True)}
        for at, each in enumerate(outcome.changed):
            if each.name in alone:
                outcome.decided[each.name] = {"kept": each.details["kept"], "latency": None, "price": None}
                details = {**each.details, "latency_alone": round(alone[each.name], 4), **told.details}
                outcome.changed[at] = dataclasses.replace(each, details=details)

    def _worthwhile(self, task: CuttingTask, group: DependencyGroup, price: float) -> int:
        """How many units of a group go for no larger an error than their share is worth."""
        if task.context.calibration is None or not task.is_told(group):
            return 0
        allowed = self._allowed(group)
        errors = task.elimination(group).errors[allowed]
        return int(allowed[errors <= price * allowed / group.units.size].max())

    def _groups(self, graph: Graph, context: Context) -> tuple[Dependencies, list[DependencyGroup], list[Skip]]:
        """The groups of the pass that the context selects, and why the others are left alone."""
        found = dependencies(graph)
        skipped = [Skip(key, reason) for key, reason in found.declined.items() if context.selects(key)]
        groups = []
        consumers = Consumers(found)
        for group in found.groups:
            if not self.is_own(group) or not context.selects(group.name):
                continue
            if context.excludes(*group.touched):
                skipped.append(Skip(group.name, "something that goes with it is excluded"))
            elif not all(all_finite(np.asarray(each.constant.values)) for each in group.consumers):
                skipped.append(Skip(group.name, "its readers have values that are not finite"))
            elif (obstacle := self.obstacle(found, group, consumers)) is not None:
                skipped.append(Skip(group.name, obstacle))
            else:
                groups.append(group)
        return found, groups, skipped

    def _counts(self, task: CuttingTask, groups: Sequence[DependencyGroup]) -> dict[str, int]:
        """How many units of each group go."""
        if self.price is not None and not self.is_timed:
            return {group.name: self._worthwhile(task, group, self.price) for group in groups}
        if self.kept is not None:
            return {group.name: max(0, group.units.size - self.kept) for group in groups}
        if self.even or not groups:
            return {group.name: self.even_count(group) for group in groups}
        if self.is_timed:
            timed = self._timed(task, groups)
            return {group.name: count for group, count in zip(groups, timed.counts, strict=True)}
        prices = prices_of(task.found, groups)
        whole = np.zeros(len(groups))
        if self.macs is not None:
            price, goal = prices["macs"], self.macs * prices["macs"].total(whole)
        elif self.size is not None:
            price, goal = prices["bytes"], self.size * prices["bytes"].total(whole)
        else:
            price, goal = prices["units"], (1 - self.ratio) * prices["units"].total(whole)
        allowed = [self._allowed(group) for group in groups]
        errors = [task.harms(group) for group in groups]
        found = allocated(errors, allowed, price, goal)
        return {group.name: int(count) for group, count in zip(groups, found, strict=True)}


def _unlimited(context: Context) -> Context:
    """The context without its choice of sites: how many units of a group go depends on no choice of groups."""
    return dataclasses.replace(context, include=None)
