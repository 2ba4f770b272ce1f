"""Weights move to an affine grid of 2^bits levels; they stay floats, and the graph stays as it is.

    w -> (q - z) * s,  q in {0, .., 2^bits - 1}

s and z for the whole weight, for each output channel, or for each block along the summed axis. Zero is on
every grid and zeros stay where they are: what is pruned stays so. For integer arithmetic see ``quantize-static``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Structure, parameter
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.grid import ALGORITHMS, GRANULARITIES, ON_DATA, GridSpec, round_to_grid
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import has_levels


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(WeightPass):
    """Round weights to an affine grid of few bits.

    Algorithms beside rounding to the nearest level, none of which needs torch, for convolutions as for products:

    - gptq (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) rounds column by column and lets the columns
      to come make up for the error; columns of large inputs first. Deviations: the grids are fitted beforehand,
      and their scales are fitted to the outputs afterwards.
    - awq (Lin et al. 2023, https://arxiv.org/abs/2306.00978) scales each input channel by how large its inputs
      are and draws the range in by the output error. Deviation: the scales stay with the weight, as one more
      factor of its encoding, instead of moving into the node before; so the graph stays as it is.
    - hqq (Badri & Shaji 2023) fits the grid by a norm below 1 without data. Deviation: zero points are whole
      numbers, and the scale is optimized too.
    - auto takes gptq where calibration data show a weight's inputs, else nearest.

    Deviation from the paper: the range may also be drawn in to where the squared error is least.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1712.05877"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    bits: int = parameter(8, low=2, high=8, strengths=(8, 7, 6, 5, 4, 3, 2), help="bits of a code")
    algorithm: str = parameter(
        "auto",
        choices=("auto", *ALGORITHMS),
        help="how values are rounded; gptq and awq need calibration data, auto takes gptq where there are some",
    )
    granularity: str = parameter(
        "channel",
        choices=GRANULARITIES,
        help="one grid for the whole weight, each output channel, or each block along the summed axis",
    )
    block_size: int = parameter(32, low=2, high=65536, help="values of a block, where granularity is block")
    symmetric: bool = parameter(True, help="keep the zero point in the middle of the grid")
    search_range: bool = parameter(True, help="clip outliers where that makes the squared error less")

    def needed(self) -> Needs:
        return Needs.CALIBRATION if self.algorithm in ON_DATA else Needs.NOTHING

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self.algorithm in ("auto", *ON_DATA)

    def _grid(self) -> GridSpec:
        return GridSpec(
            bits=self.bits,
            granularity=self.granularity,
            block_size=self.block_size,
            symmetric=self.symmetric,
            search_range=self.search_range,
        )

    def obstacle(self, weight: Weight) -> str | None:
        if has_levels(weight, 2**self.bits):
            return f"it already has no more than {2**self.bits} levels"
        return self._grid().obstacle(weight)

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, Moments]:
        draws = self.draws_on_data(calibration=context.calibration is not None)
        return context.observe.moments(graph, weights) if draws or self.needed() is Needs.CALIBRATION else {}

    def edit(self, weight: Weight, known: Moments | None, context: Context, outcome: Outcome) -> None:
        algorithm = self.algorithm if self.algorithm != "auto" else "gptq"
        rounded = round_to_grid(weight, self._grid(), algorithm, None if known is None else known.gram)
        if rounded is None:
            outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            return
        weight.set(rounded.values, rounded.encoding)
        how = "" if rounded.algorithm == "nearest" else f", {rounded.algorithm}"
        what = f"{self.bits} bits per {self.granularity}{how}"
        outcome.change(weight.name, what, bits=self.bits, error=rounded.error)
