"""Of each m neighbours along a weight's inputs at most n stay, and make up for the others.

    2:4      w w w w | w w w w    ->    w 0 w 0 | 0 0 w w

The same output error is minimized as by ``prune-weights``. Hardware and kernels for structured sparsity read this form,
and a mask of it takes fewer bits than any other of its share.
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
from onnxcomp.graph.pruning.problem import InputsSeen, PruningProblem, of_each
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.numerics.structure.pruned_matrices import BY_GRADIENTS, IMPORTANCES, Criterion


@dataclass(frozen=True, kw_only=True)
class PruneNm(WeightPass):
    """Keep at most n of each m neighbours along a weight's inputs.

    Neighbours along the inputs are the values of m input channels at the same place of a kernel; where m does not
    divide the inputs, the last ones are a shorter run. Embeddings have no inputs to sum over and are left alone, as are
    weights of fewer than m inputs. Importances and compensation are those of ``prune-weights``.

    Deviations from the paper: no training; mask and values come from alternating directions and least squares.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2104.08378"
    makes = frozenset({Structure.ZEROS})
    destroys = frozenset({Structure.LEVELS, Structure.COMPACT})
    variants = tuple({"n": n, "m": m} for n, m in ((3, 4), (2, 4), (1, 4)))

    n: int = parameter(2, low=1, high=1023, help="values that stay of each m, at most")
    m: int = parameter(4, low=2, high=1024, help="neighbours along the inputs that are compared")
    importance: str = parameter(
        "auto",
        choices=IMPORTANCES,
        help="what values are ranked by; auto: second-order where data show the inputs, else magnitude",
    )
    compensate: bool = parameter(True, help="fit the values that stay to the outputs on calibration data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise ParameterError(f"{self.pass_name()}: n must be less than m = {self.m}, got {self.n}. Try 2 and 4.")

    def needed(self) -> Needs:
        return Needs.NOTHING if self.importance in ("auto", "magnitude") else Needs.CALIBRATION

    def draws_on_data(self, *, calibration: bool) -> bool:
        return calibration and self._criterion.draws_on_data

    def obstacle(self, weight: Weight) -> str | None:
        pattern = of_each(weight, self.n, self.m)
        return pattern if isinstance(pattern, str) else None

    def prepare(self, graph: Graph, weights: Sequence[Weight], context: Context) -> Mapping[str, InputsSeen]:
        draws = self.draws_on_data(calibration=context.calibration is not None) or self.needed() is Needs.CALIBRATION
        seen = context.observe.inputs(graph, weights) if draws else {}
        return with_gradients(graph, weights, seen, context) if self.importance == BY_GRADIENTS else seen

    def edit(self, weight: Weight, known: InputsSeen | None, context: Context, outcome: Outcome) -> None:
        pattern = of_each(weight, self.n, self.m)
        assert not isinstance(pattern, str), "weights with an obstacle are not edited"
        before = np.count_nonzero(weight.values)
        found = PruningProblem(weight, known).pruned(self._criterion, pattern)
        if np.count_nonzero(found.values) == before:
            outcome.skip(weight.name, f"it has no more than {self.n} in each {self.m} already")
            return
        weight.set(found.values, MaskEncoding(dtype=str(weight.dtype)))
        what = f"{self.n} of each {self.m} kept, {found.zeros:.1%} zeros"
        if known is not None and known.lack:
            what += f", without gradients: {known.lack}"
        outcome.change(weight.name, what, sparsity=found.zeros, error=found.error)

    @property
    def _criterion(self) -> Criterion:
        return Criterion(self.importance, self.compensate)
