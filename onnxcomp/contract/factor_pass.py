"""Passes that let smaller weights take the place of large ones, each at a rank of its own, or all within one share.

Ranks are spent where they serve most: with ``weights`` or ``macs`` every site has options at known cost, what each does
to the model is its error times how much the model minds it, and the share is shared out by a Lagrange multiplier
(``numerics.search.rate_allocation``). How much the model minds is measured, one site after the other, where the
divergence from the original can be.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract.context import Context
from onnxcomp.contract.influence import UNFIT, output_products
from onnxcomp.contract.outcome import Outcome, Skip
from onnxcomp.contract.parameters import parameter
from onnxcomp.contract.passes import Structure
from onnxcomp.contract.sites import Choice, Option, Quantity, Site, SitePass, Survey, own_choice
from onnxcomp.contract.split_times import NO_SHARE, Allotment, TimedPlaces, TimedWay, allotment
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.bias import Bias
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.numerics.structure.whitening import input_weights, row_shares

TOO_LATE = "the time budget was used up"
NOT_SMALLER = "factors of no rank are smaller"
KEPT_WHOLE = "the share is met with less harm by splitting others"
PROBED_SHARE = 0.7  # of its cost that a site keeps when it is tried how much the model minds
LEAST_SHARE = 0.01  # of all cost that a site must have to be tried


class Splittable(Protocol):
    """A weight that smaller ones can take the place of."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> Weight: ...

    def bias(self, graph: Graph) -> Bias | None:
        """The bias that can make up for a shift of the outputs' means, None where there is none."""


P = TypeVar("P", bound=Splittable)


@dataclass(frozen=True)
class SeenInputs:
    """What calibration data show of the inputs of a weight. samples: how many ran. is_centered: a bias makes up for
    errors in the mean. counts: of rows that were looked up, in place of moments. outputs: how errors of its outputs
    count (outputs, outputs), where gradients were asked for and tell; else ``lack`` says why not."""

    moments: Moments | None
    samples: int
    is_centered: bool = False
    counts: Array | None = None
    data: CalibrationData | None = None
    outputs: Array | None = None
    lack: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """By what to remember what was made of them."""
        return self.data, self.is_centered, self.outputs is not None

    @property
    def weights(self) -> Array:
        """By what errors are weighed: (groups, K, K), or (1, rows) for a table."""
        if self.counts is not None:
            return row_shares(self.counts)[None]
        assert self.moments is not None
        mean = self.moments.mean if self.is_centered else None
        return input_weights(np.asarray(self.moments.gram), self.samples, mean)


