"""Values that their nodes' outputs miss least become zero, and the others make up for them.

    W -> D    of least |W X - D X|^2 + lambda |D|_0,    X: the inputs of its node on calibration data

Without data the values of smallest magnitude go. The bytes are gained when the weight is stored compactly: the encoding
says that the zeros are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Structure, parameter
from onnxcomp.contract.influence import with_gradients
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.pruning.problem import InputsSeen, PruningProblem
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.numerics.structure.patterns import AtLeast, Pattern, ShareOfAll, ShareOfRows
from onnxcomp.numerics.structure.pruned_matrices import BY_GRADIENTS, IMPORTANCES, Criterion
from onnxcomp.numerics.structure.sparsity import pruned_masks
from onnxcomp.numerics.structure.sparsity_shares import MEASURED_AT, shares


@dataclass(frozen=True)
class KnownOfWeight:
    """What is known of a weight beside its values. share: of zeros, where those of all weights were weighed."""

    inputs: InputsSeen
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class PruneWeights(WeightPass):
    """Set the weights that matter least to zero, and let the others make up for them.

    Importances, as far as calibration data show the inputs: magnitude; input-norm, which is Wanda's (Sun et al. 2023,
    https://arxiv.org/abs/2306.11695; scope = row compares as it does); second-order, which is what the outputs miss
    when the other weights make up for it (Optimal Brain Surgeon, SparseGPT); fisher, which is the same with
    each output's error counting by what gradients say the model loses by it. With ``compensate`` these get the values
    of least output error, and the mask of the last two is found along with them. Tables that are only looked up are
    weighed by how often each row is. ``sparsity`` counts zeros that are there already, which stay; ``scope = model``
    shares them out so that relative output errors add up to least, and by one threshold where importance is magnitude.
    With ``auto`` strengths each weight gets the share that an accuracy budget allows.

    Deviations from the paper: the mask comes from alternating directions (ALPS, Meng et al. 2024,
    https://arxiv.org/abs/2406.07831) and the values from least squares under it, instead of column by column; the
    second moment of the inputs is shrunk towards the identity.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2301.00774"
    makes = frozenset({Structure.ZEROS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})

    sparsity: float = parameter(
        0.5,
        low=0.0,
        high=1.0,
        strengths=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
        help="share of the values that become zero",
    )
    threshold: float | None = parameter(
        None,
        low=0.0,
        help="prune what is worth less instead: by magnitude, or by the root mean square that an output misses",
    )
    scope: str = parameter(
        "weight",
        choices=("weight", "row", "model"),
        help="whether the share holds for each weight, for each output of it, or for all weights together",
    )
    importance: str = parameter(
        "auto",
        choices=IMPORTANCES,
        help="what values are ranked by; auto: second-order where data show the inputs, else magnitude",
    )
    compensate: bool = parameter(True, help="fit the values that stay to the outputs on calibration data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.scope != "weight":
            raise ParameterError(
                f"{self.pass_name()}: threshold must be unset with scope = {self.scope}, got {self.threshold}. "
                "It is one for all weights by itself."
            )

    def needed(self) -> Needs:
        return Needs.NOTHING if self.importance in ("auto", "magnitude") else Needs.CALIBRATION

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self._criterion.draws_on_data

    def composes(self) -> bool:
        return self.scope != "model"  # how zeros are shared out depends on which weights there are

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, KnownOfWeight]:
        draws = self.draws_on_data(calibration=context.calibration is not None) or self.needed() is Needs.CALIBRATION
        seen = context.observe.inputs(graph, weights) if draws else {}
        if self.importance == BY_GRADIENTS:
            seen = with_gradients(graph, weights, seen, context)
        if self.scope != "model":
            return {name: KnownOfWeight(each) for name, each in seen.items()}
        found = self._shares(weights, seen, context)
        return {name: KnownOfWeight(seen.get(name, InputsSeen()), share) for name, share in found.items()}

    def _shares(self, weights: Sequence[Weight], seen: Mapping[str, InputsSeen], context: Context) -> dict[str, float]:
        """The share of zeros of each weight, by name."""
        names = [each.name for each in weights]
        if self._criterion.of(known=bool(seen)) == "magnitude":
            masks = pruned_masks([each.values for each in weights], sparsity=self.sparsity)
            return {name: float(mask.mean()) for name, mask in zip(names, masks, strict=True)}
        errors = []
        for index, each in enumerate(weights):
            context.progress(index, len(weights), f"weighing zeros of {each.name}")
            errors.append(PruningProblem(each, seen.get(each.name)).errors(self._criterion, MEASURED_AT))
        return dict(zip(names, shares([each.size for each in weights], errors, self.sparsity), strict=True))

    @property
    def _criterion(self) -> Criterion:
        return Criterion(self.importance, self.compensate)

    def edit(self, weight: Weight, known: KnownOfWeight | None, context: Context, outcome: Outcome) -> None:
        known = known or KnownOfWeight(InputsSeen())
        before = np.count_nonzero(weight.values)
        found = PruningProblem(weight, known.inputs).pruned(self._criterion, self._pattern(known.share))
        if np.count_nonzero(found.values) == before:
            outcome.skip(weight.name, "all of its values are among the ones to keep")
            return
        weight.set(found.values, MaskEncoding(dtype=str(weight.dtype)))
        what = f"{found.zeros:.1%} zeros" + (f", without gradients: {known.inputs.lack}" if known.inputs.lack else "")
        outcome.change(weight.name, what, sparsity=found.zeros, error=found.error)

    def _pattern(self, share: float | None) -> Pattern:
        if self.threshold is not None:
            return AtLeast(self.threshold)
        if self.scope == "row":
            return ShareOfRows(self.sparsity)
        return ShareOfAll(self.sparsity if share is None else share)
