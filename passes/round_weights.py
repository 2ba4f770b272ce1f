"""Weights move to the levels that change their nodes' outputs least, not to the nearest ones.

    w -> levels[q] * s,   q of least sum over calibration inputs x of |W x - W_q x|^2

A weight as trained gets an affine grid of 2^bits levels. One that was rounded or clustered before keeps its form
and its number of levels, and gets other codes, scales and codebook values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import (
    Choice,
    Context,
    Effect,
    Exact,
    Needs,
    Outcome,
    Quantity,
    Site,
    SitePass,
    Structure,
    Survey,
    parameter,
)
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.grid import GRANULARITIES, GridSpec, Rounded, round_to_grid
from onnxcomp.graph.rounding.output_aware import round_again, round_to_new_grid
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import has_levels
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error

UNLIKE = 1.0  # squared error relative to the original's weight: beyond, it is no rounded form of that


@dataclass(frozen=True, kw_only=True)
class RoundWeights(SitePass):
    """Choose each weight's levels so that its node's outputs change least on calibration data.

    A weight without levels, or with more than 2^bits, is rounded to a grid; one with fewer is improved on its own
    levels, which needs the model from before it was rounded, as the steps of a recipe have it. Exact zeros stay
    zero. Weights whose inputs cannot be seen (embeddings, in subgraphs) are rounded to the nearest levels.

    Deviations from the paper: the same objective is met by successive rounding, gradual rounding and coordinate
    descent instead of a gradient on relaxed values, over all levels and not the two next ones; the second moment of
    the inputs is shrunk towards the identity; scales are fitted too; no activation function in the objective.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2004.10568"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.COMPACT})

    bits: int = parameter(4, low=2, high=8, strengths=(8, 7, 6, 5, 4, 3, 2), help="bits of a code, at most")
    granularity: str = parameter(
        "channel",
        choices=GRANULARITIES,
        help="of a new grid: for the whole weight, each output channel, or each block along the summed axis",
    )
    block_size: int = parameter(32, low=2, high=65536, help="values of a block, where granularity is block")
    symmetric: bool = parameter(True, help="keep the zero point in the middle of a new grid")

    def composes(self) -> bool:
        return True

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome, (_, originals) = Outcome(), self._originals(context)
        found = []
        for weight in context.editable_weights(graph, outcome):
            reason = self._obstacle(weight, originals.get(weight.name))
            if reason:
                outcome.skip(weight.name, reason)
            else:
                found.append(Site(weight.name, tuple(weight.node_names), {Quantity.BYTES: weight.size_bytes}))
        return Survey(tuple(found), tuple(outcome.skipped))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome, (before, originals) = Outcome(), self._originals(context)
        chosen = [each for each in weights(graph) if each.name in choice]
        for own, names in self.by_fields(choice):
            fresh, again = own._parted([each for each in chosen if each.name in names], originals, outcome)
            own._to_grids(graph, fresh, context, outcome)
            own._improve(before or graph, again, context, outcome)
        return outcome

    def _originals(self, context: Context) -> tuple[Graph | None, Mapping[str, Weight]]:
        """The model from before its weights were rounded, and those that are in the units that they were, by name."""
        reference = context.reference
        if reference is None:
            return None, {}
        before = open_plain(reference.model)
        return before, {each.name: each for each in weights(before) if reference.is_as_it_was(each.name)}

    def _grid(self) -> GridSpec:
        return GridSpec(
            bits=self.bits, granularity=self.granularity, block_size=self.block_size, symmetric=self.symmetric
        )

    def _obstacle(self, weight: Weight, original: Weight | None) -> str | None:
        return _unlike(weight, original) if has_levels(weight, 2**self.bits) else self._grid().obstacle(weight)

    def _parted(
        self, chosen: Iterable[Weight], originals: Mapping[str, Weight], outcome: Outcome
    ) -> tuple[list[Weight], list[tuple[Weight, Weight]]]:
        """The weights that get a grid, and those that have levels, each with what it was before."""
        fresh: list[Weight] = []
        again: list[tuple[Weight, Weight]] = []
        for weight in chosen:
            original = originals.get(weight.name)
            reason = self._obstacle(weight, original)
            if reason:
                outcome.skip(weight.name, reason)
            elif original is not None and has_levels(weight, 2**self.bits):
                again.append((weight, original))
            else:
                fresh.append(weight)
        return fresh, again

    def _to_grids(self, graph: Graph, fresh: list[Weight], context: Context, outcome: Outcome) -> None:
        grid = self._grid()
        moments = {} if context.is_over() else context.observe.moments(graph, fresh)
        for index, weight in enumerate(fresh):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(index, len(fresh), weight.name)
            seen = moments.get(weight.name)
            if seen is None:
                found, how = round_to_grid(weight, grid, "nearest"), ", to the nearest: its inputs cannot be seen"
            else:
                found, how = round_to_new_grid(weight, grid, seen.gram), ""
            if found is None:
                outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            else:
                _set(weight, found, f"{self.bits} bits per {self.granularity}{how}", outcome)

    def _improve(
        self, before: Graph, again: list[tuple[Weight, Weight]], context: Context, outcome: Outcome
    ) -> None:
        """By the inputs of the original: those of a model that lost much are far from what they will be in the end."""
        moments = {} if context.is_over() else context.observe.moments(before, [original for _, original in again])
        for index, (weight, original) in enumerate(again):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(index, len(again), weight.name)
            seen, encoding = moments.get(weight.name), weight.encoding
            assert isinstance(encoding, GridEncoding | CodebookEncoding)
            if seen is None:
                outcome.skip(weight.name, "it has its levels, and its inputs cannot be seen")
                continue
            found = round_again(weight, encoding, np.asarray(original.values), seen.gram)
            if isinstance(found, str):
                outcome.skip(weight.name, found)
            else:
                _set(weight, found, f"its {encoding.level_count} levels chosen by output error", outcome)


def _unlike(weight: Weight, original: Weight | None) -> str | None:
    """Why a weight that has few levels cannot be held against the original's weight of its name, or None."""
    if not isinstance(weight.encoding, GridEncoding | CodebookEncoding):
        return "its levels are not those of a grid or a codebook of single values"
    if original is None or original.dtype != weight.dtype or matrix_form(original) != matrix_form(weight):
        return "it has its levels, and its values from before are not known"
    if original.shape != weight.shape or not relative_error(original.values, np.asarray(weight.values)) < UNLIKE:
        return "it has its levels, and is no rounded form of the original's weight of that name"
    return None


def _set(weight: Weight, found: Rounded, what: str, outcome: Outcome) -> None:
    weight.set(found.values, found.encoding)
    levels = found.encoding.level_count
    outcome.change(weight.name, what, levels=levels, error=found.error)
