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

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.channel_means import channel_means
from onnxcomp.calibration.statistics.moments import input_moments
from onnxcomp.contract import Context, Effect, Needs, Outcome, Pass, parameter
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.bias_places import BiasPlace, add_to_bias, bias_places, depths, known_as
from onnxcomp.graph.weights.mean_shift import mean_shift, weights_by_output
from onnxcomp.model import Model
from onnxcomp.runtime import Session

NO_NEARER = "moving the means brings the model's outputs no nearer to the original's"
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
    effect = Effect(shrinks=("bytes",), exact=False)
    paper = "https://arxiv.org/abs/1906.04721"
    preserves = frozenset({"zeros", "levels", "factors", "qdq"})

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
        if context.calibration is None:
            raise CalibrationError(f"{self.pass_name()}: needs calibration data. Give it with --calib-data.")
        places = [each for each in bias_places(graph) if context.selects(each.key, *_constants_of(each))]
        if context.original is None or context.original is graph.model:
            for place in places:
                outcome.skip(place.key, "nothing was lost before, or the model from before is not known")
            return outcome
        task = _Task(graph, places, context, context.original, context.calibration, self, outcome)
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
        places: list[BiasPlace],
        context: Context,
        original: Model,
        data: CalibrationData,
        rewrite: CorrectBias,
        outcome: Outcome,
    ) -> None:
        self._graph = graph
        self._context = context
        self._original = original
        self._data = data
        self._rewrite = rewrite
        self._outcome = outcome
        session = Session if context.target is None else context.target.session
        self._options: dict[str, Any] = {
            "limit": rewrite.samples, "open_session": session, "progress": context.progress
        }  # fmt: skip
        self._theirs = _names_in(original, graph, places)
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
            means = channel_means(trial.model, axes, self._data, **self._options)
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

    def _levels(self, places: list[BiasPlace]) -> list[list[BiasPlace]]:
        """The places by how many others stand before them; of more levels than ``rounds`` evenly spaced ones."""
        depth = depths(self._graph, [each.node for each in places])
        by_depth = {
            each: [place for place in places if depth[place.output] == each] for each in sorted({*depth.values()})
        }
        levels = [found for found in by_depth.values() if found]
        chosen = np.linspace(len(levels) - 1, 0, self._rewrite.rounds).round() if levels else np.zeros(0)
        return [levels[int(each)] for each in np.unique(chosen)]

    def computed(self) -> _Trial:
        """What the weights' differences say, all at once: they are multiplied with the original's inputs."""
        before = open_plain(self._original)
        by_output = weights_by_output(before)
        wanted = {key: by_output[name] for key, name in self._theirs.items() if name in by_output}
        distinct = list({each.name: each for each in wanted.values()}.values())
        moments = input_moments(before, distinct, self._data, **self._options)
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
        means = channel_means(self._original, axes, self._data, **self._options)
        return {each.key: means[name] for each in self._places if (name := self._theirs[each.key]) in means}

    def _trial(self, shifts: Shifts) -> _Trial:
        """The model with the shifts in its biases, as far as that can be done."""
        graph = open_plain(self._graph.model)
        for place in bias_places(graph):
            if place.key in shifts:
                add_to_bias(graph, place, shifts[place.key], insert=self._rewrite.insert)
        return _Trial(close_graph(graph), shifts)


def _put_in(graph: Graph, place: BiasPlace, shift: Array, insert: bool, outcome: Outcome) -> None:
    largest = float(np.abs(shift).max(initial=0))
    if not largest > 0:
        outcome.skip(place.key, "its means are the original's")
        return
    reason = add_to_bias(graph, place, shift, insert=insert)
    if reason:
        outcome.skip(place.key, reason)
    else:
        outcome.change(place.key, f"means moved by up to {largest:.3g}", largest=largest)


def _names_in(original: Model, graph: Graph, places: list[BiasPlace]) -> dict[str, str]:
    """For each place's key, what the original calls the tensor that has the bias in it."""
    names = {out for node in original.proto.graph.node for out in node.output}
    found = ((each.key, [name for name in known_as(graph, each.output) if name in names]) for each in places)
    return {key: known[0] for key, known in found if known}


def _constants_of(place: BiasPlace) -> list[str]:
    """The names of the constants that the node and its bias read, for excluding by them."""
    nodes = [place.node, *([] if place.holder in (None, place.node) else [place.holder])]
    return [place.scope.key(each.name) for node in nodes for each in node.inputs if isinstance(each, Constant)]


def _beyond_rounding(shift: Array, goal: Array) -> Array:
    """The shift, zero where it is float rounding of the means."""
    return np.where(np.abs(shift) > NEGLIGIBLE * np.abs(goal).max(initial=0), shift, 0.0)
