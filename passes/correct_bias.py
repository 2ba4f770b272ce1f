"""The shift that lossy steps left in the mean of each output channel goes into the bias.

    y = W' x' + b      becomes      y = W' x' + b + (E[W x] - E[W' x'])

E over the calibration data: observed at the node's output in the original and in the present model (empirical), or
(W - W') E[x] from the weights and the mean of the original's inputs (analytic).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, Structure, parameter
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.provenance import Reference
from onnxcomp.graph.ir.query import sole_reader
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.topology import depths
from onnxcomp.graph.weights.bias import Bias, biases
from onnxcomp.graph.weights.mean_shift import mean_shift, weights_by_output
from onnxcomp.model import Model

NO_NEARER = "bias correction does not reduce the divergence"
NEGLIGIBLE = 1e-6  # of the largest mean of a node's channels: a shift is float rounding below that

Shifts = Mapping[str, Array]  # node key -> (channels,) float64, to be added to its bias


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Move biases so that every channel's mean output is what it was before weights or activations were rounded.

    It loses nothing by itself and recovers accuracy; it needs the model from before the lossy steps, as the steps of
    a recipe have it, and stands after them (weights rounded or clustered, quantize-static) and before store-compact.
    Nodes are found by the names of their outputs. Nodes inside subgraphs and functions are left alone.

    Deviations from the paper: the analytic correction takes the mean inputs from data instead of from the statistics
    of a BatchNormalization. Where the divergence from the original can be measured, the better of the two counts, and
    nothing is done where neither comes nearer.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1906.04721"
    destroys = frozenset({Structure.COMPACT})

    mode: str = parameter(
        "auto",
        choices=("auto", "empirical", "analytic"),
        help="compare observed outputs, or multiply the weights' differences with the mean inputs; auto: the better",
    )
    # EfficientNet-Lite0 in int8, 50 images: 0.0077 with 3, 0.0069 with 8; all 50 levels do not help.
    rounds: int = parameter(
        8, low=1, high=1000, help="levels of nodes observed one after the other; of more, evenly spaced ones"
    )
    insert: bool = parameter(False, help="put an Add behind a MatMul that has no bias")
    samples: int = parameter(512, low=1, help="calibration samples used, at most")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        places = [each for each in biases(graph) if context.selects(each.key, *_constants_of(each))]
        if context.reference is None or context.reference.model is graph.model:
            for place in places:
                outcome.skip(place.key, "nothing was lost before, or the model from before is not known")
            return outcome
        task = _Task(graph, places, context, context.reference, self, outcome)
        trials = [] if self.mode == "analytic" else [task.observed()]
        trials += [] if self.mode == "empirical" else [task.computed()]
        shifts = task.nearest(trials)
        for place in places:
            if place.key in shifts:
                _put_in(graph, place, shifts[place.key], self.insert, outcome)
        return outcome


@dataclass(frozen=True)
class _Trial:
    """A model with shifts in its biases."""

    model: Model
    shifts: Shifts


class _Task:
    """Finds the shifts of the places of one graph; the graph stays as it is."""

    def __init__(
        self,
        graph: Graph,
        places: list[Bias],
        context: Context,
        reference: Reference,
        rewrite: CorrectBias,
        outcome: Outcome,
    ) -> None:
        self._graph = graph
        self._context = context
        self._reference = reference
        self._rewrite = rewrite
        self._outcome = outcome
        self._theirs = _names_in(reference.model, graph, places)
        self._places = []
        for place in places:
            if place.key in self._theirs:
                self._places.append(place)
            else:
                outcome.skip(place.key, "the original has no tensor of its output's name")

    def observed(self) -> _Trial:
        """Level after level of nodes, each with the levels before it corrected, so that no shift counts twice."""
        goals = self._goals()
        trial = _Trial(self._graph.model, {})
        for level in self._levels([each for each in self._places if each.key in goals]):
            axes = {each.output.name: each.axis for each in level}
            means = self._context.observe.means(trial.model, axes, limit=self._rewrite.samples)
            pairs = {
                each.key: (goals[each.key], means[each.output.name]) for each in level if each.output.name in means
            }
            found = {
                key: _beyond_rounding(goal - mean, goal)
                for key, (goal, mean) in pairs.items()
                if goal.shape == mean.shape
            }
            trial = self._trial({**trial.shifts, **found})
        return trial

    def _levels(self, places: list[Bias]) -> list[list[Bias]]:
        """The places by how many others stand before them; of more levels than ``rounds`` evenly spaced ones."""
        depth = depths(self._graph, {id(each.node) for each in places})
        by_depth: dict[int, list[Bias]] = {}
        for place in places:
            by_depth.setdefault(depth[id(place.node)], []).append(place)
        levels = [by_depth[each] for each in sorted(by_depth)]
        chosen = np.linspace(len(levels) - 1, 0, self._rewrite.rounds).round() if levels else np.zeros(0)
        return [levels[int(each)] for each in np.unique(chosen)]

    def computed(self) -> _Trial:
        """What the weights' differences say, all at once: they are multiplied with the original's inputs."""
        before = open_graph(self._reference.model)
        by_output = weights_by_output(before)
        wanted = {
            key: by_output[name]
            for key, name in self._theirs.items()
            if name in by_output and self._reference.is_as_it_was(by_output[name].name)
        }
        distinct = list({each.name: each for each in wanted.values()}.values())
        moments = self._context.observe.moments(before, distinct, limit=self._rewrite.samples, even_large=True)
        shifts = {}
        for place in self._places:
            weight = wanted.get(place.key)
            seen = None if weight is None else moments.get(weight.name)
            shift = None if weight is None or seen is None else mean_shift(weight, place.node, seen.mean)
            if shift is not None:
                shifts[place.key] = shift
        return self._trial(shifts)

    def nearest(self, trials: list[_Trial]) -> Shifts:
        """The shifts of the trial nearest to the original, none where the present model is; the first's where that
        cannot be told."""
        measure = self._context.divergence
        present = _Trial(self._graph.model, {})
        best = trials[0] if measure is None else min((present, *trials), key=lambda each: measure(each.model))
        for place in self._places:
            if place.key in best.shifts:
                continue
            tried = any(place.key in each.shifts for each in trials)
            self._outcome.skip(place.key, NO_NEARER if tried else "no mean of its outputs or inputs can be compared")
        return best.shifts

    def _goals(self) -> dict[str, Array]:
        """The original's means by the key of the place here."""
        axes = {self._theirs[each.key]: each.axis for each in self._places}
        means = self._context.observe.means(self._reference.model, axes, limit=self._rewrite.samples)
        found = {}
        for place in self._places:
            name = self._theirs[place.key]
            now = self._reference.channels_as_now(name, means[name], place.axis) if name in means else None
            if now is not None:
                found[place.key] = now
        return found

    def _trial(self, shifts: Shifts) -> _Trial:
        """The model with the shifts in its biases, as far as that can be done."""
        graph = open_graph(self._graph.model)
        for place in biases(graph):
            if place.key in shifts:
                place.add(graph, shifts[place.key], insert=self._rewrite.insert)
        return _Trial(close_graph(graph), shifts)


