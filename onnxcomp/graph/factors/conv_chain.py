"""A convolution becomes a chain of smaller ones that move along the same axes in the same way.

y = Conv(x, W, b)   ->   t = Conv(x, W1)   ..   y = Conv(t, Wn, b)

Each spatial axis has its stride, dilation and padding at the first convolution of the chain whose kernel extends along
it, at the very first where none does: before and after, what is computed at one place of the axis stays there, and
zeros, which the padding adds, stay zeros since only the last convolution adds a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.numerics.structure.conv_schemes import ChainLink, holders


def chain_obstacle(op: LinearOp) -> str | None:
    """Why a convolution cannot become a chain, or None."""
    if op.node.op != "Conv":
        return f"{op.node.name or op.key}: {op.node.op} is no Conv"
    rank = len(op.perm) - 2
    if rank < 1:
        return f"{op.key}: its weight has no spatial axes"
    sizes = {name: op.node.attrs.get(name) for name in ("strides", "dilations")}
    if any(held and len(held) != rank for held in sizes.values()) or len(op.node.attrs.get("pads") or ()) not in (
        0, 2 * rank,
    ):  # fmt: skip
        return f"{op.key}: its attributes do not fit its kernel"
    return f"{op.key}: its groups do not divide its channels" if op.seen_shape[0] % op.groups else None


def strides_of(op: LinearOp) -> tuple[int, ...]:
    """The strides of a convolution, one for each spatial axis."""
    rank = len(op.perm) - 2
    return tuple(op.node.attrs.get("strides") or (1,) * rank)


def put_chain(graph: Graph, op: LinearOp, weights: Sequence[Any], groups: Sequence[int]) -> None:
    """Let new nodes convolve with all weights but the last and the old node, which keeps its name, with that one."""
    node, source = op.node, op.data
    sizes = [ChainLink(tuple(each.shape), own) for each, own in zip(weights, groups, strict=True)]
    attributes = [_attributes(node, sizes, at) for at in range(len(sizes))]
    for weight, own in zip(weights[:-1], attributes[:-1], strict=True):
        between = graph.variable(f"{node.outputs[0].name}_lowrank", dtype=node.outputs[0].dtype)
        name = graph.unique_name(f"{node.name}_lowrank") if node.name else ""
        graph.node(op.scope, "Conv", [source, weight], [between], name=name, attrs=own, before=node)
        source = between
    node.inputs[0], node.inputs[1] = source, weights[-1]
    node.attrs.clear()
    node.attrs.update(attributes[-1])


def _attributes(node: Node, sizes: Sequence[ChainLink], at: int) -> dict[str, Any]:
    """Of one convolution of the chain: what the node says of the axes that are its own, nothing of the others."""
    extent = sizes[at].extent
    rank = len(extent)
    owned = [holder == at for holder in holders(sizes, rank)]
    pads = node.attrs.get("pads") or (0,) * (2 * rank)
    made: dict[str, Any] = {
        "kernel_shape": list(extent),
        "strides": _own(node.attrs.get("strides") or (1,) * rank, owned, 1),
        "dilations": _own(node.attrs.get("dilations") or (1,) * rank, owned, 1),
        "group": sizes[at].groups,
    }
    auto_pad = str(node.attrs.get("auto_pad", "NOTSET"))
    if auto_pad == "NOTSET":
        made["pads"] = _own(pads, owned * 2, 0)
    else:  # of each axis by itself: an axis without kernel and stride gets no padding
        made["auto_pad"] = auto_pad
    return made


def _own(values: Sequence[int], owned: Sequence[bool], other: int) -> list[int]:
    return [int(value) if mine else other for value, mine in zip(values, owned, strict=True)]
