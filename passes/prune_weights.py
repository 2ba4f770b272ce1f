"""The weights of smallest magnitude become zero.

    w -> w where |w| is among the largest (1 - sparsity) of all, else 0.0

The bytes are gained when the weight is stored compactly: the encoding says that the zeros are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Structure, parameter
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.numerics.structure.sparsity import pruned_masks


@dataclass(frozen=True, kw_only=True)
class PruneWeights(WeightPass):
    """Set the weights of smallest magnitude to zero.

    ``sparsity`` counts zeros that are there already. Deviation from the paper: one shot, no retraining here.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1506.02626"
    makes = frozenset({Structure.ZEROS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    sparsity: float = parameter(
        0.5,
        low=0.0,
        high=1.0,
        strengths=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
        help="share of the values that become zero",
    )
    scope: str = parameter(
        "weight",
        choices=("weight", "model"),
        help="whether the share holds for each weight, or for all of them together by one threshold",
    )

    def composes(self) -> bool:
        return self.scope == "weight"  # one threshold for all depends on which weights there are

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, Array]:
        """For each weight which of its values become zero."""
        if self.scope == "model":
            masks = pruned_masks([each.values for each in weights], sparsity=self.sparsity)
            return {each.name: mask for each, mask in zip(weights, masks, strict=True)}
        return {}

    def edit(self, weight: Weight, known: Array | None, context: Context, outcome: Outcome) -> None:
        mask = pruned_masks([weight.values], sparsity=self.sparsity)[0] if known is None else known
        if not mask.any():
            outcome.skip(weight.name, "all of its values are among the ones to keep")
            return
        values = np.array(weight.values)
        values[mask | (values == 0)] = 0
        weight.set(values, MaskEncoding(dtype=str(weight.dtype)))
        zeros = 1 - np.count_nonzero(values) / values.size
        outcome.change(weight.name, f"{zeros:.1%} zeros", sparsity=zeros)
