"""Weights move to a grid on which an entropy coder needs few bits: what packing is to make small.

    minimize   output error + price * bits,    w -> (q - z) * s,    bits of q by how often each q is taken

The grid covers all values, and its step is the strength. Codes lie where they are likely if that costs little; most of
what a weight has beside its large values becomes zero. The file itself gets smaller too, but ``onnxcomp pack`` is what
this is for: stored codes take whole levels, coded ones their entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.contract import Context, Effect, Exact, Outcome, Structure, parameter
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.rounding.coded_grid import grid_of_step, round_for_coding
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import NO_CHANNELS


@dataclass(frozen=True, kw_only=True)
class QuantizeRateDistortion(WeightPass):
    """Round weights to where an entropy coder needs few bits and their outputs change little.

    Deviations from the paper: the error is that of the node's outputs on calibration data instead of the values'
    (of the values where there are none), codes are improved by coordinate descent instead of one pass, and bits are
    counted by frequencies alone; ``onnxcomp pack`` finds the neighbours' part.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1907.11900"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    # A step of 2^(1/4) is 7 to 10% of the bytes.
    # The finest is 8 bits for each channel, what weights that no sample reaches are held to. One step for all is best
    # where channels count alike, one for each where batch normalization was folded into them.
    variants = tuple(
        {"step": round(2 ** (power / 4), 3), "granularity": granularity}
        for granularity, powers in (("channel", (-24, -20, -16, *range(-13, 8))), ("tensor", range(-12, 10)))
        for power in powers
    )

    step: float = parameter(
        0.4, low=1e-3, high=16.0, strengths=(0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6),
        help="the step of the grid, in standard deviations of the values",
    )  # fmt: skip
    granularity: str = parameter(
        "tensor", choices=("tensor", "channel"), help="one step for the whole weight, or one for each output channel"
    )
    trade: float = parameter(
        4.0,
        low=0.0,
        high=64.0,
        help="error that a bit saved may cost, in units of what a finer grid pays for it; none without data",
    )

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration

    def obstacle(self, weight: Weight) -> str | None:
        if self.granularity == "channel" and weight.channel_axis is None:
            return NO_CHANNELS
        return None if weight.size > 1 else "it is one value"

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, Moments]:
        return {} if context.calibration is None else context.observe.moments(graph, weights)

    def edit(self, weight: Weight, known: Moments | None, context: Context, outcome: Outcome) -> None:
        old = np.asarray(weight.values)
        encoding = grid_of_step(old, self.step, weight.channel_axis if self.granularity == "channel" else None)
        gram = None if known is None else known.gram
        found = round_for_coding(weight, encoding, self.trade, gram, keep=old == 0)
        if found is None:
            outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            return
        weight.set(found.values, found.encoding)
        how = ", by output error" if found.on_output else ""
        outcome.change(
            weight.name, f"steps of {self.step:g} standard deviations per {self.granularity}{how}",
            step=self.step, error=found.error,
        )  # fmt: skip
