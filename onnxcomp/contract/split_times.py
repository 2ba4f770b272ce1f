"""What a weight's nodes take on the target, as they are and as factors: few ranks are timed, each made of a node alone.

y = x @ W, (62, 384) by (384, 384)    0.163 ms        rank 128: 0.118    rank 96: 0.092    between: between these
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import AskedTime, Outcome
from onnxcomp.contract.sites import Fields, Option, Quantity, Site
from onnxcomp.contract.timed_shapes import timed_shapes
from onnxcomp.graph.excerpts import Excerpt, excerpt, excerpted
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.search.rate_allocation import PricedOption, least_harm
from onnxcomp.numerics.search.time_curves import FASTER, between, spread, undominated

NO_SHARE: Fields = {"weights": None, "macs": None, "latency": None}
NANOSECONDS = 1e6  # in a millisecond
RANKS_TIMED = 5  # of each way to split a weight
UNKNOWN = "how long its nodes take is not known: a shape is open, they hold graphs, or the target does not run them"
NONE_SMALLER = "factors of no rank are smaller"
NO_TIME = "the time budget was used up before it was timed"


@dataclass(frozen=True)
class TimedWay:
    """What an option makes of the nodes. kind: of options that differ in size alone. size: by which times rise, within
    a kind. put: makes it of the graph of one of these nodes, or says that it cannot."""

    kind: str
    size: float
    put: Callable[[Graph], bool]


@dataclass(frozen=True)
class TimedSplits:
    """whole: milliseconds of the nodes as they are, None where they are not known. options: that are faster, with
    theirs, the slowest first. reason: why there are none."""

    whole: float | None
    options: tuple[Option, ...]
    reason: str = ""


class TimedPlaces:
    """Times of the nodes that read weights of one graph."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self._graph, self._context = graph, context
        self._shapes = timed_shapes(graph, context)

    def timed(self, weight: Weight, ways: Sequence[tuple[Option, TimedWay]]) -> TimedSplits:
        """What all nodes take that read the weight, and those options that are faster and err least at their time."""
        if self._context.is_over():
            return TimedSplits(None, (), NO_TIME)
        nodes = [excerpt(self._graph, node, self._shapes) for node in _readers(weight)]
        known = [each for each in nodes if each is not None]
        if len(known) < len(nodes) or not nodes:
            return TimedSplits(None, (), UNKNOWN)
        made = {at: [_made(each, ways[at][1].put) for each in known] for at in _chosen([way for _, way in ways])}
        found = {at: [each for each in own if each is not None] for at, own in made.items()}
        took = self._took([*known, *(each for own in found.values() for each in own)])
        times = {at: _sum(took, each) for at, each in found.items() if len(each) == len(known)}
        whole = _sum(took, known)
        if not whole:
            return TimedSplits(None, (), UNKNOWN)
        return _judged(whole, _priced(ways, {at: own for at, own in times.items() if own is not None}))

    def _took(self, asked: Sequence[Excerpt]) -> dict[Excerpt, float | None]:
        distinct = list(dict.fromkeys(asked))
        return dict(zip(distinct, self._context.times.milliseconds(distinct, self._context.target), strict=True))


def _priced(ways: Sequence[tuple[Option, TimedWay]], times: Mapping[int, float]) -> list[Option]:
    """The options with their times, those between timed ones of their kind in proportion."""
    priced: list[Option] = []
    for kind in dict.fromkeys(way.kind for _, way in ways):
        own = [at for at, (_, way) in enumerate(ways) if way.kind == kind]
        timed = [at for at in own if at in times]
        if timed:
            sizes = [ways[at][1].size for at in timed]
            took = between([ways[at][1].size for at in own], sizes, [times[at] for at in timed])
            priced += [
                replace(ways[at][0], costs={**ways[at][0].costs, Quantity.LATENCY: float(each)})
                for at, each in zip(own, took, strict=True)
            ]
    return priced


def _judged(whole: float, priced: Sequence[Option]) -> TimedSplits:
    if not priced:
        return TimedSplits(whole, (), NONE_SMALLER)
    times = [each.costs[Quantity.LATENCY] for each in priced]
    faster = [at for at, each in enumerate(times) if each < FASTER * whole]
    if not faster:
        reason = f"no split of it is faster on the target: the fastest takes {min(times) / whole:.2f} of its time"
        return TimedSplits(whole, (), reason)
    kept = undominated([times[at] for at in faster], [priced[at].error or 0.0 for at in faster])
    return TimedSplits(whole, tuple(priced[faster[at]] for at in kept))


def _readers(weight: Weight) -> list[Node]:
    return list(dict.fromkeys(role.node for role in weight.roles))


def _chosen(ways: Sequence[TimedWay]) -> list[int]:
    """The places of those that are timed: of each kind some, evenly apart."""
    found: list[int] = []
    for kind in dict.fromkeys(each.kind for each in ways):
        own = sorted((at for at, each in enumerate(ways) if each.kind == kind), key=lambda at: ways[at].size)
        found += [own[at] for at in spread(len(own), RANKS_TIMED)]
    return found


def _made(node: Excerpt, put: Callable[[Graph], bool]) -> Excerpt | None:
    """The node with the factors in it, None where they cannot be put in."""
    graph = node.opened()
    return excerpted(graph) if put(graph) else None


def _sum(took: dict[Excerpt, float | None], nodes: Sequence[Excerpt]) -> float | None:
    found = [took[each] for each in nodes]
    return None if any(each is None for each in found) else sum(each or 0.0 for each in found)


@dataclass(frozen=True)
class Allotment:
    """What one share for all comes to. fields: of each place that is to be split. reasons: why others are not, where it
    is not that splitting others does less harm. times: where the target's clock decided, the share of the time of its
    nodes that each keeps, and asked: the share of all of them."""

    fields: Mapping[str, Fields] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    asked: AskedTime | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader is told of the share."""
        return [] if self.asked is None else self.asked.notes

    def decide(self, name: str, outcome: Outcome) -> None:
        """Note of a place that was just split what the clock decided."""
        if name in self.times and outcome.changed and outcome.changed[-1].name == name:
            last = outcome.changed[-1]
            details = {**last.details, "latency_share": round(self.times[name], 4)}
            details |= self.asked.details if self.asked is not None else {}
            outcome.changed[-1] = replace(last, details=details)
            outcome.decided[name] = {**NO_SHARE, **self.fields[name]}


def allotment(
    sites: Sequence[Site], minded: Mapping[str, float], quantity: Quantity, share: float, reasons: Mapping[str, str]
) -> Allotment:
    """The options of all sites of least harm that take this share of what all take. minded: by what errors count."""
    unit = NANOSECONDS if quantity is Quantity.LATENCY else 1.0  # as fine as bytes are
    items = [
        [PricedOption(unit * site.costs[quantity], 0.0)]
        + [PricedOption(unit * each.costs[quantity], minded[site.name] * (each.error or 0)) for each in site.options]
        for site in sites
    ]
    total = sum(site.costs[quantity] for site in sites)
    positions = least_harm(items, unit * (share * total))
    chosen = {site.name: (site, site.options[at - 1]) for site, at in zip(sites, positions, strict=True) if at}
    fields = {name: option.fields for name, (_, option) in chosen.items()}
    if quantity is not Quantity.LATENCY:
        return Allotment(fields)
    times = {name: option.costs[quantity] / site.costs[quantity] for name, (site, option) in chosen.items()}
    left = sum(site.costs[quantity] * times.get(site.name, 1.0) for site in sites)
    return Allotment(fields, reasons, times, AskedTime(share, left / total if total else None, "its nodes'"))
