"""Passes that each break one rule, as an author might without noticing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxcomp.contract import (
    Choice,
    Context,
    Effect,
    Exact,
    Needs,
    Option,
    Outcome,
    Pass,
    Quantity,
    Site,
    SitePass,
    Structure,
    Survey,
    parameter,
)
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.grid import GridSpec, round_to_grid
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.encodings.encoding import MaskEncoding

LOSSY = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
ALL = frozenset(Structure)


@dataclass(frozen=True, kw_only=True)
class Halving(WeightPass):
    """Halve all weights."""

    effect = LOSSY
    paper = "https://example.org"
    destroys = ALL

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set(weight.values / 2)
        outcome.change(weight.name, "halved")


class HalvingAtSites(SitePass):
    """Halve weights, by sites of its own."""

    effect = LOSSY
    paper = "https://example.org"
    destroys = ALL

    def sites(self, graph: Graph, context: Context) -> Survey:
        return Survey(tuple(Site(each.name, each.node_names) for each in context.editable_weights(graph, Outcome())))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if weight.name in choice:
                self.halve(weight, outcome)
        return outcome

    @staticmethod
    def halve(weight: Weight, outcome: Outcome) -> None:
        weight.set(weight.values / 2)
        outcome.change(weight.name, "halved")


# --- what is declared ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Describes(Halving):
    """Halves all weights."""


@dataclass(frozen=True, kw_only=True)
class RoundsExactly(Halving):
    """Round to nothing."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE, rounding=True)


@dataclass(frozen=True, kw_only=True)
class CitesNobody(Halving):
    """Halve weights without a source."""

    paper = ""


class IsNoDataclass(Halving):
    """Halve weights by an undecorated class."""


@dataclass(frozen=True, kw_only=True)
class HasNoBound(Halving):
    """Halve weights some number of times."""

    times: int = parameter(1, help="how often")


@dataclass(frozen=True, kw_only=True)
class TakesAnything(Halving):
    """Halve weights any number of times."""

    times: int = parameter(1, low=1, help="how often")

    def __post_init__(self) -> None:
        """Look at nothing."""


# --- what is done --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FailsWithoutWeights(Halving):
    """Halve weights by the largest of them."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        max(each.size for each in weights(graph))
        return super().apply(graph, context)


@dataclass(frozen=True, kw_only=True)
class AsksForData(Halving):
    """Halve weights by data that it does not declare."""

    needs: ClassVar[Needs] = Needs.NOTHING

    def apply(self, graph: Graph, context: Context) -> Outcome:
        context.observe.moments(graph, weights(graph))
        return super().apply(graph, context)


@dataclass(frozen=True, kw_only=True)
class ClaimsExactness(Halving):
    """Halve weights as if that were nothing."""

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS, rounding=True)


@dataclass(frozen=True, kw_only=True)
class ClaimsBits(Halving):
    """Add a little to weights, within rounding."""

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS)

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set(np.nextafter(weight.values, weight.dtype.type(9)))
        outcome.change(weight.name, "moved by a bit")


@dataclass(frozen=True, kw_only=True)
class ClaimsForEveryChoice(Halving):
    """Halve weights where that is asked for, and claim that it changes nothing."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    halve: bool = parameter(False, help="do it")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        return super().apply(graph, context) if self.halve else Outcome()


@dataclass(frozen=True, kw_only=True)
class SaysNothing(Halving):
    """Halve weights in silence."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set(weight.values / 2)


@dataclass(frozen=True, kw_only=True)
class RenamesOutputs(Halving):
    """Halve weights and rename what comes out."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        graph.rename({each: f"{each.name}_halved" for each in graph.main.graph.outputs})
        return super().apply(graph, context)


@dataclass(frozen=True, kw_only=True)
class DoesNothing(Halving):
    """Leave all weights alone."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        outcome.skip(weight.name, "not today")


@dataclass(frozen=True, kw_only=True)
class RollsDice(Halving):
    """Move weights by chance."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        noise = np.random.default_rng().standard_normal(weight.shape)
        weight.set((weight.values + noise).astype(weight.dtype))
        outcome.change(weight.name, "moved")


