"""Passes whose sites are weights, each of which becomes other values by itself; the graph stays as it is.

A search has weights changed one by one, by other processes or machines: ``edit`` gets a weight with the nodes that read
it and nothing else of its model, what ``prepare`` gave for it, pickled, and of the context the seed and max_opset. What
it makes is what it makes in the model, bit for bit. Strengths are first tried on samples, some of a weight's output
channels; there both methods get a graph that holds the sample alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import Outcome
from onnxcomp.contract.sites import Choice, Fields, Option, Quantity, Site, SitePass, Survey
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight, weights


@dataclass(frozen=True, kw_only=True)
class WeightPass(SitePass):
    """A pass that changes weights one by one: what a weight becomes depends on no other weight's choice."""

    @abstractmethod
    def edit(self, weight: Weight, known: Any, context: Context, outcome: Outcome) -> None:
        """Give the weight its new values, or say in the outcome why not.

        known: of it, from ``prepare``, None where that gave nothing. context: without data, see above.
        """

    def obstacle(self, weight: Weight) -> str | None:
        """Why a weight whose values are finite is left alone all the same, or None."""
        return None

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, Any]:
        """What ``edit`` needs to know, by name of the weight, to be pickled: looked up for all that get the same fields
        at once, in the data where there are some (``context.calibration``)."""
        return {}

    def composes(self) -> bool:
        return True

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome = Outcome()
        strengths = self.strengths()
        found = [_site(each, strengths) for each in context.editable_weights(graph, outcome)]
        return Survey(tuple(found), tuple(outcome.skipped))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        chosen = [each for each in weights(graph) if each.name in choice]
        for own, names in self.by_fields(choice):
            able = own._able((each for each in chosen if each.name in names), outcome)
            known = own.prepare(graph, able, context)
            for index, weight in enumerate(able):
                if context.is_over():
                    outcome.is_cut_short = True
                    return outcome
                context.progress(index, len(able), weight.name)
                own.edit(weight, known.get(weight.name), context.alone(), outcome)
        return outcome

    def _able(self, chosen: Iterable[Weight], outcome: Outcome) -> list[Weight]:
        able = []
        for weight in chosen:
            reason = self.obstacle(weight)
            if reason:
                outcome.skip(weight.name, reason)
            else:
                able.append(weight)
        return able


def _site(weight: Weight, strengths: Sequence[tuple[Fields, WeightPass]]) -> Site:
    able = tuple(Option(fields) for fields, one in strengths if one.obstacle(weight) is None)
    return Site(weight.name, tuple(weight.node_names), {Quantity.BYTES: weight.size_bytes}, able or (Option(),))
