"""What products do to channels that may be cut: they read some, and make others (see ``dependency_flow``).

A rule returns False where it cannot follow; what the node reads then has to stay.
"""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.graph.channels.dependency_flow import BROADCASTING_OPSET, DependencyFlow, Rule
from onnxcomp.graph.channels.dependency_joins import COUPLED, as_one, is_computed, joined, sizes
from onnxcomp.graph.channels.ids import Numbers, along, padded
from onnxcomp.graph.channels.shape_rules import FORM_RULES
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_behind, given, named_outputs
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
    made = _product(flow, node, index, int(node.attrs.get("transB" if index else "transA", 0)))
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


def _product(flow: DependencyFlow, node: Node, index: int, is_swapped: int) -> Numbers | None:
    """The channels that a product makes with a constant matrix; None where it cannot be followed."""
    shape = flow.seen_shape(node, index)
    if shape is None or len(shape) < 2 or math.prod(shape[:-2]) != 1:
        return None
    shape = shape[-2:]
    summed = (1 if is_swapped else 0) if index else (0 if is_swapped else 1)
    read = along(flow.of(node.inputs[1 - index]), summed_data_axis(node, index), shape[summed])
    if read is None:
        return None
    made = flow.source(node, shape[1 - summed])
    flow.takes(node, index, read[:, None] if summed == 0 else read, is_read=True)
    flow.takes(node, index, made if summed == 0 else made[:, None])
    return made


def _matmul(flow: DependencyFlow, node: Node) -> bool:
    constant = next((i for i in (1, 0) if flow.seen_shape(node, i) is not None), None)
    if constant is None:
        return _product_of_computed(flow, node)
    if (flow.rank(node.inputs[1 - constant]) or 0) < 2:
        return False
    made = _product(flow, node, constant, 0)
    return made is not None and flow.give(node.outputs[0], made if constant else made[:, None])


def _product_of_computed(flow: DependencyFlow, node: Node) -> bool:
    """Both operands' channels along what is summed go together, all of one product at once, since no constant can be
    blind to one of them; products side by side (heads) are channels of what is made."""
    ranks = [flow.rank(each) for each in node.inputs]
    if any(each is None or each < 2 for each in ranks):
        return False
    rank = max(each or 0 for each in ranks)
    left, right = (padded(flow.of(each), rank) for each in node.inputs)
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
    for index in (5, 6):
        tensor = given(node, index)
        if tensor is None:
            continue
        if constant_behind(tensor, casts=True) is not None:
            flow.takes(node, index, made)
        else:
            flow.sets.join(made, flow.of(tensor), f"{flow.key(node)} ({node.op}) starts from a state that is given")
    if "hidden_size" in node.attrs:
        flow.states(node, "hidden_size", made)
    return all(flow.give(out, made) for out in named_outputs(node))


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


PRODUCT_RULES: dict[str, Rule] = {
    **dict.fromkeys(["Conv", "ConvTranspose"], _convolution),
    **dict.fromkeys(GATES, _recurrent),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _lookup,
}
