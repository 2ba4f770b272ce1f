"""Which float tensors enter an operator that selects or rounds, on the way to each tensor.

    y = ArgMax(z), z = MatMul(x, w)          y <- z entering ArgMax
    NonMaxSuppression(boxes, scores) -> i    i <- boxes, scores;  GatherND(boxes, i) <- boxes, scores
    Cast<int16>(Mul(s, 20000))               <- the product

What enters is taken as far up as it is continuous: of scores that are cut off at a threshold before they are ranked,
the scores before the threshold. Between Quantize- and DequantizeLinear nothing is selected; behind products with
weights, rounding is no longer seen, and selecting is called indirect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.graph.dataflow.origins import COMPARISONS, HEAVY, MOVES, Origins, TensorOrigin
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import given, is_onnx
from onnxcomp.graph.ir.scopes import Graph, inner_reads, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.tensors import ALL_FLOAT_TYPES

SELECTS = frozenset({
    "ArgMax", "ArgMin", "TopK", "NonZero", "NonMaxSuppression", "Compress", "Unique", "Multinomial", "Bernoulli",
    "Hardmax",
})  # fmt: skip
ROUNDS = frozenset({"Round", "Floor", "Ceil", "Sign", *COMPARISONS})
INDEXED = {  # operator -> (where its indices are, what they select from)
    "Gather": (1, (0,)), "GatherElements": (1, (0,)), "GatherND": (1, (0,)), "ScatterElements": (1, (0, 2)),
    "ScatterND": (1, (0, 2)), "Scatter": (1, (0, 2)), "Where": (0, (1, 2)),
}  # fmt: skip
MOST = 64  # that one tensor remembers


@dataclass(frozen=True)
class Entering:
    """A float tensor that enters an operator.

    selects: what is chosen depends on it; else it is rounded. is_direct: no products with weights follow.
    """

    tensor: Any
    operator: str
    selects: bool
    is_direct: bool = True


Found = tuple[Entering, ...]


class Selections:
    """What enters selecting and rounding operators on the way to each tensor of a graph without local functions."""

    def __init__(self, graph: Graph) -> None:
        self.origins = Origins(graph)
        self._found: dict[Any, Found] = {}
        self._dequantized: dict[Any, Found] = {}  # likewise, as DequantizeLinear sees it
        self._visit(graph.main.graph)

    def before(self, tensor: Any) -> Found:
        """What entered on the way to the tensor, the direct ones first, then the nearest."""
        found = self._found.get(tensor, ())
        return tuple(sorted(found, key=lambda each: not each.is_direct))

    def _visit(self, body: gs.Graph) -> None:
        for node in ordered(body.nodes):
            found = self._through(node)
            seen = self._unrounded(node, found)
            for out in node.outputs:
                computed = self.origins.of(out) is TensorOrigin.COMPUTED
                self._found[out] = found if computed else ()
                self._dequantized[out] = seen if computed else ()

    def _unrounded(self, node: Node, found: Found) -> Found:
        """What DequantizeLinear sees behind the node: no rounding by the QuantizeLinear that goes with it."""
        if is_onnx(node, "QuantizeLinear"):
            return self._at(node.inputs[:1])
        if is_onnx(node) and node.op in MOVES:
            return _merged(self._dequantized.get(each, ()) for each in node.inputs)
        return found

    def _through(self, node: Node) -> Found:
        """What entered on the way to the node's outputs."""
        if bodies := subgraphs_of(node):
            return self._through_bodies(node, bodies)
        if not is_onnx(node) or node.op in HEAVY:
            return _indirect(self._at(node.inputs))
        if node.op in SELECTS:
            return self._entering(node.inputs, node.op, selects=True)
        if node.op in ROUNDS:
            return self._entering(node.inputs, node.op, selects=False)
        if node.op == "QuantizeLinear" or (node.op == "Cast" and self._rounds(node)):
            return self._entering(node.inputs[:1], node.op, selects=False)
        if node.op == "DequantizeLinear":
            return _merged(self._dequantized.get(each, ()) for each in node.inputs[:1])
        if node.op in ("Shape", "Size") or node.op.startswith("Random"):
            return _indirect(self._at(node.inputs))
        if node.op in INDEXED:
            return self._indexed(node)
        return self._at(node.inputs)

    def _rounds(self, node: Node) -> bool:
        return node.attrs.get("to") not in ALL_FLOAT_TYPES and self.origins.is_float(node.inputs[0])

    def _indexed(self, node: Node) -> Found:
        """Elements are chosen by indices or a condition: by computed ones, what they are chosen from enters."""
        place, sources = INDEXED[node.op]
        index = given(node, place)
        chosen = self._found.get(index, ())
        if not any(each.is_direct for each in chosen):
            return self._at(node.inputs)
        values = [each for at in sources if (each := given(node, at)) is not None]
        selects = any(each.selects for each in chosen)
        return _merged([chosen, self._entering(values, node.op, selects=selects)])

    def _entering(self, tensors: Iterable[Any], operator: str, *, selects: bool) -> Found:
        return _merged(self._enter(each, operator, selects=selects) for each in tensors)

    def _enter(self, tensor: Any, operator: str, *, selects: bool) -> Found:
        """The tensor itself where it is continuous, else what entered before it."""
        before = self._found.get(tensor, ())
        if self.origins.of(tensor) is not TensorOrigin.COMPUTED or not self.origins.is_float(tensor):
            return before
        if any(each.is_direct for each in before) or (before and self.origins.varies(tensor)):
            return before
        return (Entering(tensor, operator, selects), *before)

    def _at(self, tensors: Iterable[Any]) -> Found:
        return _merged(self._found.get(each, ()) for each in tensors)

    def _through_bodies(self, node: Node, bodies: list[gs.Graph]) -> Found:
        """If, Loop, Scan: where something is selected inside, what comes from outside enters the whole node."""
        for body in bodies:
            self._visit(body)
        own = {tensor for body in bodies for tensor in _defined(body)}
        inside = _merged(self._found.get(each, ()) for body in bodies for each in body.outputs)
        outside = tuple(each for each in inside if each.tensor not in own)
        hidden = [each for each in inside if each.tensor in own and each.is_direct]
        through = _merged([self._at(node.inputs), outside])
        if hidden:
            reads = dict.fromkeys([*node.inputs, *(each for each in inner_reads(node) if each not in own)])
            selects = any(each.selects for each in hidden)
            return _merged([through, self._entering(reads, node.op, selects=selects)])
        return _indirect(through) if any(map(_is_heavy, bodies)) else through


def _indirect(found: Found) -> Found:
    """What is left of entering tensors behind products with weights."""
    return tuple(replace(each, is_direct=False) for each in found if each.selects)


def _merged(parts: Iterable[Found]) -> Found:
    """Each tensor once, directly if it ever is."""
    known: dict[Any, Entering] = {}
    for each in (each for part in parts for each in part):
        if each.tensor not in known or (each.is_direct and not known[each.tensor].is_direct):
            known[each.tensor] = each
    return tuple(known.values())[:MOST]


def _defined(body: gs.Graph) -> Iterator[Any]:
    yield from body.inputs
    for node in body.nodes:
        yield from node.outputs
        for inner in subgraphs_of(node):
            yield from _defined(inner)


def _is_heavy(body: gs.Graph) -> bool:
    return any(not is_onnx(node) or node.op in HEAVY or any(map(_is_heavy, subgraphs_of(node))) for node in body.nodes)
