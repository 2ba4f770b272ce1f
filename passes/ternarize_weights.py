"""Every weight becomes minus a scale, zero or plus the scale.

    w -> s * t,  t in {-1, 0, 1},  s for each output channel or for the whole

Scale and codes are the exact least-squares optimum (``numerics.levels``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Structure, parameter
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import NO_CHANNELS, decoded
from onnxcomp.numerics.arrays.channel_rows import along_axis, rows_of
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.quantizers.ternary import ternary_scales


@dataclass(frozen=True, kw_only=True)
class TernarizeWeights(WeightPass):
    """Give every weight three values: minus a scale, zero and plus the scale.

    Deviation from the paper: the threshold is the exact optimum, found by sorting, not 0.7 times the mean
    magnitude; and no training here.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1605.04711"
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
        old = np.asarray(weight.values)
        scale = ternary_scales(rows_of(old, axis))
        encoding = CodebookEncoding(
            dtype=str(weight.dtype),
            codebook=np.array([-1, 0, 1], scale.dtype),
            scale=along_axis(scale, axis, old.ndim),
            axis=axis,
        )
        values = decoded(encoding, old)
        if values is None:
            outcome.skip(weight.name, f"{weight.dtype} is too coarse for its scale")
            return
        error = relative_error(old, values)
        weight.set(values, encoding)
        outcome.change(weight.name, f"three levels per {self.granularity}", error=error)