@dataclass(frozen=True, kw_only=True)
class WritesItsInput(Halving):
    """Halve weights and sign the model that was read."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        graph.model.proto.producer_name = "halving"
        return super().apply(graph, context)


@dataclass(frozen=True, kw_only=True)
class SaysBoth(Halving):
    """Halve weights, and say that they were left alone."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        super().edit(weight, known, context, outcome)
        outcome.skip(weight.name, "who knows")


@dataclass(frozen=True, kw_only=True)
class OutlivesItsEncoding(Halving):
    """Round weights to four levels, and move them away from there."""

    makes = frozenset({Structure.LEVELS})

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        rounded = round_to_grid(weight, GridSpec(bits=2, granularity="tensor"), "nearest")
        if rounded is not None:
            weight.set(rounded.values, rounded.encoding)
            weight.tensor.values = rounded.values + weight.dtype.type(0.1)
            outcome.change(weight.name, "rounded and moved")


@dataclass(frozen=True, kw_only=True)
class MakesUnsaid(Halving):
    """Prune weights, and declare nothing of it."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set(np.zeros_like(weight.values), MaskEncoding(dtype=str(weight.dtype)))
        outcome.change(weight.name, "pruned")


@dataclass(frozen=True, kw_only=True)
class FillsZeros(Halving):
    """Add one to all weights, pruned ones too."""

    destroys = frozenset({Structure.LEVELS})

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set(weight.values + weight.dtype.type(1))
        outcome.change(weight.name, "one more")


@dataclass(frozen=True, kw_only=True)
class SpreadsLevels(Halving):
    """Scale each value of a weight by another factor."""

    destroys = frozenset({Structure.ZEROS})

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        factors = np.linspace(1, 2, weight.size).reshape(weight.shape)
        weight.set((weight.values * factors).astype(weight.dtype))
        outcome.change(weight.name, "scaled")


@dataclass(frozen=True, kw_only=True)
class RescalesInSecret(Pass):
    """Double matrices, and halve their products."""

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS)
    destroys = ALL

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in context.editable_weights(graph, outcome):
            [role] = weight.roles[:1]
            if role.node.op != "MatMul" or len(weight.roles) > 1 or not role.direct:
                continue
            made = role.node.outputs[0]
            inner = graph.variable(f"{made.name}_doubled")
            role.node.outputs[0] = inner
            half = graph.constant(weight.scope, "half", np.array(0.5, weight.dtype))
            graph.node(weight.scope, "Mul", [inner, half], [made])
            weight.set(weight.values * 2)
            outcome.change(weight.name, "doubled")
        return outcome


# --- what may be touched -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AsksNobody(Pass):
    """Halve weights, whatever is excluded."""

    effect = LOSSY
    paper = "https://example.org"
    destroys = ALL

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in weights(graph):
            if self.may(weight, context):
                HalvingAtSites.halve(weight, outcome)
        return outcome

    def may(self, weight: Weight, context: Context) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class KnowsOnlyStars(AsksNobody):
    """Halve weights unless all are excluded."""

    def may(self, weight: Weight, context: Context) -> bool:
        return "*" not in context.exclude


@dataclass(frozen=True, kw_only=True)
class ForgetsInclude(AsksNobody):
    """Halve weights that are not excluded, included or not."""

    def may(self, weight: Weight, context: Context) -> bool:
        return not context.excludes(weight.name, *weight.node_names)


@dataclass(frozen=True, kw_only=True)
class HasAllTheTime(HalvingAtSites):
    """Halve weights for as long as it takes."""

    times: int = parameter(1, low=1, high=8, help="how often", strengths=(1, 2))


@dataclass(frozen=True, kw_only=True)
class StopsInSilence(Halving):
    """Halve weights while there is time, and say nothing of the rest."""

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = super().rewrite(graph, choice, context)
        outcome.is_cut_short = False
        return outcome


@dataclass(frozen=True, kw_only=True)
class TouchesBiases(Halving):
    """Halve weights, and the vectors beside them."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        super().edit(weight, known, context, outcome)
        for constant in weight.scope.constants:
            if len(constant.shape) == 1 and constant.dtype == weight.dtype:
                constant.values = np.asarray(constant.values) / 2


