"""Weights move to an affine grid of 2^bits levels; they stay floats, and the graph stays as it is.

    w -> (q - z) * s,  q in {0, .., 2^bits - 1}

s and z for the whole weight, for each output channel, or for each block along the summed axis. Zero is on
every grid, so that pruned values stay zero. For integer arithmetic see ``quantize-static``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Outcome, Pass, parameter
from onnxcomp.graph.surgery import Graph
from onnxcomp.graph.value_edit import NO_CHANNELS, decoded, editable_weights, has_levels
from onnxcomp.graph.weights import Weight
from onnxcomp.numerics.affine import fit_grid
from onnxcomp.numerics.encoding import GridEncoding
from onnxcomp.numerics.weight_error import relative_error


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Round weights to an affine grid of few bits.

    Deviation from the paper: the range may also be drawn in to where the squared error is least.
    """

    effect = Effect(shrinks=("bytes",), exact=False)
    paper = "https://arxiv.org/abs/1712.05877"
    makes = frozenset({"levels"})
    preserves = frozenset({"zeros", "factors", "qdq"})

    bits: int = parameter(8, low=2, high=8, strengths=(8, 7, 6, 5, 4, 3, 2), help="bits of a code")
    granularity: str = parameter(
        "channel",
        choices=("tensor", "channel", "block"),
        help="one grid for the whole weight, each output channel, or each block along the summed axis",
    )
    block_size: int = parameter(32, low=2, high=65536, help="values of a block, where granularity is block")
    symmetric: bool = parameter(True, help="keep the zero point in the middle of the grid")
    search_range: bool = parameter(True, help="clip outliers where that makes the squared error less")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight in editable_weights(graph, selects=context.selects, skip=outcome.skip, progress=context.progress):
            self._quantize(weight, outcome)
        return outcome

    def _quantize(self, weight: Weight, outcome: Outcome) -> None:
        axis = self._axis(weight)
        reason = self._reason(weight, axis)
        if reason:
            outcome.skip(weight.name, reason)
            return
        old = np.asarray(weight.values)
        block_size = self.block_size if self.granularity == "block" else None
        scale, zero_point = fit_grid(
            old,
            bits=self.bits,
            symmetric=self.symmetric,
            axis=axis,
            block_size=block_size,
            search=self.search_range,
        )
        encoding = GridEncoding(
            dtype=str(weight.dtype),
            levels=2**self.bits,
            scale=scale,
            zero_point=zero_point,
            axis=axis,
            block_size=block_size,
        )
        values = decoded(encoding, old)
        if values is None:
            outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            return
        error = relative_error(old, values)
        weight.set(values, encoding)
        outcome.change(weight.name, f"{self.bits} bits per {self.granularity}", bits=self.bits, error=error)

    def _axis(self, weight: Weight) -> int | None:
        if self.granularity == "tensor":
            return None
        if self.granularity == "channel":
            return weight.channel_axis
        # The rows of a table that is only looked up have no summed axis; blocks run along them.
        if weight.input_axis is None and weight.kinds == {"embedding"} and weight.channel_axis == 0:
            return len(weight.shape) - 1
        return weight.input_axis

    def _reason(self, weight: Weight, axis: int | None) -> str | None:
        """Why the weight is left alone, or None."""
        if has_levels(weight, 2**self.bits):
            return f"it already has no more than {2**self.bits} levels"
        if self.granularity == "channel" and axis is None:
            return NO_CHANNELS
        if self.granularity == "block":
            if axis is None:
                return "its readers have no summed axis in common"
            if weight.shape[axis] % self.block_size:
                return f"blocks of {self.block_size} do not divide its axis of {weight.shape[axis]}"
        return None
