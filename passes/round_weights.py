"""Weights move to the levels that change their nodes' outputs least, not to the nearest ones.

    w -> levels[q] * s,   q of least sum over calibration inputs x of |W x - W_q x|^2

A weight as trained gets an affine grid of 2^bits levels. One that was rounded or clustered before keeps its form
and its number of levels, and gets other codes, scales and codebook values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Needs, Outcome, Pass, parameter
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.grid import GRANULARITIES, Grid, Rounded, round_to_grid
from onnxcomp.graph.rounding.output_aware import round_again, round_to_new_grid
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import has_levels
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error

UNLIKE = 1.0  # squared error relative to the original's weight: beyond, it is no rounded form of that


@dataclass(frozen=True, kw_only=True)
class RoundWeights(Pass):
    """Choose each weight's levels so that its node's outputs change least on calibration data.

    A weight without levels, or with more than 2^bits, is rounded to a grid; one with fewer is improved on its own
    levels, which needs the model from before it was rounded, as the steps of a recipe have it. Exact zeros stay
    zero. Weights whose inputs cannot be seen (embeddings, in subgraphs) are rounded to the nearest levels.

    Deviations from the paper: the same objective is met by successive rounding, gradual rounding and coordinate
    descent instead of a gradient on relaxed values, over all levels and not the two next ones; the second moment of
    the inputs is shrunk towards the identity; scales are fitted too; no activation function in the objective.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=False)
    paper = "https://arxiv.org/abs/2004.10568"
    makes = frozenset({"levels"})
    preserves = frozenset({"zeros", "levels", "factors", "qdq"})

    bits: int = parameter(4, low=2, high=8, strengths=(8, 7, 6, 5, 4, 3, 2), help="bits of a code, at most")
    granularity: str = parameter(
        "channel",
        choices=GRANULARITIES,
        help="of a new grid: for the whole weight, each output channel, or each block along the summed axis",
    )
    block_size: int = parameter(32, low=2, high=65536, help="values of a block, where granularity is block")
    symmetric: bool = parameter(True, help="keep the zero point in the middle of a new grid")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        if context.calibration is None:
            raise CalibrationError(f"{self.pass_name()}: needs calibration data. Give it with --calib-data.")
        outcome = Outcome()
        grid = Grid(bits=self.bits, granularity=self.granularity, block_size=self.block_size, symmetric=self.symmetric)
        before = None if context.original is None else open_plain(context.original)
        originals = {} if before is None else {each.name: each for each in weights(before)}
        fresh: list[Weight] = []
        again: list[tuple[Weight, Weight]] = []
        for weight in context.editable_weights(graph, outcome):
            rounded = has_levels(weight, 2**self.bits)
            original = originals.get(weight.name)
            reason = _unlike(weight, original) if rounded else grid.obstacle(weight)
            if reason:
                outcome.skip(weight.name, reason)
            elif rounded and original is not None:
                again.append((weight, original))
            else:
                fresh.append(weight)
        self._to_grids(graph, fresh, grid, context, outcome)
        if before is not None:
            self._improve(before, again, context, outcome)
        return outcome

    def _to_grids(self, graph: Graph, fresh: list[Weight], grid: Grid, context: Context, outcome: Outcome) -> None:
        moments = context.input_moments(graph, fresh)
        for index, weight in enumerate(fresh):
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

    def _improve(self, before: Graph, again: list[tuple[Weight, Weight]], context: Context, outcome: Outcome) -> None:
        """By the inputs of the original: those of a model that lost much are far from what they will be in the end."""
        moments = context.input_moments(before, [original for _, original in again])
        for index, (weight, original) in enumerate(again):
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
