"""A matrix as two of lower rank in the nodes that read it: W -> L R, with the activation between them.

y = x @ W            ->   y = (x @ L) @ R
y = W @ x            ->   y = L @ (R @ x)
y = a * x @ W + b    ->   y = a * (x @ L) @ R + b  (Gemm, in all transpositions)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import has_references, is_onnx
from onnxcomp.graph.weights.roles import Role, Weight


@dataclass(frozen=True, eq=False)
class MatrixUse:
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


def matrix_use(role: Role, weight: Weight) -> MatrixUse | str:
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
    return MatrixUse(node, role.input_index, rows == 1, cast)


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


def obstacle(uses: Sequence[MatrixUse | str]) -> str | None:
    """Why nodes that use a weight so cannot all read the same factors, or None."""
    for use in uses:
        if isinstance(use, str):
            return use
    if len({use.form for use in uses if isinstance(use, MatrixUse)}) > 1:
        return "its nodes use it in different orientations"
    if len({id(use.node) for use in uses if isinstance(use, MatrixUse)}) < len(uses):
        return "one node reads it twice"
    return None


@dataclass(eq=False)
class Factors:
    """The factors of one weight as constants of its scope, put into the nodes that read it."""

    graph: Graph
    weight: Weight
    left: Array
    right: Array
    use: MatrixUse
    _made: dict[str, Constant] = field(default_factory=dict)

    def put_into(self, use: MatrixUse) -> None:
        """Let a new node multiply by one factor and the old node, which keeps its name, by the other."""
        scope = _scope_of(self.graph, use.node)
        if use.node.op == "MatMul":
            self._into_matmul(scope, use)
        else:
            self._into_gemm(scope, use)

    def _into_matmul(self, scope: Scope, use: MatrixUse) -> None:
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

    def _into_gemm(self, scope: Scope, use: MatrixUse) -> None:
        node = use.node
        between = self.graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        own, other = ("transB", "transA") if use.index else ("transA", "transB")
        inner, outer = ("left", "right") if use.index else ("right", "left")
        flipped = bool(node.attrs.get(own, 0))
        operands = [node.inputs[1 - use.index], self._read(scope, use, inner)]
        flag = {other: 1} if node.attrs.get(other, 0) else {}
        self._insert(scope, "Gemm" if flag else "MatMul", operands[:: 1 if use.index else -1], between, node, flag)
        # The other operand is turned by the new node already; the factor is stored as the weight was.
        node.attrs.pop(other, None)
        node.inputs[use.index] = self._read(scope, use, outer, transposed=flipped)
        node.inputs[1 - use.index] = between

    def _insert(self, scope: Scope, op: str, inputs: list[Any], output: Any, node: Node, attrs: dict[str, Any]) -> None:
        if op == "Gemm" and scope.opset < 11:  # C is required there; a zero of shape (1,) spreads
            kind = self.weight.dtype if self.use.cast is None else helper.tensor_dtype_to_np_dtype(self.use.cast)
            inputs = [*inputs, self._constant("zero", np.zeros(1, kind))]
        name = self.graph.unique_name(f"{node.name}_lowrank") if node.name else ""
        self.graph.node(scope, op, inputs, [output], name=name, attrs=attrs, before=node)

    def _read(self, scope: Scope, use: MatrixUse, which: str, *, transposed: bool = False) -> Any:
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
    return next(scope for scope in graph.scopes if scope.graph.holds(node))