def _put_in(graph: Graph, place: Bias, shift: Array, insert: bool, outcome: Outcome) -> None:
    largest = float(np.abs(shift).max(initial=0))
    if not largest > 0:
        outcome.skip(place.key, "its means are the original's")
        return
    reason = place.add(graph, shift, insert=insert)
    if reason:
        outcome.skip(place.key, reason)
    else:
        outcome.change(place.key, f"means moved by up to {largest:.3g}", largest=largest)


def _names_in(original: Model, graph: Graph, places: list[Bias]) -> dict[str, str]:
    """For each place's key, what the original calls the tensor that has the bias in it."""
    names = {out for node in original.proto.graph.node for out in node.output}
    found = ((each.key, [name for name in _known_as(graph, each.output) if name in names]) for each in places)
    return {key: known[0] for key, known in found if known}


def _known_as(graph: Graph, tensor: Any) -> list[str]:
    """The tensor's name, and that of what it is once quantized and dequantized where only that is read."""
    names = [tensor.name]
    quantize = sole_reader(graph, graph.main, tensor, "QuantizeLinear")
    restore = None if quantize is None else sole_reader(graph, graph.main, quantize.outputs[0], "DequantizeLinear")
    return names if restore is None else [*names, restore.outputs[0].name]


def _constants_of(place: Bias) -> list[str]:
    """The names of the constants that the node and its bias read, for excluding by them."""
    nodes = [place.node, *([] if place.holder in (None, place.node) else [place.holder])]
    return [place.scope.key(each.name) for node in nodes for each in node.inputs if isinstance(each, Constant)]


def _beyond_rounding(shift: Array, goal: Array) -> Array:
    """The shift, zero where it is float rounding of the means."""
    return np.where(np.abs(shift) > NEGLIGIBLE * np.abs(goal).max(initial=0), shift, 0.0)
