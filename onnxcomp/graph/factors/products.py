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
from onnxcomp.graph.ir.query import has_references, is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.linear_op import LinearOp, linear_op
from onnxcomp.graph.weights.roles import Role, Weight
from onnxcomp.operators import MATRIX_PRODUCTS


def matrix_use(role: Role, weight: Weight) -> LinearOp | str:
    """How one node multiplies with the weight, or the reason why it cannot read factors."""
    node = role.node
    if not is_onnx(node, *MATRIX_PRODUCTS) or role.input_index > 1:
        return f"it is also read by {node.op} {node.name}".rstrip()
    if has_references(node):
        return f"{node.name or node.op}: its attributes are parameters of a function"
    if len(weight.shape) < 2 or (len(weight.shape) > 2 and (node.op != "MatMul" or role.input_index == 0)):
        return f"it has {len(weight.shape)} dimensions"
    if role.axes is None:
        return f"{node.name or node.op} reads it through a Reshape"
    scope = next(scope for scope in weight.graph.scopes if scope.graph.holds(node))
    found = linear_op(scope, node, index=role.input_index, casts=True)
    if isinstance(found, str):
        return f"{node.name or node.op} reads it through several casts"
    return f"{node.name or node.op}: the other operand is a constant too" if isinstance(found.data, Constant) else found


def is_transposed(use: LinearOp) -> bool:
    """Whether the right operand (summed, channels), or the left one (channels, summed), is the transposed weight."""
    return use.perm[use.summed_axis if use.index else use.channel_axis] == 1


def obstacle(uses: Sequence[LinearOp | str]) -> str | None:
    """Why nodes that use a weight so cannot all read the same factors, or None."""
    for use in uses:
        if isinstance(use, str):
            return use
    if len({_form(use) for use in uses if isinstance(use, LinearOp)}) > 1:
        return "its nodes use it in different orientations"
    if len({id(use.node) for use in uses if isinstance(use, LinearOp)}) < len(uses):
        return "one node reads it twice"
    return None


def _form(use: LinearOp) -> tuple[Any, ...]:
    """Uses of the same form can read the same factors."""
    turn = is_transposed(use) if len(use.perm) == 2 else use.perm
    return use.index, turn, use.cast, use.swaps_weight


@dataclass(eq=False)
class Factors:
    """The factors of one weight as constants of its scope, put into the nodes that read it.

    left (.., m, r) and right (.., r, n), as the product takes them.
    """

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
