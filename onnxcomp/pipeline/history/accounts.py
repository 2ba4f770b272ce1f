"""What source and result are made of, for those who read the receipt: weights by name, operators, nodes in order.

    source: W (64, 32), 8,192 bytes      result: W_int8, W_scale        ->    W: 8,192 -> 2,304 bytes

What a pass makes of a weight is called after it, so what is new in the result belongs to the weight that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, shown
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.report.inspection import Inspection, TensorInfo, inspected, operator_name
from onnxcomp.graph.stored.opening import open_plain, weights_by_decoded_name
from onnxcomp.graph.weights.roles import weights
from onnxcomp.memory import uncollected
from onnxcomp.model import Model
from onnxcomp.receipt import Graphs, OutlineNode, Receipt, WeightAccount

LEAST_BYTES = 64  # of a constant that is listed; smaller ones are shapes, axes and scales
LEAST_MADE_BYTES = 1024  # of one that the run made: there are scales for every channel
MOST_NODES = 200  # of the outline; beyond, those that read no weight are left out first
ZEROS_BYTES = 2**28  # zeros of larger models are not counted: their values would all have to be read


def describe(receipt: Receipt, source: Model, result: Graph) -> None:
    """Say in the receipt what both models are made of. result: opened, by the names that the steps knew."""
    with uncollected():
        opened = shown(source), result
        before, after = map(inspected, opened)
        plain = open_plain(result.model)
        decoded = {weight: made for made, weight in weights_by_decoded_name(plain).items()}
        receipt.weights = _weights(before, after, decoded, receipt.weights, _zeros(plain))
        receipt.graphs = _graphs(*opened, before, after, receipt.weights)


def _weights(
    before: Inspection,
    after: Inspection,
    decoded: Mapping[str, str],
    known: Mapping[str, WeightAccount],
    zeros: Mapping[str, float],
) -> dict[str, WeightAccount]:
    """The weights of either model, those of most bytes first. decoded: what is made of stored weights that have other
    names. known: what a search said of weights."""
    old = {each.name: each for each in before.tensors if _is_listed(each)}
    new = {each.name if each.name in old else decoded.get(each.name, each.name): each for each in after.tensors}
    found = {}
    for name, each in old.items():
        account = _account(each, known.get(name))
        account.shape, account.bytes_before = list(each.shape), each.size_bytes
        found[name] = account
    gone = [name for name in old if name not in new]
    for name, each in new.items():
        owner = name if name in found else _owner(name, gone)
        if owner is None and (name in old or not _is_listed(each, LEAST_MADE_BYTES)):
            continue
        account = found.setdefault(owner or name, _account(each, known.get(name)))
        account.bytes_after = (account.bytes_after or 0) + each.size_bytes
        if account.stored == "":  # the largest part of it comes first
            account.stored = each.encoding if each.encoding == "compact" else each.dtype
        if owner in (None, name) or list(each.shape) == account.shape:  # else it is one factor of several
            account.shape_after, account.zeros = list(each.shape), zeros.get(name)
    return found


def _is_listed(tensor: TensorInfo, least_bytes: int = LEAST_BYTES) -> bool:
    return tensor.kind != "constant" or tensor.size_bytes >= least_bytes


def _account(tensor: TensorInfo, known: WeightAccount | None) -> WeightAccount:
    """A new account, with what a search said of the weight."""
    kind = "vector" if tensor.kind == "constant" and len(tensor.shape) < 2 else tensor.kind
    if known is None:
        return WeightAccount(kind)
    return WeightAccount(kind, influence=known.influence, chosen=known.chosen, alternatives=known.alternatives)


def _owner(name: str, gone: Iterable[str]) -> str | None:
    """The weight of the source that a new tensor was made of: the one with the longest name that it begins with."""
    return max((each for each in gone if name.startswith(f"{each}_")), key=len, default=None)


def _zeros(plain: Graph) -> dict[str, float]:
    """The share of zeros by weight, to three digits. plain: the model with its weights in sight."""
    if plain.model.size_bytes > ZEROS_BYTES:
        return {}
    counts = {each.name: (np.count_nonzero(each.values), each.size) for each in weights(plain)}
    return {name: round(1 - count / max(1, size), 3) for name, (count, size) in counts.items()}


def _graphs(
    source: Graph, result: Graph, before: Inspection, after: Inspection, listed: Mapping[str, WeightAccount]
) -> Graphs:
    counts = [{each.name: each.count for each in inspection.operators} for inspection in (before, after)]
    names = sorted({*counts[0], *counts[1]}, key=lambda name: (-max(each.get(name, 0) for each in counts), name))
    now = {node_key(scope, node): operator_name(node) for scope, node in result.nodes()}
    is_known = not any(each.macs_partial or each.macs_unknown for each in (before, after))
    macs = _node_macs(before, after) if is_known else {}
    nodes = [_outlined(source, node, now, listed, macs) for node in ordered(source.main.graph.nodes)]
    shown = nodes if len(nodes) <= MOST_NODES else [each for each in nodes if each.reads]
    return Graphs(
        operators={name: [each.get(name, 0) for each in counts] for name in names},
        macs=[before.macs, after.macs] if is_known else [],
        nodes=shown[:MOST_NODES],
        more=len(nodes) - len(shown[:MOST_NODES]),
    )


def _node_macs(before: Inspection, after: Inspection) -> dict[str, list[int]]:
    """Multiply-accumulates of the source's nodes before and after, with what was made of each: by names."""
    found = {name: [count, 0] for name, count in before.node_macs.items()}
    for name, count in after.node_macs.items():
        owner = name if name in found else _owner(name, found)
        if owner is not None:
            found[owner][1] += count
    return found


def _outlined(
    graph: Graph,
    node: Node,
    now: Mapping[str, str],
    listed: Mapping[str, WeightAccount],
    macs: Mapping[str, list[int]],
) -> OutlineNode:
    key = node_key(graph.main, node)
    keys = (graph.main.key(each.name) for each in node.inputs if each.name)
    reads = [name for name in keys if name in listed]
    return OutlineNode(key, operator_name(node), now.get(key, ""), reads, macs.get(key, []))
