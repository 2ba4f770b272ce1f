"""Nodes that hand on what they get go away, and pairs of nodes that do the work of one become one.

    Identity, Dropout at inference, Cast to the same type, Reshape to the same shape, Transpose in place,
    Pad by nothing, Slice of everything, Concat or Sum of one, Expand or Tile by one, x * 1, x / 1, x - 0,
    Relu of what a Relu made
    Transpose(Transpose(x)) -> Transpose(x)        Reshape(Flatten(x)) -> Reshape(x)
    Cast(Cast(x)) -> Cast(x), where the first loses nothing

Every removal is exact to the bit. A node goes only where its being a no-op is proven: by constants, or by
shapes that ONNX Runtime enforces or the operators determine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import (
    constant_value,
    given,
    has_one_reader,
    has_references,
    ints,
    is_onnx,
    node_key,
    producer,
    tensor_behind,
    trains,
)
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import bypass
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import sweep
from onnxcomp.operators import RESHAPING

END = 2**31 - 1  # as the end of a Slice, from here on: everything


@dataclass(frozen=True, kw_only=True)
class RemoveNoops(Pass):
    """Remove nodes that change nothing and merge Transpose, Reshape and Cast chains."""

    effect = Effect(shrinks=("bytes", "latency", "load"), exact=Exact.TENSORS)
    as_stored = True

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        shapes = infer_shapes(graph)
        before = -1
        while before != len(outcome.changed):
            before = len(outcome.changed)
            outcome.skipped.clear()
            for scope in list(graph.scopes):
                for node in ordered(scope.graph.nodes):
                    if context.selects(node_key(scope, node)):
                        _simplify(graph, scope, node, shapes, outcome)
            sweep(graph)
        return outcome


def _simplify(graph: Graph, scope: Scope, node: Node, shapes: Shapes, outcome: Outcome) -> None:
    if not is_onnx(node) or not node.inputs or not node.outputs or has_references(node):
        return
    key = node_key(scope, node)
    rule = NOOPS.get(node.op)
    if rule is not None and rule(node, shapes, scope.opset):
        source = _passed_on(node)
        if any(graph.is_read(out) for out in node.outputs[1:]):
            outcome.skip(key, "its second output is read")
        elif bypass(graph, scope, node, source):
            outcome.change(key, f"removed {node.op}")
        else:
            outcome.skip(key, "what it makes has to be made by a node")
        return
    merged = MERGES.get(node.op)
    if merged is not None:
        what = merged(graph, scope, node, shapes)
        if what:
            outcome.change(key, what)


def _passed_on(node: Node) -> object:
    """The input that a no-op hands on: the first, but for x * 1 also the second."""
    if node.op == "Mul" and constant_value(node.inputs[1]) is None:
        return node.inputs[1]
    return node.inputs[0]


# --- which nodes do nothing ----------------------------------------------------------------------------


def _always(node: Node, shapes: Shapes, opset: int) -> bool:
    return True


def _dropout(node: Node, shapes: Shapes, opset: int) -> bool:
    return opset >= 7 and not trains(node)


def _single(node: Node, shapes: Shapes, opset: int) -> bool:
    return len(node.inputs) == 1


def _cast(node: Node, shapes: Shapes, opset: int) -> bool:
    return bool(node.attrs.get("to")) and node.attrs["to"] == shapes.data_type(node.inputs[0])


def _reshape(node: Node, shapes: Shapes, opset: int) -> bool:
    if shapes.same_form(node.inputs[0], node.outputs[0]):
        return True
    target, shape = ints(given(node, 1)), shapes.shape(node.inputs[0])
    if target is None or shape is None or len(target) != len(shape) or node.attrs.get("allowzero", 0):
        return False
    pairs = list(zip(target, shape, strict=True))
    return target.count(-1) <= 1 and all(asked in (0, -1) or asked == dim for asked, dim in pairs)


def _flatten(node: Node, shapes: Shapes, opset: int) -> bool:
    return shapes.rank(node.inputs[0]) == 2 and node.attrs.get("axis", 1) in (1, -1)


def _transpose(node: Node, shapes: Shapes, opset: int) -> bool:
    order = node.attrs.get("perm")
    if order is None:
        return (shapes.rank(node.inputs[0]) or 2) < 2
    return list(order) == list(range(len(order)))


def _pad(node: Node, shapes: Shapes, opset: int) -> bool:
    pads = ints(given(node, 1)) if opset >= 11 else node.attrs.get("pads")
    return pads is not None and not any(pads)


def _slice(node: Node, shapes: Shapes, opset: int) -> bool:
    if opset < 10:
        starts, ends, axes = (node.attrs.get(name) for name in ("starts", "ends", "axes"))
        steps = [1] * len(starts or ())
    else:
        starts, ends, axes = (ints(given(node, i)) for i in (1, 2, 3))
        steps = [1] * len(starts or ()) if given(node, 4) is None else ints(given(node, 4)) or []
        if axes is None and given(node, 3) is not None:
            return False
    if starts is None or ends is None or len(steps) != len(starts) or any(step != 1 for step in steps):
        return False
    static = shapes.static(node.inputs[0])
    if static is not None and static == shapes.static(node.outputs[0]):
        return True
    shape = shapes.shape(node.inputs[0])
    axes = list(range(len(starts))) if axes is None else axes
    if any(starts):
        return False
    return all(
        end >= END or (shape is not None and -len(shape) <= axis < len(shape) and _reaches(end, shape[axis]))
        for end, axis in zip(ends, axes, strict=True)
    )


def _reaches(end: int, size: int | None) -> bool:
    return size is not None and end >= size


def _expand(node: Node, shapes: Shapes, opset: int) -> bool:
    target, rank = ints(given(node, 1)), shapes.rank(node.inputs[0])
    if target is not None and rank is not None and len(target) <= rank and all(each == 1 for each in target):
        return True
    static = shapes.static(node.inputs[0])
    return static is not None and static == shapes.static(node.outputs[0])


def _tile(node: Node, shapes: Shapes, opset: int) -> bool:
    repeats = ints(given(node, 1))
    return repeats is not None and all(each == 1 for each in repeats)


def _relu(node: Node, shapes: Shapes, opset: int) -> bool:
    before = producer(node.inputs[0])
    return before is not None and is_onnx(before, "Relu") and not has_references(before)


def _neutral(value: float, positions: tuple[int, ...], *, negative_zero: bool = False) -> Callable[..., bool]:
    """A test whether one operand is the operator's neutral element, of a shape that widens nothing."""

    def test(node: Node, shapes: Shapes, opset: int) -> bool:
        for position in positions:
            constant = constant_value(node.inputs[position])
            other = node.inputs[1 - position]
            if constant is None or constant.dtype == object or constant_value(other) is not None:
                continue
            widens = constant.ndim > 0 and (shapes.rank(other) or 0) < constant.ndim
            if math.prod(constant.shape) != 1 or widens:
                continue
            number = constant.reshape(-1)[0]
            if number == value and (number != 0 or bool(np.signbit(number)) is negative_zero):
                return True
        return False

    return test


