"""A constant matrix becomes two of lower rank, with the activation between them.

    y = x @ W            ->   y = (x @ L) @ R          W: (m, n), L: (m, r), R: (r, n)
    y = W @ x            ->   y = L @ (R @ x)
    y = a * x @ W + b    ->   y = a * (x @ L) @ R + b  (Gemm, in all transpositions)

Bytes and multiplications go from m * n to r * (m + n). The product of the factors is never formed:
ONNX Runtime would fold it back to W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

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
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import has_references, is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.report.macs import Macs, count_macs
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op
from onnxcomp.graph.weights.roles import Role, Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.numerics.structure.lowrank import rank_for, singular_values, svd, truncated_svd
from onnxcomp.operators import MATRIX_PRODUCTS

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
        factors = _Factors(graph, weight, left, right, matrix.uses[0])
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
        return values.T if _is_transposed(self.uses[0]) else values

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
    uses = [_use(role, weight) for role in weight.roles]
    reason = _reason(weight, uses)
    if reason:
        return reason
    if not all_finite(weight.values):
        return "it has values that are not finite"
    return _Matrix(weight, [each for each in uses if isinstance(each, LinearOp)])


def _use(role: Role, weight: Weight) -> LinearOp | str:
    """How one node multiplies with the weight, or the reason why it cannot read factors."""
    node = role.node
    if not is_onnx(node, *MATRIX_PRODUCTS) or role.input_index > 1:
        return f"it is also read by {node.op} {node.name}".rstrip()
    if has_references(node):
        return f"{node.name or node.op}: its attributes are parameters of a function"
    if len(weight.shape) != 2:
        return f"it has {len(weight.shape)} dimensions"
    if role.axes is None:
        return f"{node.name or node.op} reads it through a Reshape"
    scope = next(scope for scope in weight.graph.scopes if scope.graph.holds(node))
    found = linear_op(scope, node, index=role.input_index, casts=True)
    if isinstance(found, str):
        return f"{node.name or node.op} reads it through several casts"
    return f"{node.name or node.op}: the other operand is a constant too" if isinstance(found.data, Constant) else found


def _is_transposed(use: LinearOp) -> bool:
    """Whether the right operand (summed, channels), or the left one (channels, summed), is the transposed weight."""
    return use.perm[use.summed_axis if use.index else use.channel_axis] == 1


def _form(use: LinearOp) -> tuple[Any, ...]:
    """Uses of the same form can read the same factors."""
    return use.index, _is_transposed(use), use.cast, use.swaps_weight


def _reason(weight: Weight, uses: list[LinearOp | str]) -> str | None:
    for use in uses:
        if isinstance(use, str):
            return use
    if len({_form(use) for use in uses if isinstance(use, LinearOp)}) > 1:
        return "its nodes use it in different orientations"
    if len({id(use.node) for use in uses if isinstance(use, LinearOp)}) < len(uses):
        return "one node reads it twice"
    return None


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


@dataclass(eq=False)
class _Factors:
    """The factors of one weight as constants of its scope, put into the nodes that read it."""

    graph: Graph
    weight: Weight
    left: Array
    right: Array
    use: LinearOp
    _made: dict[str, Constant] = field(default_factory=dict)

    def put_into(self, use: LinearOp) -> None:
        """Let a new node multiply by one factor and the old node, which keeps its name, by the other."""
        if use.node.op == "MatMul":
            self._into_matmul(use)
        else:
            self._into_gemm(use)

    def _into_matmul(self, use: LinearOp) -> None:
        node = use.node
        between = self.graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        if use.index:
            inner, outer = self._read(use, "left"), self._read(use, "right")
            inputs = [use.data, inner]
        else:
            inner, outer = self._read(use, "right"), self._read(use, "left")
            inputs = [inner, use.data]
        self._insert(use.scope, "MatMul", inputs, between, node, {})
        node.inputs[use.index] = outer
        node.inputs[1 - use.index] = between

    def _into_gemm(self, use: LinearOp) -> None:
        node = use.node
        between = self.graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        other = "transA" if use.index else "transB"
        inner, outer = ("left", "right") if use.index else ("right", "left")
        operands = [use.data, self._read(use, inner)]
        flag = {other: 1} if use.swaps_data else {}
        self._insert(use.scope, "Gemm" if flag else "MatMul", operands[:: 1 if use.index else -1], between, node, flag)
        # The other operand is turned by the new node already; the factor is stored as the weight was.
        node.attrs.pop(other, None)
        node.inputs[use.index] = self._read(use, outer, transposed=use.swaps_weight)
        node.inputs[1 - use.index] = between

    def _insert(self, scope: Scope, op: str, inputs: list[Any], output: Any, node: Node, attrs: dict[str, Any]) -> None:
        if op == "Gemm" and scope.opset < 11:  # C is required there; a zero of shape (1,) spreads
            kind = self.weight.dtype if self.use.cast is None else helper.tensor_dtype_to_np_dtype(self.use.cast)
            inputs = [*inputs, self._constant("zero", np.zeros(1, kind))]
        name = self.graph.unique_name(f"{node.name}_lowrank") if node.name else ""
        self.graph.node(scope, op, inputs, [output], name=name, attrs=attrs, before=node)

    def _read(self, use: LinearOp, which: str, *, transposed: bool = False) -> Any:
        """The factor as the node reads it; cast where the weight was."""
        values = self.left if which == "left" else self.right
        constant = self._constant(which, values.T if transposed else values)
        if use.cast is None:
            return constant
        key = f"{self.weight.tensor.name}_{which}_cast"
        cast = self.graph.variable(key)
        self.graph.node(use.scope, "Cast", [constant], [cast], attrs={"to": use.cast}, before=use.node)
        return cast

    def _constant(self, which: str, values: Array) -> Constant:
        if which not in self._made:
            name = f"{self.weight.tensor.name}_{which}"
            self._made[which] = self.graph.constant(self.weight.scope, name, np.ascontiguousarray(values))
        return self._made[which]
