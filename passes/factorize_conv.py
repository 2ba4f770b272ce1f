"""A convolution becomes a chain of smaller ones: fewer multiplications, fewer bytes, nearly the same outputs.

    channel     k x k to r channels, 1 x 1
    spatial     k x 1, 1 x k
    tucker      1 x 1, k x k, 1 x 1
    cp          1 x 1, k x 1 depthwise, 1 x k depthwise, 1 x 1
    depthwise   k x k depthwise, 1 x 1

Strides, dilations and padding go to the convolution of the chain that moves along their axis, the bias to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Option, Outcome, Quantity, parameter
from onnxcomp.contract.factor_pass import FactorPass, SeenInputs, Splittable, shift_bias
from onnxcomp.contract.split_times import TimedWay
from onnxcomp.graph.factors.conv_places import ConvPlace, conv_place
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.encodings.encoding import compute_dtype
from onnxcomp.numerics.structure.conv_fit import fitted
from onnxcomp.numerics.structure.conv_schemes import SCHEMES, Ranks, factor_shapes, full_ranks, multiplied

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)  # of multiply-accumulates, to choose from
ALIKE = 1.1  # squared errors that differ by less: the shorter chain runs faster
MOST_WEIGHED = 4608  # inputs times taps: beyond, products with the second moments take minutes


@dataclass(frozen=True)
class _Fit:
    """One way to take a kernel apart: its factors, their relative squared error, what they take."""

    scheme: str
    ranks: Ranks
    factors: list[Array]
    error: float

    @property
    def length(self) -> int:
        """How many factors it has, each a convolution."""
        return len(self.factors)

    @property
    def label(self) -> str:
        """The way and its ranks."""
        return f"{self.scheme} of rank {' and '.join(map(str, self.ranks))}"


@dataclass(frozen=True, kw_only=True)
class FactorizeConv(FactorPass):
    """Take convolutions apart into chains of smaller ones, each in the way that loses least at equal cost.

    With calibration data the factors are moved to the least error at the node's outputs, and a bias makes up for what
    their means lose. Every way that is possible is tried at the same share of multiply-accumulates; the outcome names
    those that came after. A chain that is not smaller and not fewer multiply-accumulates is not made. ``rank``,
    ``energy``, ``weights``, ``macs`` or ``latency``, where given, takes the place of ``ratio``. Deviations from the
    paper, which is on one of the ways: the others, least squares on calibration data, and no fine-tuning.
    """

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1511.06530"

    ratio: float = parameter(
        0.5,
        low=0.0,
        high=1.0,
        strengths=(0.75, 0.625, 0.5, 0.375, 0.25, 0.125),
        help="share of each convolution's multiply-accumulates kept",
    )
    rank: int | None = parameter(None, low=1, help="rank of every chain; of a tucker on both sides")
    energy: float | None = parameter(
        None, low=0.0, high=1.0, help="share of the squared kernel kept, at the least cost, weighed where errors are"
    )
    decomposition: str = parameter("auto", choices=("auto", *SCHEMES), help="the way; auto: the best at equal cost")

    def place(self, weight: Weight) -> ConvPlace | str | None:
        return conv_place(weight)

    def costs(self, places: Sequence[Splittable], graph: Graph) -> Mapping[str, Mapping[Quantity, float]]:
        counted = count_macs(graph)
        return {
            each.name: {Quantity.BYTES: each.weight.size_bytes, Quantity.MACS: each.macs(counted)}
            for each in places
            if isinstance(each, ConvPlace)
        }

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
        assert isinstance(place, ConvPlace)
        key = FactorizeConv, place.name, self.decomposition, None if inputs is None else inputs.key
        memo: dict[Any, Any] = graph.model.memo
        if self.rank is not None or self.energy is not None:
            found = self._best(place, inputs, context, graph)
            return [_option(place, found[0], {}, costs)] if found else []
        if key not in memo:
            memo[key] = self._ladder(graph, place, costs, inputs, context)
        options: list[Option] = memo[key]
        return options

    def splits(
        self,
        place: Splittable,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
        graph: Graph,
    ) -> list[tuple[Option, TimedWay]]:
        assert isinstance(place, ConvPlace)
        found: dict[tuple[str, Ranks], tuple[Option, TimedWay]] = {}
        for scheme in place.schemes(self.decomposition):
            for share in SHARES:
                ranks = place.ranks_within(scheme, share)
                if ranks is not None and (scheme, ranks) not in found:
                    fit = _fit(graph, place, scheme, ranks, inputs, context.seed)
                    option = _option(place, fit, {"decomposition": scheme, "ratio": share}, costs)
                    way = TimedWay(scheme, place.macs_share(scheme, ranks), _putting(scheme, ranks))
                    found[scheme, ranks] = option, way
        return list(found.values())

    def split(
        self, graph: Graph, place: Splittable, inputs: SeenInputs | None, context: Context, outcome: Outcome
    ) -> None:
        assert isinstance(place, ConvPlace)
        found = self._best(place, inputs, context, graph)
        if not found:
            outcome.skip(place.name, "no chain is smaller than its kernel at that cost")
            return
        best, kernel, target = found[0], place.kernel, place.target
        if not all(np.isfinite(each.astype(place.weight.dtype)).all() for each in best.factors):
            outcome.skip(place.name, f"its factors are not finite in {place.weight.dtype}")
            return
        place.put(graph, best.scheme, best.ranks, best.factors)
        lost = target - multiplied(best.scheme, kernel, best.factors)
        shift_bias(graph, place, inputs, lost.reshape(kernel.groups, kernel.outputs, -1))
        outcome.change(
            place.name,
            best.label + (", by output error" if inputs is not None else ""),
            decomposition=best.scheme,
            rank=list(best.ranks),
            shape=list(place.weight.shape),
            relative_error=float(np.sqrt(best.error)),
            macs_share=round(place.macs_share(best.scheme, best.ranks), 4),
            runners_up={each.label: float(np.sqrt(each.error)) for each in found[1:]},
            nodes=list(place.weight.node_names),
        )

    def _best(self, place: ConvPlace, inputs: SeenInputs | None, context: Context, graph: Graph) -> list[_Fit]:
        """What comes of each way at the pass's own fields, the best first."""
        if self.energy is not None:
            ladder = self.at({"energy": None}).options(place, dict.fromkeys(Quantity, 1.0), inputs, context, graph)
            enough = [each for each in ladder if each.error is not None and each.error <= 1 - self.energy]
            if not enough:
                return []
            return self.at({"energy": None, **enough[-1].fields})._best(place, inputs, context, graph)
        fits = [
            _fit(graph, place, scheme, ranks, inputs, context.seed)
            for scheme in place.schemes(self.decomposition)
            if (ranks := self._ranks(place, scheme)) is not None
        ]
        return _ordered(fits)

    def _ranks(self, place: ConvPlace, scheme: str) -> Ranks | None:
        if self.rank is None:
            return place.ranks_within(scheme, self.ratio)
        ranks = tuple(min(self.rank, each) for each in full_ranks(scheme, place.kernel))
        return ranks if place.is_smaller(scheme, ranks) else None

    def _ladder(
        self,
        graph: Graph,
        place: ConvPlace,
        costs: Mapping[Quantity, float],
        inputs: SeenInputs | None,
        context: Context,
    ) -> list[Option]:
        """For each share the best way, the mildest first; none that costs as much as one before and loses more."""
        found: list[Option] = []
        for share in SHARES:
            fits = [
                _fit(graph, place, scheme, ranks, inputs, context.seed)
                for scheme in place.schemes(self.decomposition)
                if (ranks := place.ranks_within(scheme, share)) is not None
            ]
            if fits:
                best = _ordered(fits)[0]
                found.append(_option(place, best, {"decomposition": best.scheme, "ratio": share}, costs))
        return _in_order(found)