# --- sites ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EditsWhileLooking(HalvingAtSites):
    """Halve weights while looking for them."""

    def sites(self, graph: Graph, context: Context) -> Survey:
        found = super().sites(graph, context)
        self.rewrite(graph, {each.name: {} for each in found.sites[:1]}, context)
        return found


@dataclass(frozen=True, kw_only=True)
class HidesSites(HalvingAtSites):
    """Halve all weights, and show half of them."""

    def sites(self, graph: Graph, context: Context) -> Survey:
        return Survey(super().sites(graph, context).sites[::2])

    def apply(self, graph: Graph, context: Context) -> Outcome:
        return self.rewrite(graph, {each.name: {} for each in super().sites(graph, context).sites}, context)


@dataclass(frozen=True, kw_only=True)
class AppliesOtherwise(HalvingAtSites):
    """Halve weights where they are chosen, and quarter them where all are."""

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = super().apply(graph, context)
        for weight in weights(graph):
            if weight.name in {each.name for each in outcome.changed}:
                weight.set(weight.values / 2)
        return outcome


@dataclass(frozen=True, kw_only=True)
class ActsElsewhere(HalvingAtSites):
    """Halve all weights, whichever are chosen."""

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        survey = super().sites(graph, context)
        return super().rewrite(graph, {each.name: {} for each in survey.sites}, context)


@dataclass(frozen=True, kw_only=True)
class DividesByAll(Halving):
    """Divide weights by how many there are."""

    def prepare(self, graph: Graph, weights: object, context: Context) -> dict[str, float]:
        names = [each.name for each in weights]  # type: ignore[attr-defined]
        return dict.fromkeys(names, 1.0 + len(names))

    def edit(self, weight: Weight, known: float, context: Context, outcome: Outcome) -> None:
        weight.set((weight.values / known).astype(weight.dtype))
        outcome.change(weight.name, "divided")


@dataclass(frozen=True, kw_only=True)
class ForgetsNodes(HalvingAtSites):
    """Halve weights, though their nodes are excluded."""

    def sites(self, graph: Graph, context: Context) -> Survey:
        return Survey(tuple(Site(each.name, each.node_names) for each in weights(graph) if context.selects(each.name)))


@dataclass(frozen=True, kw_only=True)
class GrowsDearer(HalvingAtSites):
    """Halve weights, at a price that rises."""

    times: int = parameter(1, low=1, high=8, help="how often", strengths=(1, 2))

    def sites(self, graph: Graph, context: Context) -> Survey:
        options = tuple(Option({"times": each}, {Quantity.BYTES: float(each)}) for each in (1, 2))
        found = super().sites(graph, context).sites
        return Survey(tuple(Site(each.name, each.touches, options=options) for each in found))


@dataclass(frozen=True, kw_only=True)
class NamesTheFirst(Halving):
    """Halve all weights, and name one of them."""

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = super().rewrite(graph, choice, context)
        del outcome.changed[1:]
        return outcome


# --- weights by themselves -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AsksWhileEditing(Halving):
    """Halve weights that the data reach."""

    needs: ClassVar[Needs] = Needs.CALIBRATION

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        if weight.name in context.observe.moments(weight.graph, [weight]):
            super().edit(weight, known, context, outcome)


@dataclass(frozen=True, kw_only=True)
class LooksAround(Halving):
    """Divide weights by how many there are in the graph."""

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        weight.set((weight.values / (1 + len(weights(weight.graph)))).astype(weight.dtype))
        outcome.change(weight.name, "divided")


@dataclass(frozen=True, kw_only=True)
class HandsOutTheGraph(Halving):
    """Halve weights by the nodes that read them."""

    def prepare(self, graph: Graph, weights: object, context: Context) -> dict[str, Any]:
        return {each.name: lambda own=each: own.roles for each in weights}  # type: ignore[attr-defined]
