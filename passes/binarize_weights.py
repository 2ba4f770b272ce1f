"""Every weight becomes minus or plus a scale.

    w -> s * sign(w),  s = mean |w| for each output channel or for the whole

That is the least-squares optimum. Of a pruned weight the zeros stay, and take no part in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Structure, parameter
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import NO_CHANNELS, is_pruned
from onnxcomp.numerics.arrays.channel_rows import along_axis, rows_of
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.quantizers.ternary import binary_scales


@dataclass(frozen=True, kw_only=True)
class BinarizeWeights(WeightPass):
    """Give every weight two values: minus a scale and plus the scale.

    Deviation from the paper: weights only, activations stay as they are, and no training here. An exact
    zero of a weight that is not pruned becomes minus the scale.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1603.05279"
    makes = frozenset({Structure.LEVELS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    granularity: str = parameter(
        "channel", choices=("channel", "tensor"), help="one scale for each output channel or for the whole weight"
    )

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        axis = weight.channel_axis if self.granularity == "channel" else None
        if axis is None and self.granularity == "channel":
            outcome.skip(weight.name, NO_CHANNELS)
            return
        old, pruned = np.asarray(weight.values), is_pruned(weight)
        scale = binary_scales(rows_of(old, axis), skip_zeros=pruned)
        encoding = CodebookEncoding(
            dtype=str(weight.dtype),
            codebook=np.array([-1, 0, 1] if pruned else [-1, 1], scale.dtype),
            scale=along_axis(scale, axis, old.ndim),
            axis=axis,
        )
        values = encoding.decode(_codes(old, pruned), old.shape)
        if encoding.encode(values) is None:
            outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            return
        error = relative_error(old, values)
        weight.set(values, encoding)
        what = f"two levels{' and zero' if pruned else ''} per {self.granularity}"
        outcome.change(weight.name, what, error=error)


def _codes(values: Array, pruned: bool) -> Array:
    """The sign as a code: 0 and 1, or 0, 1 and 2 where zero is a level. By sign, not by distance."""
    positive = (values > 0).astype(np.uint8)
    return positive + (values >= 0).astype(np.uint8) if pruned else positive
