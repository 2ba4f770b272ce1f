"""Each weight moves to an affine grid of its own number of bits; the graph stays as it is.

    minimize over bits    sum of influence[w] * error[w, bits[w]]    with the bytes of all weights within a budget,
    or the bytes of all weights with that sum within a budget

Influence is measured: how far the outputs go when one weight alone is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.calibration.sensitivity import Sensitivity, sensitivities
from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract import Context, Effect, Needs, Outcome, Pass, parameter
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.rounding.grid import ALGORITHMS, GRANULARITIES, Grid, Rounded, round_to_grid
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.roles import Weight, compose, constants_by_key, weights
from onnxcomp.graph.weights.value_pass import has_levels
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.storage_options import estimate_bytes
from onnxcomp.numerics.search.rate_allocation import Choice, bytes_of, fewest_bytes, least_harm

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
FEW_VALUES = 256  # a weight of no more gets 8 bits: fewer would save less than a decoder takes
CORRECTIONS = 6  # whole assignments measured on the way to a divergence
CLOSE = 0.9  # of the divergence that is asked for: near enough
AIM = 0.97  # of it, where the last try missed
NOT_BORNE = "not even 8 bits for every weight stay within the divergence"


@dataclass(frozen=True)
class _Option:
    """A weight in so many bits."""

    bits: int
    size_bytes: int
    code_bits: int  # of all its values
    error: float
    algorithm: str


@dataclass
class _Table:
    """For each weight what it can become, mildest last, and the rewritten models by bits."""

    options: dict[str, list[_Option]]
    models: dict[int, Model]
    influence: dict[str, float]

    def items(self, *, codes: bool = False) -> list[list[Choice]]:
        """Bytes (of the codes alone: bits) and expected divergence of each option."""

        def choice(name: str, option: _Option) -> Choice:
            cost = option.code_bits if codes else option.size_bytes
            return Choice(cost, self.influence[name] * option.error)

        return [[choice(name, each) for each in options] for name, options in self.options.items()]

    def chosen(self, positions: Sequence[int]) -> dict[str, _Option]:
        """The options at these positions, by weight."""
        return {name: found[at] for (name, found), at in zip(self.options.items(), positions, strict=True)}


@dataclass(frozen=True, kw_only=True)
class AssignBits(Pass):
    """Round each weight to as many bits as its measured sensitivity asks for.

    The budget is an average of bits or, with max_divergence, how far the outputs may go. Deviations from the
    paper: sensitivity is measured at the outputs, not taken from a Hessian, and the allotment is a Lagrange
    multiplier's.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=False)
    paper = "https://arxiv.org/abs/1911.03852"
    makes = frozenset({"levels"})
    preserves = frozenset({"zeros", "factors", "qdq"})

    average_bits: float = parameter(4.0, low=2, high=8, help="bits of a code, averaged over the values of all weights")
    max_divergence: float | None = parameter(
        None, low=0.0, high=10.0, help="take the fewest bytes whose divergence is no more, whatever the average"
    )
    algorithm: str = parameter(
        "auto", choices=("auto", *ALGORITHMS), help="how values are rounded, as in quantize-weights"
    )
    granularity: str = parameter(
        "channel",
        choices=GRANULARITIES,
        help="one grid for the whole weight, each output channel, or each block along the summed axis",
    )
    block_size: int = parameter(32, low=2, high=65536, help="values of a block, where granularity is block")
    symmetric: bool = parameter(True, help="keep the zero point in the middle of the grid")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        data = context.calibration
        if data is None or (context.divergence is None and self.max_divergence is not None):
            raise CalibrationError(f"{self.pass_name()}: needs calibration data. Give it with --calib-data.")
        outcome = Outcome()
        found = list(context.editable_weights(graph, outcome, self._obstacle))
        if found:
            self._assign(graph, found, context, outcome)
        return outcome

    def _obstacle(self, weight: Weight) -> str | None:
        """Why the weight is left alone, or None."""
        if has_levels(weight, 2 ** WIDTHS[-1]):
            return f"it already has no more than {2 ** WIDTHS[-1]} levels"
        return self._grid(WIDTHS[0]).obstacle(weight)

    def _grid(self, bits: int) -> Grid:
        return Grid(
            bits=bits,
            granularity=self.granularity,
            block_size=self.block_size,
            symmetric=self.symmetric,
        )

    def _assign(self, graph: Graph, found: list[Weight], context: Context, outcome: Outcome) -> None:
        moments = context.input_moments(graph, found)
        table = self._tabulate(graph.model, [each.name for each in found], moments, context)
        measured = self._weigh(graph.model, table, moments, context)
        chosen = self._chosen(graph.model, table, context)
        graphs = {bits: open_plain(model) for bits, model in table.models.items()}
        constants = {bits: constants_by_key(each) for bits, each in graphs.items()}
        for weight in found:
            option = chosen.get(weight.name)
            if option is None:
                coarse = weight.name not in table.options
                outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale" if coarse else NOT_BORNE)
                continue
            encoding = graphs[option.bits].encodings[weight.name]
            weight.set(constants[option.bits][weight.name].values, encoding)
            _note(outcome, weight.name, option, self.granularity, measured.get(weight.name))

    def _chosen(self, model: Model, table: _Table, context: Context) -> dict[str, _Option]:
        if self.max_divergence is None:
            return self._within_average(table)
        return self._within_divergence(model, table, context, self.max_divergence)

    def _tabulate(self, model: Model, names: Sequence[str], moments: Mapping[str, Moments], context: Context) -> _Table:
        """Round all weights to each width, note bytes and errors."""
        wanted = set(names)
        table = _Table({}, {}, {})
        for index, bits in enumerate(WIDTHS):
            context.progress(index, len(WIDTHS), f"{bits} bits")
            graph = open_plain(model)
            for weight in weights(graph):
                if weight.name not in wanted or (weight.size <= FEW_VALUES and bits != WIDTHS[-1]):
                    continue
                rounded = self._rounded(weight, bits, moments.get(weight.name))
                if rounded is None:
                    continue
                weight.set(rounded.values, rounded.encoding)
                size = estimate_bytes(weight.shape, weight.dtype, rounded.encoding)
                option = _Option(bits, size, weight.size * bits, rounded.error, rounded.algorithm)
                table.options.setdefault(weight.name, []).append(option)
            table.models[bits] = close_graph(graph)
        return table

    def _rounded(self, weight: Weight, bits: int, moments: Moments | None) -> Rounded | None:
        algorithm = "gptq" if self.algorithm == "auto" else self.algorithm
        return round_to_grid(weight, self._grid(bits), algorithm, None if moments is None else moments.gram)

    def _weigh(
        self, model: Model, table: _Table, moments: Mapping[str, Moments], context: Context
    ) -> Mapping[str, Sensitivity]:
        """Fill in the influence of each weight. What is too small to be measured, and what breaks the model when
        it is rounded, stays in its mildest form."""
        if context.divergence is None:
            table.influence = dict.fromkeys(table.options, 1.0)
            return {}
        names = [name for name, options in table.options.items() if len(options) > 1]
        measured = sensitivities(model, names, context.divergence, moments, progress=context.progress)
        for name, options in table.options.items():
            if name in measured and math.isfinite(measured[name].influence):
                table.influence[name] = measured[name].influence
            else:
                table.influence[name], options[:-1] = 0.0, []
        return measured

    def _within_average(self, table: _Table) -> dict[str, _Option]:
        """The least expected divergence with as many bits on the average."""
        budget = 0.0
        for options in table.options.values():
            widths, bits = [each.bits for each in options], [each.code_bits for each in options]
            budget += float(np.interp(self.average_bits, widths, bits))
        return table.chosen(least_harm(table.items(codes=True), math.floor(budget)))

    def _within_divergence(self, model: Model, table: _Table, context: Context, limit: float) -> dict[str, _Option]:
        """The fewest bytes whose measured divergence is at most ``limit``; nothing where no bits bear it.

        Errors interact, so the whole is measured and the limit of what is expected corrected.
        """
        assert context.divergence is not None
        items, expected = table.items(), limit
        best: list[int] | None = None
        below, above = 0.0, math.inf  # expected divergences whose measured one is within the limit, and is not
        for index in range(CORRECTIONS):
            context.progress(index, CORRECTIONS, "choosing bits")
            positions = fewest_bytes(items, expected)
            sources = {name: table.models[each.bits] for name, each in table.chosen(positions).items()}
            divergence = context.divergence(compose(model, sources))
            if divergence > limit:
                above = min(above, expected)
            else:
                below = max(below, expected)
                if best is None or bytes_of(items, positions) < bytes_of(items, best):
                    best = positions
            if CLOSE * limit <= divergence <= limit:
                break
            if 0 < below < above < math.inf:
                expected = math.sqrt(below * above)
            else:
                ratio = AIM * limit / divergence if 0 < divergence < math.inf else 1.0
                expected *= min(10.0, max(2.0, ratio)) if divergence <= limit else max(0.1, min(0.5, ratio))
        return {} if best is None else table.chosen(best)


def _note(outcome: Outcome, name: str, option: _Option, granularity: str, measured: Sensitivity | None) -> None:
    how = "" if option.algorithm == "nearest" else f", {option.algorithm}"
    details: dict[str, float] = {"bits": option.bits, "error": option.error}
    if measured is not None:
        details["influence"] = measured.influence
    outcome.change(name, f"{option.bits} bits per {granularity}{how}", **details)
