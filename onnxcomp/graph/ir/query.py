"""Questions about what stands where in a graph; nothing is changed by asking. Edits are in ``rewire``."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant, Node, Variable
from onnxcomp.graph.ir.reader import Scope
from onnxcomp.noise import ONNX_DOMAINS as WRITTEN_DOMAINS
from onnxcomp.noise import RANDOM_OPS

ONNX_DOMAINS = frozenset({None, *WRITTEN_DOMAINS})


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
