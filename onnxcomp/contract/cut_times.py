"""What a model takes on the target when units of its groups are gone: each group is cut at a few sizes, and the nodes
that change are timed.

    a group of 64     timed with 64, 48, 32, 16 left     nodes of two groups: the product of what either leaves

What does not multiply (activations, norms, copies) shares what the whole model takes beyond the nodes that do, by how
much each writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.contract.context import Context
from onnxcomp.contract.timed_shapes import filled_in, timed_shapes
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup, dependencies
from onnxcomp.graph.channels.removal import remove_units
from onnxcomp.graph.excerpts import Excerpt, excerpt
from onnxcomp.graph.infer.shapes import Shape, Shapes
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.report.macs import is_multiplying
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.numerics.search.time_curves import TimePrices, between, faster_ones, spread

MOST_SIZES = 12  # of a group that are timed one and all; of more, SIZES_TIMED, and times between them in proportion
SIZES_TIMED = 5
UNTOLD = "no node whose time is known would be cut"


@dataclass(frozen=True)
class _Sized:
    """A graph by its nodes: those that multiply by themselves, and of the others how many elements each writes."""

    excerpts: Mapping[str, Excerpt] = field(default_factory=dict)
    elements: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CutTimes:
    """prices: of the model by how many units of each group go. allowed: of these numbers, those that are faster than
    all smaller ones. lack: why there are none."""

    prices: TimePrices
    allowed: Sequence[Array]
    lack: str = ""


def cut_times(
    found: Dependencies, groups: Sequence[DependencyGroup], allowed: Sequence[Array], context: Context
) -> CutTimes:
    """Times by how many units of each group go. allowed: the numbers to choose from, rising from 0."""
    graph = found.graph
    shapes = timed_shapes(graph, context)
    whole = _sized(graph, shapes)
    known = {each.name: shape for _, node in graph.nodes() for each in node.outputs if (shape := shapes.shape(each))}
    cuts = [_cuts(graph, group, choices, known, context) for group, choices in zip(groups, allowed, strict=True)]
    took = _timed(whole, [each for own in cuts for each in own.values()], context)
    nodes = sorted(key for key in whole.excerpts if took.get(whole.excerpts[key]))
    multiplying = np.array([took[whole.excerpts[key]] or 0.0 for key in nodes])
    others = sorted(whole.elements)
    sizes = np.array([float(whole.elements[key]) for key in others])
    rest = _rest(graph, float(multiplying.sum()), context)
    times = np.concatenate([multiplying, rest * sizes / max(1.0, sizes.sum())])
    shares = []
    for group, own in zip(groups, cuts, strict=True):
        left = {0: np.ones(len(times))}
        for count, cut in own.items():
            left[count] = np.concatenate([_shares(whole, cut, took, nodes), _written(whole, cut, others)])
        shares.append(_filled(left, group.units.size))
    prices = TimePrices(times, shares, context.times.idle_ms)
    return CutTimes(prices, _faster(prices, allowed, cuts), "" if times.size else UNTOLD)


def cut_graph(graph: Graph, chosen: Sequence[tuple[DependencyGroup, int]]) -> Graph:
    """A copy with so many of the first units of each group gone. ValueError where an axis would be left with none."""
    copy = open_plain(graph.model)
    units = [group.units[:count] for group, count in chosen if count]
    if units:
        remove_units(dependencies(copy), np.concatenate(units))
    return copy


def measured_share(graph: Graph, chosen: Sequence[tuple[DependencyGroup, int]], context: Context) -> float | None:
    """The time of the cut model over that of the whole one, both run on the target; None where they cannot be."""
    if context.calibration is None:
        return None
    try:
        cut = close_graph(cut_graph(graph, chosen))
    except ValueError:
        return None
    before, after = context.times.whole([graph.model, cut], context.calibration.timed_sample(), context.target)
    return after / before if before and after else None


def _cuts(
    graph: Graph, group: DependencyGroup, choices: Array, known: Mapping[str, Shape], context: Context
) -> dict[int, _Sized]:
    """The graph with some numbers of a group's units gone, by these numbers."""
    made = {}
    for at in spread(len(choices), len(choices) if len(choices) <= MOST_SIZES else SIZES_TIMED):
        count = int(choices[at])
        if count and not context.is_over():
            try:
                copy = cut_graph(graph, [(group, count)])
            except ValueError:
                break
            made[count] = _sized(copy, filled_in(copy, context, known))
    return made


def _sized(graph: Graph, shapes: Shapes) -> _Sized:
    excerpts, elements = {}, {}
    for scope, node in graph.nodes():
        key = node_key(scope, node)
        if is_multiplying(node.op):
            made = excerpt(graph, node, shapes)
            if made is not None:
                excerpts[key] = made
        else:
            written = [shapes.static(each) for each in node.outputs if each.name]
            elements[key] = sum(math.prod(each) for each in written if each is not None)
    return _Sized(excerpts, elements)


def _timed(whole: _Sized, cuts: Sequence[_Sized], context: Context) -> dict[Excerpt, float | None]:
    """Milliseconds of all that differs; what a node becomes stands beside what it is, so that both take turns."""
    wanted: dict[Excerpt, None] = {}
    for key, own in whole.excerpts.items():
        wanted[own] = None
        wanted.update(dict.fromkeys(each.excerpts[key] for each in cuts if key in each.excerpts))
    took = context.times.milliseconds(list(wanted), context.target)
    return dict(zip(wanted, took, strict=True))


def _rest(graph: Graph, nodes_ms: float, context: Context) -> float:
    """What the whole model takes beyond the nodes that multiply."""
    if context.calibration is None:
        return 0.0
    [took] = context.times.whole([graph.model], context.calibration.timed_sample(), context.target)
    return max(0.0, (took or 0.0) - context.times.idle_ms - nodes_ms)


def _shares(whole: _Sized, cut: _Sized, took: Mapping[Excerpt, float | None], nodes: Sequence[str]) -> Array:
    """Of each node that multiplies, the share of its time that a cut leaves; all of it where that is not known."""
    left = np.ones(len(nodes))
    for at, key in enumerate(nodes):
        before, after = whole.excerpts[key], cut.excerpts.get(key)
        if after is not None and after != before and (own := took.get(after)) is not None:
            left[at] = own / (took[before] or 1.0)
    return left


def _written(whole: _Sized, cut: _Sized, others: Sequence[str]) -> Array:
    """Of each other node, the share of its elements that a cut leaves."""
    return np.array([cut.elements.get(key, whole.elements[key]) / max(1, whole.elements[key]) for key in others])


def _filled(left: Mapping[int, Array], units: int) -> Array:
    """(units + 1, nodes): the shares between those that are known."""
    counts = np.arange(units + 1)
    columns = np.stack(list(left.values()))
    if not columns.size:
        return np.ones((units + 1, columns.shape[1]))
    found: Array = np.stack([between(counts, list(left), own) for own in columns.T], axis=1)
    return found


def _faster(prices: TimePrices, allowed: Sequence[Array], cuts: Sequence[Mapping[int, _Sized]]) -> list[Array]:
    """Of the numbers of each group those with which what it changes is faster than with any smaller one."""
    found = []
    for choices, own, left in zip(allowed, cuts, prices.shares, strict=True):
        reachable = choices[choices <= max(own, default=0)]
        changed = (left[reachable] != 1).any(axis=0)
        times = left[reachable][:, changed] @ prices.times[changed]
        found.append(reachable[faster_ones(times.tolist())])
    return found