# Only what is exact to the bit: x + 0 turns -0.0 into 0.0, so it stays.
NOOPS: dict[str, Callable[[Node, Shapes, int], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mean": _single,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Relu": _relu,
    "Mul": _neutral(1, (0, 1)),
    "Div": _neutral(1, (1,)),
    "Sub": _neutral(0, (1,)),
}


# --- which pairs are one -------------------------------------------------------------------------------


def _merge_transposes(graph: Graph, scope: Scope, node: Node, shapes: Shapes) -> str:
    first = producer(node.inputs[0])
    if first is None or not is_onnx(first, "Transpose") or has_references(first):
        return ""
    rank = next((len(each.attrs["perm"]) for each in (first, node) if each.attrs.get("perm")), None)
    rank = shapes.rank(node.inputs[0]) if rank is None else rank
    source = first.inputs[0]
    if rank is None:  # both reverse the axes, however many there are
        return "removed Transpose pair" if bypass(graph, scope, node, source) else ""
    reverse = list(range(rank))[::-1]
    inner, outer = (list(each.attrs.get("perm") or reverse) for each in (first, node))
    both = [inner[axis] for axis in outer]
    if both == sorted(both) and bypass(graph, scope, node, source):
        return "removed Transpose pair"
    if not has_one_reader(graph, first.outputs[0]):
        return ""
    node.attrs["perm"] = both
    node.inputs[0] = source
    return "merged with the Transpose before"


def _merge_forms(graph: Graph, scope: Scope, node: Node, shapes: Shapes) -> str:
    """Reshape after a node that changes the form only: the first form does not matter."""
    first = producer(node.inputs[0])
    if first is None or not is_onnx(first) or first.op not in RESHAPING or has_references(first):
        return ""
    root = tensor_behind(first.inputs[0], *RESHAPING)
    if shapes.same_form(root, node.outputs[0]) and bypass(graph, scope, node, root):
        return f"removed {first.op} and {node.op}"
    if node.op != "Reshape" or not has_one_reader(graph, first.outputs[0]):
        return ""
    target = ints(given(node, 1))
    if target is None or (0 in target and not node.attrs.get("allowzero", 0)):
        return ""  # a 0 copies a dimension of the first form
    node.inputs[0] = first.inputs[0]
    return f"merged with the {first.op} before"


def _merge_casts(graph: Graph, scope: Scope, node: Node, shapes: Shapes) -> str:
    first = producer(node.inputs[0])
    if first is None or not is_onnx(first, "Cast") or has_references(first):
        return ""
    start = shapes.data_type(first.inputs[0])
    middle, end = first.attrs.get("to"), node.attrs.get("to")
    if middle not in LOSSLESS.get(start, ()):
        return ""
    source = first.inputs[0]
    if end == start and bypass(graph, scope, node, source):
        return "removed Cast pair"
    if end not in LOSSLESS.get(middle, ()) or not has_one_reader(graph, first.outputs[0]):
        return ""
    node.inputs[0] = source
    return "merged with the Cast before"


MERGES: dict[str, Callable[[Graph, Scope, Node, Shapes], str]] = {
    "Transpose": _merge_transposes,
    "Reshape": _merge_forms,
    "Flatten": _merge_forms,
    "Squeeze": _merge_forms,
    "Unsqueeze": _merge_forms,
    "Cast": _merge_casts,
}


def _lossless() -> dict[int, frozenset[int]]:
    """Element type -> the types that hold every value of it, by sign, bits of mantissa and of exponent."""
    types = {
        "BOOL": (0, 1, 0),
        "UINT8": (0, 8, 0), "UINT16": (0, 16, 0), "UINT32": (0, 32, 0), "UINT64": (0, 64, 0),
        "INT8": (1, 7, 0), "INT16": (1, 15, 0), "INT32": (1, 31, 0), "INT64": (1, 63, 0),
        "FLOAT16": (1, 11, 5), "BFLOAT16": (1, 8, 8), "FLOAT": (1, 24, 8), "DOUBLE": (1, 53, 11),
    }  # fmt: skip
    number = {name: int(TensorProto.DataType.Value(name)) for name in types}

    def holds(wide: str, narrow: str) -> bool:
        enough = all(has >= wants for has, wants in zip(types[wide], types[narrow], strict=True))
        return enough and wide not in ("BOOL", narrow)

    return {number[name]: frozenset(number[other] for other in types if holds(other, name)) for name in types}


LOSSLESS = _lossless()