def _putting(scheme: str, ranks: Ranks) -> Callable[[Graph], bool]:
    """What puts a chain of any values into the graph of one convolution."""

    def put(graph: Graph) -> bool:
        found = [each for each in map(conv_place, weights(graph)) if isinstance(each, ConvPlace)]
        for place in found[:1]:
            sizes = factor_shapes(scheme, place.kernel, ranks)
            place.put(graph, scheme, ranks, [np.full(each, 0.01, place.weight.dtype) for each in sizes])
        return len(found) == 1

    return put


def _fit(graph: Graph, place: ConvPlace, scheme: str, ranks: Ranks, inputs: SeenInputs | None, seed: int) -> _Fit:
    """One way at its ranks, which the model remembers: a search asks for the same again and again."""
    key = _Fit, place.name, scheme, ranks, None if inputs is None else inputs.key, seed
    memo: dict[Any, Any] = graph.model.memo
    if key not in memo:
        found, error = fitted(scheme, place.kernel, place.target, ranks, weights=_weights(inputs), seed=seed)
        kept = [each.astype(compute_dtype(place.weight.dtype)) for each in found]
        memo[key] = _Fit(scheme, ranks, kept, max(error, 0.0))
    made: _Fit = memo[key]
    return made


def _ordered(fits: Sequence[_Fit]) -> list[_Fit]:
    """The best first: of those whose errors are alike the chain of fewest convolutions, then by error."""
    least = min((each.error for each in fits), default=0.0)
    alike = [each for each in fits if each.error <= ALIKE * least]
    others = [each for each in fits if each.error > ALIKE * least]
    by_error = sorted(others, key=lambda each: each.error)
    return sorted(alike, key=lambda each: (each.length, each.error)) + by_error


def _weights(inputs: SeenInputs | None) -> Array | None:
    if inputs is None or inputs.moments is None or inputs.moments.gram.shape[-1] > MOST_WEIGHED:
        return None
    return inputs.weights


def _option(place: ConvPlace, fit: _Fit, fields: Mapping[str, Any], costs: Mapping[Quantity, float]) -> Option:
    taken = {
        Quantity.BYTES: float(place.bytes_of(fit.scheme, fit.ranks)),
        Quantity.MACS: place.macs_share(fit.scheme, fit.ranks) * costs[Quantity.MACS],
    }
    return Option(fields, taken, fit.error)


def _in_order(options: Sequence[Option]) -> list[Option]:
    """Those of which each costs no more and errs no less than the one before."""
    kept: list[Option] = []
    for each in options:
        cheaper = all(each.costs[what] <= kept[-1].costs[what] for what in each.costs) if kept else True
        if cheaper and (not kept or (each.error or 0.0) >= (kept[-1].error or 0.0)):
            kept.append(each)
    return kept
