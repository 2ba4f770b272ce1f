"""What products do to channels that may be cut: they read some, and make others (see ``dependency_flow``).

A rule returns False where it cannot follow; what the node reads then has to stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.dependency_flow import (
    BROADCASTING_OPSET,
    COUPLED,
    DependencyFlow,
    Rule,
    as_one,
    is_computed,
    joined,
    sizes,
)
from onnxcomp.graph.channels.ids import Numbers, along, padded
from onnxcomp.graph.channels.owners import StatedSize
from onnxcomp.graph.channels.shape_rules import FORM_RULES
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_behind, given, is_onnx, named_outputs, producer
from onnxcomp.graph.weights.linear_op import summed_data_axis

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _convolution(flow: DependencyFlow, node: Node) -> bool:
    """Of one group: rows and columns of the kernel. Of several: whole groups where these are at least as many as a
    group's channels, else the same channel of each group."""
    shape, group = flow.seen_shape(node, 1), int(node.attrs.get("group", 1))
    if shape is None or len(shape) < 3:
        return False
    is_transposed = node.op == "ConvTranspose"
    inputs, outputs = (shape[0], shape[1] * group) if is_transposed else (shape[1] * group, shape[0])
    read = along(flow.of(node.inputs[0]), 1 - len(shape), inputs)
    if read is None or inputs % group or outputs % group:
        return False
    if group > 1 and group >= inputs // group:
        made = _whole_groups(flow, node, read.reshape(group, -1), outputs // group)
    else:
        made = _each_group(flow, node, read.reshape(group, -1), outputs // group)
    flow.takes(node, 2, made)
    return flow.give(node.outputs[0], made.reshape(-1, *(1,) * (len(shape) - 2)))


def _whole_groups(flow: DependencyFlow, node: Node, read: Numbers, outputs: int) -> Numbers:
    """A group reads its channels (g, I/g) and makes others, and all of them go together."""
    flow.sets.join(read[:, :1], read, f"{flow.key(node)} (group) {COUPLED}")
    made = np.repeat(read[:, 0], outputs)
    flow.takes(node, 1, _on_axis(read.reshape(-1) if node.op == "ConvTranspose" else made, 0, flow, node))
    flow.states(node, "group", read[:, 0])
    return made


def _each_group(flow: DependencyFlow, node: Node, read: Numbers, outputs: int) -> Numbers:
    """Channel i of every group is read by the same column of the kernel, and one of each is made by the same row."""
    group = len(read)
    if group > 1:
        flow.sets.join(read[:1], read, f"{flow.key(node)} (group) {COUPLED}")
    fresh = flow.source(node, outputs)
    made = np.tile(fresh, group)
    if node.op == "ConvTranspose":
        columns, rows = _on_axis(read.reshape(-1), 0, flow, node), _on_axis(fresh, 1, flow, node)
    else:
        columns, rows = _on_axis(read[0], 1, flow, node), _on_axis(made, 0, flow, node)
    flow.takes(node, 1, columns, is_read=True)
    flow.takes(node, 1, rows)
    return made


def _on_axis(numbers: Numbers, axis: int, flow: DependencyFlow, node: Node) -> Numbers:
    """Channels (n,) along one axis of a convolution's kernel."""
    rank = len(flow.seen_shape(node, 1) or ())
    return numbers.reshape([-1 if each == axis else 1 for each in range(rank)])


def _gemm(flow: DependencyFlow, node: Node) -> bool:
    index = 1 if flow.seen_shape(node, 1) is not None else 0
    if flow.scope.opset < BROADCASTING_OPSET or not _may_add(flow, node, index - 2):
        return False
    axis = summed_data_axis(node, index)
    made = _product(flow, node, index, axis, is_swapped=bool(node.attrs.get("transB" if index else "transA", 0)))
    if made is None:
        return False
    numbers = made if index else made[:, None]
    if not is_computed(node, 2):
        flow.takes(node, 2, numbers)
    elif sizes(flow, node.inputs[2], 2)[index - 2] != 1:
        flow.sets.join(numbers, padded(flow.of(node.inputs[2]), 2), f"{flow.key(node)} ({node.op}) {COUPLED}")
    return flow.give(node.outputs[0], numbers)


def _may_add(flow: DependencyFlow, node: Node, axis: int) -> bool:
    """Whether a computed addend of a Gemm has channels along no other axis than this one."""
    if not is_computed(node, 2):
        return True
    numbers = flow.of(node.inputs[2])
    return numbers.ndim <= 2 and padded(numbers, 2).shape[-1 if axis == -2 else -2] == 1


def _product(flow: DependencyFlow, node: Node, index: int, axis: int, *, is_swapped: bool) -> Numbers | None:
    """The channels that a product makes with a constant matrix, summing along an axis of its data; None where it cannot
    be followed."""
    shape = flow.seen_shape(node, index)
    if shape is None or len(shape) < 2 or math.prod(shape[:-2]) != 1:
        return None
    shape = shape[-2:]
    summed = (1 if is_swapped else 0) if index else (0 if is_swapped else 1)
    read = along(flow.of(node.inputs[1 - index]), axis, shape[summed])
    if read is None:
        return None
    made = flow.source(node, shape[1 - summed])
    flow.takes(node, index, read[:, None] if summed == 0 else read, is_read=True)
    flow.takes(node, index, made if summed == 0 else made[:, None])
    return made


def _matmul(flow: DependencyFlow, node: Node) -> bool:
    """Also FusedMatMul, whose operands may be turned."""
    turns = [bool(node.attrs.get(name, 0)) for name in ("transA", "transB")]
    if any(node.attrs.get(name, 0) for name in ("transBatchA", "transBatchB")):
        return False
    constant = next((i for i in (1, 0) if flow.seen_shape(node, i) is not None), None)
    if constant is None:
        return _product_of_computed(flow, node, turns)
    if (flow.rank(node.inputs[1 - constant]) or 0) < 2:
        return False
    axis = (-2 if turns[0] else -1) if constant else (-1 if turns[1] else -2)
    made = _product(flow, node, constant, axis, is_swapped=turns[constant])
    return made is not None and flow.give(node.outputs[0], made if constant else made[:, None])


def _product_of_computed(flow: DependencyFlow, node: Node, turns: Sequence[bool]) -> bool:
    """Both operands' channels along what is summed go together, all of one product at once, since no constant can be
    blind to one of them; products side by side (heads) are channels of what is made."""
    ranks = [flow.rank(each) for each in node.inputs]
    if any(each is None or each < 2 for each in ranks):
        return False
    rank = max(each or 0 for each in ranks)
    spread = [padded(flow.of(each), rank) for each in node.inputs]
    left, right = (each.swapaxes(-1, -2) if turn else each for each, turn in zip(spread, turns, strict=True))
    if left.size == right.size == 1:
        return False
    if left.shape[-1] > 1 or right.shape[-2] > 1:
        if left.shape[-1] != right.shape[-2] or left.shape[-2] > 1 or right.shape[-1] > 1:
            return False
        flow.sets.join(left, right.swapaxes(-1, -2), f"{flow.key(node)} (MatMul) {COUPLED}")
        left, right = as_one(flow, node, left, -1), as_one(flow, node, right, -2)
    if any(size > 1 for each in (left, right) for size in each.shape[:-2]):
        left, right = as_one(flow, node, left, -2), as_one(flow, node, right, -1)
        made = joined(flow, node, {0: left, 1: right}, rank)
        flow.heads.append(made)
        return flow.give(node.outputs[0], made)
    if left.shape[-2] > 1 and right.shape[-1] > 1:
        flow.sets.fix(left, f"{flow.key(node)} (MatMul) crosses its channels with others")
        return flow.give(node.outputs[0], right)
    return flow.give(node.outputs[0], left if left.shape[-2] > 1 else right)


def _fused_convolution(flow: DependencyFlow, node: Node) -> bool:
    """With something added before the activation."""
    addend = given(node, 3)
    if (addend is not None and not is_computed(node, 3)) or not _convolution(flow, node):
        return False
    if addend is not None:
        made = flow.tensors[node.outputs[0]][1]
        flow.sets.join(made, flow.of(addend), f"{flow.key(node)} ({node.op}) {COUPLED}")
    return True


def _recurrent(flow: DependencyFlow, node: Node) -> bool:
    """Hidden units: a row of each gate in W and R, a column of R, the same of both directions."""
    weight, state = flow.seen_shape(node, 1), flow.seen_shape(node, 2)
    if weight is None or state is None or len(weight) != 3 or len(state) != 3:
        return False
    read = along(flow.of(node.inputs[0]), -1, weight[2])
    if read is None:
        return False
    gates, made = GATES[node.op], flow.source(node, state[2])
    flow.takes(node, 1, read, is_read=True)
    flow.takes(node, 1, np.tile(made, gates)[:, None])
    flow.takes(node, 2, np.tile(made, gates)[:, None])
    flow.takes(node, 2, made, is_read=True)
    flow.takes(node, 3, np.tile(made, 2 * gates))
    flow.takes(node, 7, np.tile(made, 3))
    filled = _filled(flow, node, made)
    for index in (5, 6):
        tensor = given(node, index)
        if tensor is None or tensor in filled:
            continue
        if constant_behind(tensor, casts=True) is not None:
            flow.takes(node, index, made)
        else:
            flow.sets.join(made, flow.of(tensor), f"{flow.key(node)} ({node.op}) starts from a state that is given")
    if "hidden_size" in node.attrs:
        flow.states(node, "hidden_size", made)
    return all(flow.give(out, made) for out in named_outputs(node))


def _filled(flow: DependencyFlow, node: Node, made: Numbers) -> list[Any]:
    """The states that repeat constant values for each sequence, as exporters write them for an open batch: Expand or
    ConstantOfShape to sizes that state the hidden units. They have the node's channels; nothing else may read them."""
    found: list[Any] = []
    for tensor in dict.fromkeys(each for each in node.inputs[5:7] if each.name and each not in node.inputs[:5]):
        maker = producer(tensor)
        if maker is None or not is_onnx(maker, "ConstantOfShape", "Expand") or not flow.scope.graph.holds(maker):
            continue
        if flow.graph.is_output(tensor) or any(each is not node for each in tensor.outputs):
            continue
        held = flow.seen_shape(maker, 0) if maker.op == "Expand" else (1,)
        place = flow.stated_at(maker, 1 if maker.op == "Expand" else 0, 2)
        if held is None or not 1 <= len(held) <= 3 or held[-1] not in (1, made.size) or place is None:
            continue
        holder, at, position, size = place
        if size != made.size:
            continue
        flow.owners.append(StatedSize(flow.scope, holder, at, position, made, -1))
        if held[-1] > 1:
            flow.takes(maker, 0, made)
        flow.give(tensor, made)
        found.append(tensor)
    return found


def _lookup(flow: DependencyFlow, node: Node) -> bool:
    """Rows of a constant table: the columns are channels."""
    shape = flow.seen_shape(node, 0)
    if shape is None or constant_behind(node.inputs[1]) is not None:
        return FORM_RULES["Gather"](flow, node)
    axis, rank = int(node.attrs.get("axis", 0)) % max(1, len(shape)), flow.rank(node.inputs[1])
    if len(shape) != 2 or axis != 0 or rank is None:
        return True  # it has no channels that are followed
    made = flow.source(node, shape[1])
    flow.takes(node, 0, made)
    return flow.give(node.outputs[0], made)


# --- Einsum ----------------------------------------------------------------------------------------------------------


def _einsum(flow: DependencyFlow, node: Node) -> bool:
    """Of two operands, each letter once in each."""
    terms = _terms(node)
    ranks = [flow.rank(each) for each in node.inputs]
    if terms is None or len(terms) != 3 or [len(each) for each in terms[:2]] != ranks:
        return False
    constant = next((i for i in (1, 0) if flow.seen_shape(node, i) is not None), None)
    return _einsum_of_computed(flow, node, terms) if constant is None else _einsum_with(flow, node, constant, terms)


def _terms(node: Node) -> list[str] | None:
    """The letters of each operand and of what is made; None where a letter stands twice, or dots do."""
    left, arrow, right = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow:
        right = "".join(sorted(each for each in set("".join(operands)) if left.count(each) == 1))
    terms = [*operands, right]
    return None if "." in left or any(len(set(each)) < len(each) for each in terms) else terms


def _einsum_with(flow: DependencyFlow, node: Node, constant: int, terms: Sequence[str]) -> bool:
    """With a constant: letters that only it has are channels of one's own."""
    data, weight, result = terms[1 - constant], terms[constant], terms[2]
    numbers, shape = flow.spread(node.inputs[1 - constant]), flow.seen_shape(node, constant)
    if numbers is None or shape is None:
        return False
    stated = dict(zip(weight, shape, strict=True))
    held = [each for each, size in zip(data, numbers.shape, strict=True) if size > 1]
    if any(stated.get(each, size) != size for each, size in zip(data, numbers.shape, strict=True) if size > 1):
        return False
    summed, kept = [each for each in held if each not in result], [each for each in held if each in result]
    shared = [each for each in kept if each in weight]
    if (summed and kept) or any(each not in weight for each in summed) or (shared and shared != kept):
        return False
    if held and held[0] in weight:
        flow.takes(node, constant, _arranged(numbers, data, weight), is_read=bool(summed))
    fresh = "".join(each for each in weight if each in result and each not in data)
    if not fresh:
        return flow.give(node.outputs[0], np.zeros((), np.int64) if summed else _arranged(numbers, data, result))
    if kept:
        flow.sets.fix(numbers, f"{flow.key(node)} (Einsum) crosses its channels with others")
    counts = [stated[each] for each in fresh]
    made = flow.source(node, math.prod(counts)).reshape(counts)
    flow.takes(node, constant, _arranged(made, fresh, weight))
    return flow.give(node.outputs[0], _arranged(made, fresh, result))


def _einsum_of_computed(flow: DependencyFlow, node: Node, terms: Sequence[str]) -> bool:
    """As a MatMul: what is summed goes together, products side by side are channels of what is made."""
    one, other, result = terms
    spread = [flow.spread(each) for each in node.inputs]
    if any(each is None for each in spread):
        return False
    parts = [np.zeros(1, np.int64) if each is None else each for each in spread]
    held = [{each for each, size in zip(term, part.shape, strict=True) if size > 1}
            for term, part in zip(terms, parts, strict=False)]  # fmt: skip
    both = "".join(each for each in one if each in other)
    outer = (held[0] | held[1]) - set(both)
    summed = {each for each in held[0] | held[1] if each in both and each not in result}
    batch = {each for each in held[0] | held[1] if each in both and each in result}
    if outer - set(result) or (outer and summed):
        return False
    if batch or not outer:
        for at, term in enumerate((one, other)):
            for axis in [term.index(each) for each in outer if each in term]:
                parts[at] = as_one(flow, node, parts[at], axis)
        left, right = (_arranged(part, term, both) for part, term in zip(parts, terms, strict=False))
        flow.sets.join(left, right, f"{flow.key(node)} (Einsum) {COUPLED}")
        made = np.broadcast_to(left if left.size >= right.size else right, np.broadcast_shapes(left.shape, right.shape))
        for axis in [both.index(each) for each in summed]:
            made = as_one(flow, node, made, axis)
        flow.heads.extend([made] if batch else [])
        return flow.give(node.outputs[0], _arranged(made, both, result))
    if outer & held[0] and outer & held[1]:
        flow.sets.fix(parts[0], f"{flow.key(node)} (Einsum) crosses its channels with others")
    at = 1 if outer & held[1] else 0
    return flow.give(node.outputs[0], _arranged(parts[at], terms[at], result))


def _arranged(numbers: Numbers, letters: str, wanted: str) -> Numbers:
    """Channels along letters' axes as they stand along those of others; letters that are not wanted have none."""
    kept = [axis for axis, each in enumerate(letters) if each in wanted]
    sizes_of = {letters[axis]: numbers.shape[axis] for axis in kept}
    inner = numbers.reshape([numbers.shape[axis] for axis in kept])
    order = np.argsort([wanted.index(letters[axis]) for axis in kept])
    return inner.transpose(order).reshape([sizes_of.get(each, 1) for each in wanted])


PRODUCT_RULES: dict[str, Rule] = {
    **dict.fromkeys(["Conv", "ConvTranspose"], _convolution),
    **dict.fromkeys(GATES, _recurrent),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Gather": _lookup,
}
FUSED_RULES: dict[str, Rule] = {"FusedConv": _fused_convolution, "FusedGemm": _gemm, "FusedMatMul": _matmul}
