"""What fused attentions do to channels that may be cut: heads go whole (see ``dependency_flow``).

    queries, keys, values (N, L, H D)      head h is the channels h D .. (h + 1) D - 1 of each, and of what is made
    (N, H, L, D)                           or index h of axis 1

Heads that share keys are declined, since ONNX's reference and ONNX Runtime differ in which of them share. So are
caches, and what is made beside the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.channels.dependency_flow import COUPLED, DependencyFlow, Rule, as_one, is_computed, sizes
from onnxcomp.graph.channels.ids import Numbers, along, padded
from onnxcomp.graph.channels.owners import StatedSize
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import given, named_outputs
from onnxcomp.operators import MICROSOFT, ONNX_DOMAINS


def _onnx_attention(flow: DependencyFlow, node: Node) -> bool:
    ranks = {flow.rank(each) for each in node.inputs[:3]}
    if any(given(node, index) is not None for index in (4, 5)) or not _is_plain(flow, node, mask=3):
        return False
    if ranks == {4}:
        return _heads_apart(flow, node)
    counts = [int(node.attrs.get(name, 0)) for name in ("q_num_heads", "kv_num_heads")]
    if ranks != {3} or counts[0] != counts[1]:
        return False
    heads = _heads_along(flow, node, counts[0])
    for name in ("q_num_heads", "kv_num_heads"):
        if heads is not None:
            flow.states(node, name, heads)
    return heads is not None


def _heads_apart(flow: DependencyFlow, node: Node) -> bool:
    """Heads on axis 1."""
    counts = {sizes(flow, each, 4)[1] for each in node.inputs[:3]}
    parts = [padded(flow.of(each), 4) for each in node.inputs[:3]]
    if len(counts) > 1 or None in counts or any(each.shape[0] > 1 or each.shape[2] > 1 for each in parts):
        return False
    heads = [as_one(flow, node, each, -1) for each in parts]
    for each in heads[1:]:
        flow.sets.join(heads[0], each, f"{flow.key(node)} ({node.op}) {COUPLED}")
    found = max(heads, key=lambda each: each.size)
    flow.heads.append(found)
    return flow.give(node.outputs[0], found)


def _multi_head_attention(flow: DependencyFlow, node: Node) -> bool:
    """Of com.microsoft: with a bias of the queries, keys and values."""
    if any(given(node, index) is None for index in range(3)) or {flow.rank(each) for each in node.inputs[:3]} != {3}:
        return False
    if is_computed(node, 3) or any(given(node, index) is not None for index in range(6, len(node.inputs))):
        return False
    parts = [_along_last(flow, node, index) for index in range(3)]
    heads = _heads_along(flow, node, int(node.attrs["num_heads"])) if _is_plain(flow, node, mask=5) else None
    if heads is None:
        return False
    flow.takes(node, 3, np.concatenate([each for each in parts if each is not None]))
    flow.states(node, "num_heads", heads)
    return True


def _attention(flow: DependencyFlow, node: Node) -> bool:
    """Of com.microsoft: with the weights of the queries, keys and values in one matrix."""
    shape, count = flow.seen_shape(node, 1), int(node.attrs["num_heads"])
    if shape is None or len(shape) != 2 or is_computed(node, 2) or node.attrs.get("do_rotary"):
        return False
    stated = node.attrs.get("qkv_hidden_sizes")
    widths = [int(each) for each in stated or [shape[1] // 3] * 3]
    read = along(flow.of(node.inputs[0]), -1, shape[0])
    is_known = len(widths) == 3 and sum(widths) == shape[1] and not any(each % count for each in widths)
    if read is None or not is_known or given(node, 4) is not None or not _is_plain(flow, node, mask=5):
        return False
    heads = flow.source(node, count)
    columns = [np.repeat(heads, each // count) for each in widths]
    flow.takes(node, 1, read[:, None], is_read=True)
    flow.takes(node, 1, np.concatenate(columns))
    flow.takes(node, 2, np.concatenate(columns))
    flow.states(node, "num_heads", heads)
    for position, numbers in enumerate(columns if stated else []):
        flow.owners.append(StatedSize(flow.scope, node, "qkv_hidden_sizes", position, numbers, 0))
    flow.heads.append(heads)
    return flow.give(node.outputs[0], columns[2])


def _is_plain(flow: DependencyFlow, node: Node, mask: int) -> bool:
    """Whether it makes one result, and a mask that it adds has no heads of its own."""
    if len(named_outputs(node)) > 1:
        return False
    shape = None if given(node, mask) is None else flow.shapes.shape(node.inputs[mask])
    return given(node, mask) is None or (shape is not None and sizes(flow, node.inputs[mask], 4)[1] == 1)


def _along_last(flow: DependencyFlow, node: Node, index: int) -> Numbers | None:
    size = sizes(flow, node.inputs[index], 3)[-1]
    return None if size is None else along(flow.of(node.inputs[index]), -1, size)


def _heads_along(flow: DependencyFlow, node: Node, count: int) -> Numbers | None:
    """The heads of queries, keys and values (.., heads * width), which what is made gets, too; None where they cannot
    be followed."""
    parts: Sequence[Numbers | None] = [_along_last(flow, node, index) for index in range(3)]
    known = [each for each in parts if each is not None]
    if len(known) < 3 or not count or any(each.size % count for each in known):
        return None
    together = np.concatenate([each.reshape(count, -1) for each in known], axis=1)
    flow.sets.join(together[:, :1], together, f"{flow.key(node)} ({node.op}) {COUPLED}")
    heads = together[:, 0]
    flow.heads.append(heads)
    flow.give(node.outputs[0], np.repeat(heads, known[2].size // count))
    return heads


ATTENTION_RULES: dict[tuple[str, str], Rule] = {
    **{(domain, "Attention"): _onnx_attention for domain in ONNX_DOMAINS if domain is not None},
    (MICROSOFT, "Attention"): _attention,
    (MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
}
