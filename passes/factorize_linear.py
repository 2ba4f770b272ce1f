"""A constant matrix becomes two of lower rank, with the activation between them.

    y = x @ W            ->   y = (x @ L) @ R          W: (m, n), L: (m, r), R: (r, n)
    y = W @ x            ->   y = L @ (R @ x)
    y = a * x @ W + b    ->   y = a * (x @ L) @ R + b  (Gemm, in all transpositions)

Bytes and multiplications go from m * n to r * (m + n). The product of the factors is never formed:
ONNX Runtime would fold it back to W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import (
    Choice,
    Context,
    Effect,
    Exact,
    Fields,
    Option,
    Outcome,
    Quantity,
    Site,
    SitePass,
    Skip,
    Structure,
    Survey,
    own_choice,
    parameter,
)
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.nodes import Array, Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.report.macs import Macs, count_macs
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.matrix_factors import Factors, is_transposed, matrix_use, obstacle
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.numerics.structure.lowrank import rank_for, singular_values, svd, truncated_svd

RANK_STEP = 16  # a rank of C/4 + 1 costs 20 to 42% more time than C/4: the kernels work on 16 columns
ROUNDED_FROM = 4 * RANK_STEP  # full rank from which a rank is rounded; below, a step would be too coarse
MOST_RANKS = 16  # to choose from, evenly apart
LEAST_RANK = 4  # to which the least of these is halved: columns are wasted, bytes are not
NODE_BYTES = 120  # what one node more, its names and the second tensor's header take in the file


@dataclass(frozen=True, kw_only=True)
class FactorizeLinear(SitePass):
    """Split the matrices of MatMul and Gemm into two of lower rank by singular value decomposition.

    A weight is left alone where the factors would not be smaller, where its nodes use it in different
    ways, and where it has more than two dimensions. ``rank`` or ``energy``, where given, takes the place
    of ``ratio``. Deviation from the paper: layers of linear type only, and no fine-tuning here.
    """

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1404.0736"
    makes = frozenset({Structure.FACTORS})
    destroys = frozenset({Structure.ZEROS, Structure.LEVELS, Structure.COMPACT})

    ratio: float = parameter(
        0.25,
        low=0.0,
        high=1.0,
        strengths=(0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125),
        help="rank as a share of the full rank",
    )
    rank: int | None = parameter(None, low=1, help="rank of every factored matrix")
    energy: float | None = parameter(None, low=0.0, high=1.0, help="share of the squared singular values kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.energy is not None:
            raise ParameterError(
                f"{self.pass_name()}: energy must be left out where rank is given, got {self.energy}. Give one of them."
            )

    def apply(self, graph: Graph, context: Context) -> Outcome:
        """All matrices at the pass's own rank, for which nothing else has to be decomposed."""
        found, skipped = self._matrices(graph, context)
        outcome = self.rewrite(graph, own_choice(each.name for each in found), context)
        outcome.skipped[:0] = skipped
        return outcome

    def sites(self, graph: Graph, context: Context) -> Survey:
        found, skipped = self._matrices(graph, context)
        macs = count_macs(graph) if found else {}
        sites = []
        for index, each in enumerate(found):
            if context.is_over():
                skipped.append(Skip(each.name, "the time budget was used up"))
                continue
            context.progress(index, len(found), f"{self.pass_name()}: decomposing {each.name}")
            options = self._options(each, graph.model.memo)
            costs = each.costs(macs)
            if options:
                sites.append(
                    Site(each.name, each.weight.node_names, costs, tuple(each.option(one, costs) for one in options))
                )
            else:
                skipped.append(Skip(each.name, "factors of no rank are smaller"))
        return Survey(tuple(sites), tuple(skipped))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        chosen = [each for each in weights(graph) if each.name in choice]
        for index, weight in enumerate(chosen):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(index, len(chosen), f"{self.pass_name()} {weight.name}")
            matrix = _matrix(weight)
            if isinstance(matrix, str):
                outcome.skip(weight.name, matrix)
            else:
                self.at(choice[weight.name])._factorize(graph, matrix, context, outcome)
        return outcome

    def _matrices(self, graph: Graph, context: Context) -> tuple[list[_Matrix], list[Skip]]:
        """The selected weights that can be factored, and why the others cannot."""
        found, skipped = [], []
        for weight in weights(graph):
            if "linear" not in weight.kinds or not context.selects(weight.name, *weight.node_names):
                continue
            matrix = _matrix(weight)
            if isinstance(matrix, str):
                skipped.append(Skip(weight.name, matrix))
            else:
                found.append(matrix)
        return found, skipped

    def _options(self, matrix: _Matrix, memo: dict[Any, Any]) -> list[_Rank]:
        """The ranks to choose from, the largest first, each with the fields that ask for it and its error."""
        most = matrix.largest_rank()
        if self.rank is not None or self.energy is not None:
            wanted: dict[int, Fields] = {self._rank(matrix.values): {}}
        else:
            wanted = {rank: {"rank": rank} for rank in _ladder(most, min(matrix.shape))}
        able = {rank: fields for rank, fields in wanted.items() if rank <= most}
        if not able:
            return []
        key = svd, matrix.name
        if key not in memo:
            memo[key] = svd(matrix.values, most)
        return [_Rank(rank, fields, memo[key].error(rank)) for rank, fields in able.items()]

    def _factorize(self, graph: Graph, matrix: _Matrix, context: Context, outcome: Outcome) -> None:
        values, weight = matrix.values, matrix.weight
        rank = self._rank(values)
        if matrix.factor_bytes(rank) >= weight.size_bytes:
            outcome.skip(weight.name, f"factors of rank {rank} are not smaller than {values.shape}")
            return
        known = graph.model.memo.get((svd, weight.name))
        left, right = truncated_svd(values, rank, seed=context.seed, known=known)
        error = _relative_error(values, left, right)
        factors = Factors(graph, weight, left, right, matrix.uses[0])
        for each in matrix.uses:
            factors.put_into(each)
        outcome.change(
            weight.name,
            f"two factors of rank {rank}",
            rank=rank,
            shape=list(values.shape),
            relative_error=error,
            nodes=list(weight.node_names),
        )

    def _rank(self, matrix: Array) -> int:
        full = int(min(matrix.shape))
        if self.rank is not None:
            return min(self.rank, full)
        if self.energy is None:
            return _rounded(round(self.ratio * full), full)
        exact = rank_for(singular_values(matrix), energy=self.energy)
        return min(full, -(-exact // RANK_STEP) * RANK_STEP) if full >= ROUNDED_FROM else exact


@dataclass(frozen=True)
class _Rank:
    """A rank to choose: the fields that ask for it, and the relative squared error of the product."""

    rank: int
    fields: Fields
    error: float


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A weight that can be factored, and the nodes that read it."""

    weight: Weight
    uses: list[LinearOp]

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def values(self) -> Array:
        """As the product takes them: (summed, channels) of a right operand, (channels, summed) of a left one."""
        values = np.asarray(self.weight.values)
        return values.T if is_transposed(self.uses[0]) else values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def factor_bytes(self, rank: int) -> int:
        """What both factors and the nodes that they need take in the file."""
        return rank * sum(self.shape) * self.weight.dtype.itemsize + NODE_BYTES * len(self.uses)

    def largest_rank(self) -> int:
        """The largest rank whose factors are smaller than the weight, 0 where none are."""
        for_rank = sum(self.shape) * self.weight.dtype.itemsize
        return max(0, (self.weight.size_bytes - NODE_BYTES * len(self.uses) - 1) // for_rank)

    def costs(self, macs: Mapping[Node, Macs | None]) -> dict[Quantity, float]:
        """As it is; a dimension that the model leaves open counts as 1, and so does one that is not known."""
        counted = [macs.get(each.node) for each in self.uses]
        total = sum(self.weight.size if each is None else each.count for each in counted)
        return {Quantity.BYTES: self.weight.size_bytes, Quantity.MACS: total}

    def option(self, found: _Rank, costs: Mapping[Quantity, float]) -> Option:
        """What it becomes with a rank."""
        share = found.rank * sum(self.shape) / self.weight.size
        taken = {Quantity.BYTES: self.factor_bytes(found.rank), Quantity.MACS: share * costs[Quantity.MACS]}
        return Option(found.fields, taken, found.error)


def _matrix(weight: Weight) -> _Matrix | str:
    """The weight as a matrix to factor, or why it is none."""
    uses = [matrix_use(role, weight) for role in weight.roles]
    reason = obstacle(uses)
    if reason:
        return reason
    if not all_finite(weight.values):
        return "it has values that are not finite"
    return _Matrix(weight, [each for each in uses if isinstance(each, LinearOp)])


def _ladder(most: int, full: int) -> list[int]:
    """Ranks to choose from, the largest first: evenly apart, then halved."""
    step = RANK_STEP if full >= ROUNDED_FROM else 1
    step *= max(1, -(-most // (step * MOST_RANKS)))
    ranks = list(range(most // step * step, 0, -step)) or [step]
    while ranks[-1] > LEAST_RANK:
        ranks.append(ranks[-1] // 2)
    return ranks


def _rounded(rank: int, full: int) -> int:
    if full < ROUNDED_FROM:
        return max(1, rank)
    return max(RANK_STEP, round(rank / RANK_STEP) * RANK_STEP)


def _relative_error(matrix: Array, left: Array, right: Array) -> float:
    """Norm of W - LR over the norm of W, row block by row block."""
    error = power = 0.0
    step = max(1, 2**22 // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        part = matrix[start : start + step].astype(np.float32)
        rest = part - left[start : start + step].astype(np.float32) @ right.astype(np.float32)
        error += float(np.sum(np.square(rest, dtype=np.float64)))
        power += float(np.sum(np.square(part, dtype=np.float64)))
    return float(np.sqrt(error / power)) if power else 0.0
