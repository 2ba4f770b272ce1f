"""Products with a constant matrix, and what takes their place.

    MatMul(x, W)          y = x @ W                                          W: (.., K, N)
    MatMul(W, x)          y = T(T(x) @ T(W)), T swaps the last two axes      W: (N, K)
    Gemm(x, W, c)         y = alpha * op(x) @ op(W) + beta * c               W: (K, N) or (N, K)
    Gather(W, ids)        y = W[ids]                                         W: (rows, width)

W may stand behind Identity and Transpose nodes, in another scope than the node, and be shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_behind, constant_value, given, has_references, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope


@dataclass(frozen=True, eq=False)
class Product:
    """A MatMul or Gemm one of whose operands is constant.

    perm: the constant's axes in the order (.., K, N). turned: x is transposed first, so a Gemm says.
    addend: what a Gemm adds, times ``beta``; None where it adds nothing.
    left: where the constant is a MatMul's left operand, the number of dimensions of the right one; else None.
    """

    scope: Scope
    node: Node
    weight: Constant
    perm: tuple[int, ...]
    turned: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    addend: Any = None
    left: int | None = None

    @property
    def source(self) -> Any:
        """The operand that is computed, as the node reads it."""
        return self.node.inputs[0 if self.left is None else 1]

    @property
    def key(self) -> str:
        """The name by which the model knows the node."""
        return node_key(self.scope, self.node)

    def matrix(self, values: Array) -> Array:
        """An array of the constant's shape as (.., K, N)."""
        return values.transpose(self.perm)


@dataclass(frozen=True, eq=False)
class Lookup:
    """A Gather of rows of a constant matrix."""

    scope: Scope
    node: Node
    weight: Constant


def product_of(scope: Scope, node: Node, shapes: Shapes) -> Product | str:
    """The product with a constant that a MatMul or Gemm is, or the reason why it is none."""
    found = constant_behind(node.inputs[1])
    if found is None:
        return _left_product(scope, node, shapes)
    weight, perm = found.constant, found.perm
    if isinstance(node.inputs[0], Constant):
        return "both its operands are constants"
    if len(weight.shape) < 2 or (node.op == "Gemm" and len(weight.shape) != 2):
        return f"its weight has {len(weight.shape)} dimensions"
    if node.op == "MatMul":
        return Product(scope, node, weight, perm)
    if has_references(node):
        return "its attributes are parameters of a function"
    attrs = node.attrs
    return Product(
        scope, node, weight,
        perm[::-1] if attrs.get("transB", 0) else perm,
        bool(attrs.get("transA", 0)),
        float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0)),
        given(node, 2),
    )  # fmt: skip


def _left_product(scope: Scope, node: Node, shapes: Shapes) -> Product | str:
    """A MatMul whose left operand is a constant matrix."""
    found = constant_behind(node.inputs[0])
    if found is None:
        return "none of its operands is a constant"
    weight, perm = found.constant, found.perm
    rank = shapes.rank(node.inputs[1])
    if node.op == "Gemm" or len(weight.shape) != 2:
        return "its constant is the left operand"
    if rank is None or rank < 2:
        return "its constant is the left operand, and the right one's dimensions are not known to be two or more"
    return Product(scope, node, weight, perm[::-1], left=rank)


def lookup_of(scope: Scope, node: Node) -> Lookup | None:
    """The Gather of rows that the node is, or None."""
    if not is_onnx(node, "Gather") or has_references(node):
        return None
    table = node.inputs[0]
    if not isinstance(table, Constant) or len(table.shape) != 2 or node.inputs[1] is table:
        return None
    return Lookup(scope, node, table) if node.attrs.get("axis", 0) in (0, -2) else None


def replace_product(graph: Graph, product: Product, multiply: Callable[[Any, Any], None]) -> None:
    """Take a product's node away; ``multiply(x, y)`` adds nodes that make y = alpha * x @ W in its scope.

    What a Gemm did beside, transposing x and adding, is done by nodes of their own, and so is what turns a product
    with the constant on the left into one with the constant on the right.
    """
    scope, node = product.scope, product.node
    source, result = product.source, node.outputs[0]
    graph.remove_node(scope, node)
    if product.left is not None:
        turned = graph.variable(f"{result.name}_turned")
        multiply(_turned(graph, scope, source, product.left), turned)
        graph.node(scope, "Transpose", [turned], [result], attrs={"perm": _swapped(product.left)})
        return
    if product.turned:
        source = _turned(graph, scope, source, 2)
    if product.addend is None:
        multiply(source, result)
        return
    plain = graph.variable(f"{result.name}_product")
    multiply(source, plain)
    graph.node(scope, "Add", [plain, _addend(graph, product)], [result])


def _turned(graph: Graph, scope: Scope, tensor: Any, rank: int) -> Any:
    """The tensor with its last two axes swapped."""
    result = graph.variable(f"{tensor.name}_turned")
    graph.node(scope, "Transpose", [tensor], [result], attrs={"perm": _swapped(rank)})
    return result


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _addend(graph: Graph, product: Product) -> Any:
    """What is added: a constant as (N,), so that ONNX Runtime fuses it, where each row gets the same."""
    values = constant_value(product.addend)
    addend, beta = product.addend, product.beta
    if values is None:
        return addend if beta == 1 else _scaled(graph, product)
    columns = int(product.weight.shape[product.perm[-1]])
    if values.ndim < 2 or values.shape[0] == 1:
        same = np.broadcast_to(values.reshape(-1), (columns,))
        return addend if beta == 1 and values.shape == (columns,) else _constant(graph, product, same, beta)
    return addend if beta == 1 else _constant(graph, product, values, beta)


def _constant(graph: Graph, product: Product, values: Array, beta: float) -> Constant:
    name = f"{product.addend.name}_row"
    return graph.constant(product.scope, name, (values * values.dtype.type(beta)).astype(values.dtype))


def _scaled(graph: Graph, product: Product) -> Any:
    result = graph.variable(f"{product.addend.name}_scaled")
    beta = graph.constant(product.scope, "beta", np.array(product.beta, product.weight.dtype))
    graph.node(product.scope, "Mul", [product.addend, beta], [result])
    return result
