"""A constant matrix becomes two of lower rank, with the activation between them.

    y = x @ W            ->   y = (x @ L) @ R          W: (m, n), L: (m, r), R: (r, n)
    y = W @ x            ->   y = L @ (R @ x)
    y = a * x @ W + b    ->   y = a * (x @ L) @ R + b  (Gemm, in all transpositions)

Bytes and multiplications go from m * n to r * (m + n). The product of the factors is never formed:
ONNX Runtime would fold it back to W.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, Structure, parameter
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import has_references, is_onnx
from onnxcomp.graph.weights.roles import Role, Weight, weights
from onnxcomp.numerics.structure.lowrank import rank_for, singular_values, truncated_svd

RANK_STEP = 16  # a rank of C/4 + 1 costs 20 to 42% more time than C/4: the kernels work on 16 columns
ROUNDED_FROM = 4 * RANK_STEP  # full rank from which a rank is rounded; below, a step would be too coarse
NODE_BYTES = 120  # what one node more, its names and the second tensor's header take in the file


@dataclass(frozen=True, kw_only=True)
class FactorizeLinear(Pass):
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
    energy: float | None = parameter(
        None, low=0.0, high=1.0, help="share of the squared singular values kept"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.energy is not None:
            raise ParameterError(
                f"{self.pass_name()}: energy must be left out where rank is given, got {self.energy}."
                " Give one of them."
            )

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        found = [each for each in weights(graph) if "linear" in each.kinds]
        for index, weight in enumerate(found):
            context.progress(index, len(found), f"{self.pass_name()} {weight.name}")
            if context.selects(weight.name, *weight.node_names):
                self._factorize(graph, weight, context, outcome)
        return outcome

    def _factorize(self, graph: Graph, weight: Weight, context: Context, outcome: Outcome) -> None:
        uses = [_use(role, weight) for role in weight.roles]
        reason = _reason(weight, uses)
        if reason:
            outcome.skip(weight.name, reason)
            return
        use = uses[0]
        assert isinstance(use, _Use)
        values = np.asarray(weight.values)
        if not np.isfinite(values).all():
            outcome.skip(weight.name, "it has values that are not finite")
            return
        matrix = values.T if use.transposed else values
        rank = self._rank(matrix)
        size = _factor_bytes(matrix.shape, rank, weight.dtype.itemsize, len(uses))
        if size >= weight.size_bytes:
            outcome.skip(weight.name, f"factors of rank {rank} are not smaller than {matrix.shape}")
            return
        left, right = truncated_svd(matrix, rank, seed=context.seed)
        error = _relative_error(matrix, left, right)
        factors = _Factors(graph, weight, left, right, use)
        for each in uses:
            assert isinstance(each, _Use)
            factors.put_into(each)
        outcome.change(
            weight.name,
            f"two factors of rank {rank}",
            rank=rank,
            shape=list(matrix.shape),
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


@dataclass(frozen=True, eq=False)
class _Use:
    """How one node reads the weight: which operand, whether as stored or transposed, and cast to what."""

    node: Node
    index: int
    transposed: bool
    cast: int | None

    @property
    def form(self) -> tuple[Any, ...]:
        """Uses of the same form can read the same factors."""
        flag = self.node.attrs.get("transB" if self.index else "transA", 0) if self.node.op == "Gemm" else 0
        return self.index, self.transposed, self.cast, bool(flag)


def _use(role: Role, weight: Weight) -> _Use | str:
    """The use, or the reason why this node cannot read factors."""
    node = role.node
    if not (is_onnx(node, "MatMul") or is_onnx(node, "Gemm")) or role.input_index > 1:
        return f"it is also read by {node.op} {node.name}".rstrip()
    if has_references(node):
        return f"{node.name or node.op}: its attributes are parameters of a function"
    if len(weight.shape) != 2:
        return f"it has {len(weight.shape)} dimensions"
    if role.channel_axis is None or role.input_axis is None:
        return f"{node.name or node.op} reads it through a Reshape"
    if isinstance(node.inputs[1 - role.input_index], Constant):
        return f"{node.name or node.op}: the other operand is a constant too"
    try:
        cast = _cast_on_the_way(node.inputs[role.input_index])
    except ValueError as error:
        return f"{node.name or node.op} reads it through {error}"
    # The right operand is (input, channel), the left one (channel, input).
    rows = role.input_axis if role.input_index else role.channel_axis
    return _Use(node, role.input_index, rows == 1, cast)


def _cast_on_the_way(tensor: Any) -> int | None:
    """The type that the constant is cast to before the node reads it; ValueError for several casts."""
    found = None
    while not isinstance(tensor, Constant):
        node = tensor.inputs[0]
        if node.op == "Cast":
            if found is not None or has_references(node):
                raise ValueError("several casts")
            found = int(node.attrs["to"])
        tensor = node.inputs[0]
    return found


def _reason(weight: Weight, uses: list[_Use | str]) -> str | None:
    for use in uses:
        if isinstance(use, str):
            return use
    if len({use.form for use in uses if isinstance(use, _Use)}) > 1:
        return "its nodes use it in different orientations"
    if len({id(use.node) for use in uses if isinstance(use, _Use)}) < len(uses):
        return "one node reads it twice"
    return None


def _rounded(rank: int, full: int) -> int:
    if full < ROUNDED_FROM:
        return max(1, rank)
    return max(RANK_STEP, round(rank / RANK_STEP) * RANK_STEP)


def _factor_bytes(shape: tuple[int, ...], rank: int, itemsize: int, nodes: int) -> int:
    return rank * sum(shape) * itemsize + NODE_BYTES * nodes


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
    use: _Use
    _made: dict[str, Constant] = field(default_factory=dict)

    def put_into(self, use: _Use) -> None:
        """Let a new node multiply by one factor and the old node, which keeps its name, by the other."""
        scope = _scope_of(self.graph, use.node)
        if use.node.op == "MatMul":
            self._into_matmul(scope, use)
        else:
            self._into_gemm(scope, use)

    def _into_matmul(self, scope: Scope, use: _Use) -> None:
        node = use.node
        between = self.graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        if use.index:
            inner, outer = self._read(scope, use, "left"), self._read(scope, use, "right")
            inputs = [node.inputs[0], inner]
        else:
            inner, outer = self._read(scope, use, "right"), self._read(scope, use, "left")
            inputs = [inner, node.inputs[1]]
        self._insert(scope, "MatMul", inputs, between, node, {})
        node.inputs[use.index] = outer
        node.inputs[1 - use.index] = between

    def _into_gemm(self, scope: Scope, use: _Use) -> None:
        node = use.node
        between = self.graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        own, other = ("transB", "transA") if use.index else ("transA", "transB")
        inner, outer = ("left", "right") if use.index else ("right", "left")
        flipped = bool(node.attrs.get(own, 0))
        operands = [node.inputs[1 - use.index], self._read(scope, use, inner)]
        flag = {other: 1} if node.attrs.get(other, 0) else {}
        self._insert(
            scope, "Gemm" if flag else "MatMul", operands[:: 1 if use.index else -1], between, node, flag
        )
        # The other operand is turned by the new node already; the factor is stored as the weight was.
        node.attrs.pop(other, None)
        node.inputs[use.index] = self._read(scope, use, outer, transposed=flipped)
        node.inputs[1 - use.index] = between

    def _insert(
        self, scope: Scope, op: str, inputs: list[Any], output: Any, node: Node, attrs: dict[str, Any]
    ) -> None:
        if op == "Gemm" and scope.opset < 11:  # C is required there; a zero of shape (1,) spreads
            kind = (
                self.weight.dtype if self.use.cast is None else helper.tensor_dtype_to_np_dtype(self.use.cast)
            )
            inputs = [*inputs, self._constant("zero", np.zeros(1, kind))]
        name = self.graph.unique_name(f"{node.name}_lowrank") if node.name else ""
        self.graph.node(scope, op, inputs, [output], name=name, attrs=attrs, before=node)

    def _read(self, scope: Scope, use: _Use, which: str, *, transposed: bool = False) -> Any:
        """The factor as the node reads it; cast where the weight was."""
        values = self.left if which == "left" else self.right
        constant = self._constant(which, values.T if transposed else values)
        if use.cast is None:
            return constant
        key = f"{self.weight.tensor.name}_{which}_cast"
        cast = self.graph.variable(key)
        self.graph.node(scope, "Cast", [constant], [cast], attrs={"to": use.cast}, before=use.node)
        return cast

    def _constant(self, which: str, values: Array) -> Constant:
        if which not in self._made:
            name = f"{self.weight.tensor.name}_{which}"
            self._made[which] = self.graph.constant(self.weight.scope, name, np.ascontiguousarray(values))
        return self._made[which]


def _scope_of(graph: Graph, node: Node) -> Scope:
    return next(scope for scope, each in graph.nodes() if each is node)
