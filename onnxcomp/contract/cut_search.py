"""How many units of each group go so that a model takes a share of its time, at the least harm.

foreseen by what nodes take at a few sizes    ->    cut, run beside the whole model    ->    aimed anew by the ratio
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract.cut_times import CutTimes, cut_times, measured_share
from onnxcomp.contract.cutting_task import CuttingTask
from onnxcomp.graph.channels.dependencies import DependencyGroup
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.numerics.search.cut_allocation import allocated

LOG = logging.getLogger(__name__)

ROUNDS = 6  # of cutting and running
MARGIN = 0.99  # by which at least less is aimed at, where the cut model takes more than was asked for
NEAR = 0.03  # below the share that is asked for, from where nothing is given back


@dataclass(frozen=True)
class TimedCut:
    """counts: how many units of each group go. alone: of each group, the share of the model's time that is left where
    it alone is cut so. share: of the time, with all of them cut; None where the model was not run. slow: groups of
    which no number is faster. foreseen: the share by what nodes take, None where no time is known. is_least: nothing
    is left to cut that would be faster."""

    counts: Sequence[int]
    alone: Sequence[float]
    share: float | None
    slow: frozenset[str]
    foreseen: float | None
    is_least: bool


def timed_cut(
    task: CuttingTask,
    groups: Sequence[DependencyGroup],
    allowed: Sequence[Array],
    latency: float,
    *,
    by_errors: bool = False,
) -> TimedCut:
    """The cut of least harm that takes so much of the model's time; the model remembers it, since times differ.

    allowed: the numbers of each group to choose from, rising from 0. by_errors: harm is the error of what reads a
    group, with no runs of the model.
    """
    names, choices = tuple(each.name for each in groups), tuple(each.tobytes() for each in allowed)
    key = (timed_cut, latency, names, choices, task.importance, task.context.calibration)
    memo = task.graph.model.memo
    if key not in memo:
        told = task.errors if by_errors else task.harms
        times = cut_times(task.found, groups, allowed, task.context)
        memo[key] = _searched(task, groups, times, latency, told)
    found: TimedCut = memo[key]
    return found


def _searched(
    task: CuttingTask,
    groups: Sequence[DependencyGroup],
    times: CutTimes,
    latency: float,
    told: Callable[[DependencyGroup], Array],
) -> TimedCut:
    """told: what it costs that so many of a group's units go."""
    slow = frozenset(group.name for group, own in zip(groups, times.allowed, strict=True) if len(own) < 2)
    able = [at for at, group in enumerate(groups) if group.name not in slow]
    counts = np.zeros(len(groups), np.int64)
    if not able:
        known = bool((times.prices.times > 0).any())
        return TimedCut(counts.tolist(), [1.0] * len(groups), None, slow, 1.0 if known else None, True)
    harms = [told(group) if at in able else np.zeros(group.units.size + 1) for at, group in enumerate(groups)]
    whole = times.prices.total(counts)
    tried: dict[tuple[int, ...], float] = {}
    aim, under, over = latency, 0.0, math.inf  # the last aims that came out below and above what is asked for
    for _ in range(ROUNDS):
        counts = allocated(harms, times.allowed, times.prices, aim * whole)
        key = tuple(counts.tolist())
        if task.context.is_over():
            break
        if key not in tried:
            share = measured_share(task.graph, list(zip(groups, key, strict=True)), task.context)
            LOG.info("cut to %.3g of the time as foreseen: %s as run", times.prices.total(counts) / whole, share)
            if share is None:
                return _made(key, None, times, slow)
            tried[key] = share
        share = tried[key]
        if latency * (1 - NEAR) <= share <= latency:
            break
        under, over = (under, min(over, aim)) if share > latency else (max(under, aim), over)
        aim *= min(latency / share, MARGIN) if share > latency else latency / share
        if under and over < math.inf and not under < aim < over:
            aim = (under + over) / 2
    within = [each for each, share in tried.items() if share <= latency]
    if not within:
        best = min(tried, key=lambda each: tried[each], default=tuple(counts.tolist()))
    else:
        best = min(within, key=lambda each: sum(own[count] for own, count in zip(harms, each, strict=True)))
    return _made(best, tried.get(best), times, slow)


def _made(counts: Sequence[int], share: float | None, times: CutTimes, slow: frozenset[str]) -> TimedCut:
    whole = times.prices.total(np.zeros(len(counts), np.int64))
    alone = [times.prices.total(np.diag(counts)[at]) / whole for at in range(len(counts))]
    is_least = all(count == own[-1] for count, own in zip(counts, times.allowed, strict=True))
    return TimedCut(list(counts), alone, share, slow, times.prices.total(np.array(counts)) / whole, is_least)
