"""Questions about what stands where in a graph; nothing is changed by asking. Edits are in ``rewire``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.noise import RANDOM_OPS
from onnxcomp.operators import ONNX_DOMAINS

UNBOUNDED = 1e38  # exporters write the largest float32 where a Clip has no bound


def is_onnx(node: Node, *ops: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node.domain in ONNX_DOMAINS and (not ops or node.op in ops)


def node_key(scope: Scope, node: Node) -> str:
    """The name by which the model knows a node: its own, or that of its first output."""
    named = next((out.name for out in node.outputs if out.name), node.op)
    return scope.key(node.name or named)


def given(node: Node, index: int) -> Any | None:
    """The input at a position, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) and node.inputs[index].name else None


def constant_value(tensor: Any | None) -> Array | None:
    """The values of a constant tensor, None for one that is computed or left out."""
    return tensor.values if isinstance(tensor, Constant) else None


def ints(tensor: Any | None) -> list[int] | None:
    """The values of a constant whole-number tensor as a flat list, None for anything else."""
    values = constant_value(tensor)
    if values is None or not np.issubdtype(values.dtype, np.integer):
        return None
    return [int(each) for each in values.reshape(-1)]


def producer(tensor: Any) -> Node | None:
    """The node that computes a tensor, None for constants, graph inputs and what comes from outside."""
    return tensor.inputs[0] if isinstance(tensor, Variable) and tensor.inputs else None


def has_one_reader(graph: Graph, tensor: Any) -> bool:
    """Whether one node reads the tensor, once, and nothing else needs it."""
    return len(tensor.outputs) == 1 and not graph.is_output(tensor)


def sole_reader(graph: Graph, scope: Scope, tensor: Any, *ops: str) -> Node | None:
    """The one node of the scope, of these operators if any are named, that reads a tensor which nothing else needs."""
    if not has_one_reader(graph, tensor):
        return None
    reader: Node = tensor.outputs[0]
    return reader if scope.graph.holds(reader) and (not ops or is_onnx(reader, *ops)) else None


def other_operand(node: Node, tensor: Any) -> Any:
    """What a node of two operands reads beside the tensor."""
    return node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]


def constant_operand(node: Node) -> int | None:
    """Where a node of two operands reads a constant beside what is computed; None where both are the same."""
    constants = [isinstance(each, Constant) for each in node.inputs]
    return constants.index(True) if len(constants) == 2 and sum(constants) == 1 else None


def tensor_behind(tensor: Any, *ops: str) -> Any:
    """What the tensor is behind nodes of these operators, which hand on their first input."""
    while (maker := producer(tensor)) is not None and is_onnx(maker, *ops):
        tensor = maker.inputs[0]
    return tensor


def is_fixed(tensor: Any) -> bool:
    """Whether the tensor is a constant or computed from constants alone."""
    if isinstance(tensor, Constant):
        return True
    maker = producer(tensor)
    return maker is not None and bool(maker.inputs) and not is_random(maker) and all(map(is_fixed, maker.inputs))


@dataclass(frozen=True, eq=False)
class Behind:
    """A constant as it is seen behind nodes that turn or cast it.

    perm: the constant's axes in the order in which they are seen. cast: the element type that it is cast to, None
    where it is not.
    """

    constant: Constant
    perm: tuple[int, ...]
    cast: int | None = None


def constant_behind(tensor: Any, *, casts: bool = False) -> Behind | None:
    """The constant that ``tensor`` is behind Identity and Transpose nodes, and one Cast where ``casts`` says so.

    None for anything else, more casts among it, and where an attribute on the way is a function's parameter.
    """
    passing = ("Identity", "Transpose", "Cast") if casts else ("Identity", "Transpose")
    turns: list[Any] = []
    cast: int | None = None
    while not isinstance(tensor, Constant):
        node = producer(tensor)
        if node is None or not is_onnx(node, *passing) or has_references(node):
            return None
        if node.op == "Transpose":
            turns.append(node.attrs.get("perm"))
        elif node.op == "Cast":
            if cast is not None:
                return None
            cast = int(node.attrs["to"])
        tensor = node.inputs[0]
    perm = tuple(range(len(tensor.shape)))
    for order in reversed(turns):
        perm = tuple(perm[each] for each in order) if order else perm[::-1]
    return Behind(tensor, perm, cast)


def clip_bounds(clip: Node) -> tuple[float | None, float | None] | None:
    """The least and the largest value that a Clip of any opset leaves, None on a side without a bound.

    None in all where a bound is not a number that the model states.
    """
    if has_references(clip):
        return None
    bounds: list[float | None] = []
    for index, name in (1, "min"), (2, "max"):
        stated = given(clip, index)
        value = clip.attrs.get(name) if stated is None else constant_value(stated)
        if stated is not None and (value is None or value.size != 1):
            return None
        number = math.inf if value is None else float(np.asarray(value, np.float64).reshape(-1)[0])
        if math.isnan(number):
            return None
        bounds.append(None if abs(number) > UNBOUNDED else number)
    return bounds[0], bounds[1]


def is_random(node: Node) -> bool:
    """Whether the node may give other values each time: the random operators, and Dropout in training."""
    return is_onnx(node) and (node.op in RANDOM_OPS or (node.op == "Dropout" and trains(node)))


def trains(node: Node) -> bool:
    """Whether a Dropout or BatchNormalization may be in training mode."""
    if node.op == "BatchNormalization":
        return node.attrs.get("training_mode", 0) != 0 or len([out for out in node.outputs if out.name]) > 1
    mode = given(node, 2)
    values = constant_value(mode)
    return mode is not None and (values is None or bool(np.any(values)))


def has_references(node: Node) -> bool:
    """Whether an attribute is a parameter of the function around the node, so that its value is not known."""
    from onnx_graphsurgeon import Node as SurgeonNode

    return any(isinstance(value, SurgeonNode.AttributeRef) for value in node.attrs.values())


def takes_constant(tensor: Any, rank: int) -> bool:
    """Whether the tensor's readers bear a constant of this rank in its place.

    Range is specified for scalars; a vector of one element passes while it is computed, but not as a constant.
    """
    return rank == 0 or not any(is_onnx(reader, "Range") for reader in tensor.outputs)