@dataclass(frozen=True, kw_only=True)
class FactorPass(SitePass):
    """A pass that splits weights into factors."""

    makes = frozenset({Structure.FACTORS})
    destroys = frozenset({Structure.ZEROS, Structure.LEVELS, Structure.COMPACT})
    extents: ClassVar[tuple[str, ...]] = ("rank", "energy", "weights", "macs", "latency")  # how far, by one of them

    weights: float | None = parameter(
        None, low=0.0, high=1.0, help="share of all their weights kept, with ranks where they serve most"
    )
    macs: float | None = parameter(
        None, low=0.0, high=1.0, help="share of all their multiply-accumulates kept, likewise"
    )
    latency: float | None = parameter(
        None,
        low=0.0,
        high=1.0,
        help="share of the time kept that all their nodes take on the target, likewise: a few ranks of each are timed, "
        "and a split that is not faster is not made",
    )
    weighted: bool = parameter(
        True, help="weigh errors by the second moments of the inputs, where there are calibration data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_two(*self.extents)

    @abstractmethod
    def place(self, weight: Weight) -> Splittable | str | None:
        """Where the weight can be split, why it cannot, or None for what is none of the pass's business."""

    @abstractmethod
    def costs(self, places: Sequence[Splittable], graph: Graph) -> Mapping[str, Mapping[Quantity, float]]:
        """What each takes as it is."""

    @abstractmethod
    def options(
        self,
        place: Splittable,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
        graph: Graph,
        *,
        fine: bool = False,
    ) -> list[Option]:
        """What the place can become, each smaller than it is, the mildest first. fine: in small steps."""

    @abstractmethod
    def splits(
        self,
        place: Splittable,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
        graph: Graph,
    ) -> list[tuple[Option, TimedWay]]:
        """What the place can become, in every way, and how to make it of each of its nodes alone, to time it."""

    @abstractmethod
    def split(
        self, graph: Graph, place: Splittable, inputs: SeenInputs | None, context: Context, outcome: Outcome
    ) -> None:
        """Split the weight at the pass's own fields, or say in the outcome why not."""

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self.weighted

    @property
    def by_gradients(self) -> bool:
        """Whether errors of outputs count by what gradients say of them."""
        return False

    @property
    def shares(self) -> bool:
        """Whether one share is given for all sites."""
        return any(each is not None for each in (self.weights, self.macs, self.latency))

    @property
    def shared(self) -> tuple[Quantity, float]:
        """Of what a share is given, and how much."""
        given = {Quantity.BYTES: self.weights, Quantity.MACS: self.macs, Quantity.LATENCY: self.latency}
        return next((quantity, share) for quantity, share in given.items() if share is not None)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        """All places at the pass's own fields, for which nothing else has to be decomposed."""
        found, skipped = self._places(graph, context)
        outcome = self.rewrite(graph, own_choice(each.name for each in found), context)
        outcome.skipped[:0] = skipped
        return outcome

    def sites(self, graph: Graph, context: Context) -> Survey:
        found, skipped = self._places(graph, context)
        if self.shares and found and not context.is_over():
            allotted = self._allotted(graph, context)
            own = [each for each in found if each.name in allotted.fields]
            left = [each.name for each in found if each.name not in allotted.fields]
            skipped += [Skip(each, allotted.reasons.get(each, KEPT_WHOLE)) for each in left]
            return Survey(tuple(_site(each, {}, (Option(),)) for each in own), tuple(skipped))
        sites, late = self._surveyed(graph, found, context)
        return Survey(tuple(each for each in sites if each.options), (*skipped, *late))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        chosen = [each for each in self._all(graph) if each.name in choice]
        allotted = Allotment()
        if any(self.at(choice[each.name]).shares for each in chosen) and not context.is_over():
            allotted = self._allotted(graph, context)
        outcome.notes += [f"{self.pass_name()}: {each}" for each in allotted.notes]
        inputs = self._inputs(graph, chosen, context)
        for index, each in enumerate(chosen):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(index, len(chosen), f"{self.pass_name()} {each.name}")
            own = self.at(choice[each.name])
            if not own.shares:
                own.split(graph, each, inputs.get(each.name), context, outcome)
            elif each.name in allotted.fields:
                own = own.at({**NO_SHARE, **allotted.fields[each.name]})
                own.split(graph, each, inputs.get(each.name), context, outcome)
                allotted.decide(each.name, outcome)
            else:
                outcome.skip(each.name, allotted.reasons.get(each.name, KEPT_WHOLE))
        return outcome

    def _all(self, graph: Graph) -> list[Splittable]:
        found = (self._found(each) for each in weights(graph))
        return [each for each in found if each is not None and not isinstance(each, str)]

    def _found(self, weight: Weight) -> Splittable | str | None:
        found = self.place(weight)
        if found is None or isinstance(found, str):
            return found
        return found if all_finite(weight.values) else "it has values that are not finite"

    def _places(self, graph: Graph, context: Context) -> tuple[list[Splittable], list[Skip]]:
        """The selected weights that can be split, and why others cannot."""
        found: list[Splittable] = []
        skipped: list[Skip] = []
        for weight in weights(graph):
            if not context.selects(weight.name, *weight.node_names):
                continue
            place = self._found(weight)
            if isinstance(place, str):
                skipped.append(Skip(weight.name, place))
            elif place is not None:
                found.append(place)
        return found, skipped

    def _surveyed(
        self, graph: Graph, found: Sequence[Splittable], context: Context, *, fine: bool = False
    ) -> tuple[list[Site], list[Skip]]:
        """The places with their options, which may be none, and what was left when the time was up."""
        sites: list[Site] = []
        skipped: list[Skip] = []
        inputs = self._inputs(graph, found, context, told=False)
        costs = self.costs(found, graph) if found and not context.is_over() else {}
        for index, each in enumerate(found):
            if context.is_over():
                skipped.append(Skip(each.name, TOO_LATE))
                continue
            context.progress(index, len(found), f"{self.pass_name()}: decomposing {each.name}")
            own = costs[each.name]
            options = self.options(each, own, inputs.get(each.name), context, graph, fine=fine)
            sites.append(_site(each, own, tuple(options)))
            if not options:
                skipped.append(Skip(each.name, NOT_SMALLER))
        return sites, skipped

    def _timed(self, graph: Graph, found: Sequence[Splittable], context: Context) -> tuple[list[Site], list[Skip]]:
        """The places of known time with the options that are faster, and why others have none."""
        sites: list[Site] = []
        skipped: list[Skip] = []
        inputs = self._inputs(graph, found, context, told=False)
        costs = self.costs(found, graph) if found else {}
        places = TimedPlaces(graph, context)
        for index, each in enumerate(found):
            context.progress(index, len(found), f"{self.pass_name()}: timing {each.name}")
            own = costs.get(each.name, {})
            ways = [] if context.is_over() else self.splits(each, own, inputs.get(each.name), context, graph)
            took = places.timed(each.weight, ways)
            if took.whole is not None:
                sites.append(_site(each, {**own, Quantity.LATENCY: took.whole}, took.options))
            if took.reason:
                skipped.append(Skip(each.name, took.reason))
        return sites, skipped

    def _inputs(
        self, graph: Graph, places: Sequence[Splittable], context: Context, *, told: bool = True
    ) -> dict[str, SeenInputs]:
        """What the data show of the inputs of those that can be watched, by name. told: with what gradients tell, where
        they are asked for; a survey does without, since they take as long as a short training."""
        data = context.calibration
        if data is None or not self.weighted or not places or context.is_over():
            return {}
        tables = [each for each in places if each.weight.kinds == {"embedding"}]
        counts = _row_counts(graph, [each.weight for each in tables], context)
        found = {name: SeenInputs(None, data.sample_count, counts=each, data=data) for name, each in counts.items()}
        moments = context.observe.moments(graph, [each.weight for each in places if each not in tables])
        for each in places:
            if each.name in moments:
                centered = each.bias(graph) is not None
                found[each.name] = SeenInputs(moments[each.name], data.sample_count, centered, data=data)
        if not self.by_gradients or not told:
            return found
        products = output_products(graph, [each.weight for each in places if each.name in moments], context)
        lack = products if isinstance(products, str) else UNFIT
        known: Mapping[str, Array] = {} if isinstance(products, str) else products
        return {name: replace(each, outputs=known.get(name), lack=lack) for name, each in found.items()}

    # --- one share for all ------------------------------------------------------------------------------------

    def _allotted(self, graph: Graph, context: Context) -> Allotment:
        """The fields of each place that is to be split, so that all that are not excluded keep the share together."""
        key = FactorPass, self, context.calibration, context.exclude
        if key not in graph.model.memo:
            every = [each for each in self._all(graph) if not context.excludes(each.name, *each.weight.node_names)]
            graph.model.memo[key] = self._shared_out(graph, every, context)
        found: Allotment = graph.model.memo[key]
        return found

    def _shared_out(self, graph: Graph, places: Sequence[Splittable], context: Context) -> Allotment:
        plain, (quantity, share) = self.at(NO_SHARE), self.shared
        is_timed = quantity is Quantity.LATENCY
        survey = plain._timed(graph, places, context) if is_timed else None
        sites, left = survey or plain._surveyed(graph, places, context, fine=True)
        total = sum(each.costs[quantity] for each in sites)
        minded = plain._minded(graph, sites, quantity, total, context)
        reasons = {each.name: each.reason for each in left} if is_timed else {}
        return allotment(sites, minded, quantity, share, reasons)

    def _minded(
        self, graph: Graph, sites: Sequence[Site], quantity: Quantity, total: float, context: Context
    ) -> dict[str, float]:
        """By what the relative error of each site counts: the divergence that it gives rise to alone."""
        measure = context.divergence
        if measure is None:
            return dict.fromkeys((each.name for each in sites), 1.0)
        found: dict[str, float] = {}
        tried = [each for each in sites if each.options and each.costs[quantity] >= LEAST_SHARE * total]
        for index, site in enumerate(tried):
            if context.is_over():
                break
            context.progress(index, len(tried), f"{self.pass_name()}: trying {site.name}")
            milder = [each for each in site.options if each.costs[quantity] <= PROBED_SHARE * site.costs[quantity]]
            probe = (milder or [*site.options[-1:]])[0]
            copy = open_plain(graph.model)
            self.rewrite(copy, {site.name: probe.fields}, context)
            divergence = measure(close_graph(copy))
            found[site.name] = (divergence if math.isfinite(divergence) else 1e6) / max(probe.error or 0.0, 1e-12)
        most = max(found.values(), default=1.0)
        return {each.name: max(found.get(each.name, most), 1e-12) for each in sites}


def _site(place: Splittable, costs: Mapping[Quantity, float], options: tuple[Option, ...]) -> Site:
    return Site(place.name, tuple(place.weight.node_names), costs, options)


def _row_counts(graph: Graph, tables: Sequence[Weight], context: Context) -> dict[str, Array]:
    """How often each row of a table is looked up while the calibration data run."""
    main = {id(node) for node in graph.main.graph.nodes}
    readers: dict[str, list[Weight]] = {}
    for table in tables:
        nodes = [role.node for role in table.roles]
        if table.scope is graph.main and all(id(node) in main for node in nodes):
            for node in nodes:
                if not isinstance(node.inputs[1], Constant):
                    readers.setdefault(node.inputs[1].name, []).append(table)
    counts = {each.name: np.zeros(each.shape[0]) for own in readers.values() for each in own}

    def see(name: str, value: object) -> None:
        for table in readers[name]:
            rows = np.asarray(value).ravel()
            counts[table.name] += np.bincount(rows % table.shape[0], minlength=table.shape[0])

    if readers:
        context.observe.watch(graph.model, list(readers), see)
    return counts


def shift_bias(graph: Graph, place: Splittable, inputs: SeenInputs | None, difference: Array) -> None:
    """Add to the bias what the outputs' means lost; difference: (groups, outputs, K), the weight minus what is now."""
    if inputs is None or inputs.moments is None or not inputs.is_centered:
        return
    bias = place.bias(graph)
    if bias is not None:
        shift = np.einsum("gok,gk->go", difference, np.asarray(inputs.moments.mean, np.float64))
        bias.add(graph, shift.reshape(-1))
