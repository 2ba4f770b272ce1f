"""What each operator does to channels that may be cut, from its specification (see ``dependency_flow``).

A rule returns False where it cannot follow; what the node reads then has to stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.dependency_flow import BROADCASTING_OPSET, DependencyFlow, Rule
from onnxcomp.graph.channels.ids import NONE, Numbers, along, padded
from onnxcomp.graph.channels.shape_rules import FORM_RULES
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_behind, given, ints, is_onnx, named_outputs, trains
from onnxcomp.graph.weights.linear_op import summed_data_axis
from onnxcomp.operators import MICROSOFT, ONNX_DOMAINS

COUPLED = "joins it with what cannot be cut"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


# --- element by element ----------------------------------------------------------------------------------------------


def _keep(flow: DependencyFlow, node: Node) -> bool:
    """y = f(x) element by element."""
    numbers = flow.of(node.inputs[0])
    return all(flow.give(out, numbers) for out in named_outputs(node))


def _dropout(flow: DependencyFlow, node: Node) -> bool:
    return not trains(node) and _keep(flow, node)


def _broadcast(flow: DependencyFlow, node: Node) -> bool:
    """All operands have the same channels, but for those of one element along an axis; constants go along."""
    numbers = _together(flow, node, range(len(node.inputs)))
    return numbers is not None and flow.give(node.outputs[0], numbers)


def _together(flow: DependencyFlow, node: Node, indices: Sequence[int]) -> Numbers | None:
    """The channels that operands have together; None, and nothing done, where it is not known how they broadcast."""
    if flow.scope.opset < BROADCASTING_OPSET and (node.attrs.get("broadcast") or "axis" in node.attrs):
        return None
    computed = [i for i in indices if given(node, i) is not None and constant_behind(node.inputs[i], casts=True) is None]
    parts = {i: flow.of(node.inputs[i]) for i in computed}
    if not any(flow.is_followed(each) for each in parts.values()):
        return NONE
    ranks = [flow.rank(node.inputs[i]) for i in indices if given(node, i) is not None]
    if any(rank is None for rank in ranks):
        return None
    rank = max(each or 0 for each in ranks)
    made = _joined(flow, node, {i: padded(each, rank) for i, each in parts.items()}, rank)
    for index in indices:
        if index not in parts:
            flow.takes(node, index, made)
    return made


def _joined(flow: DependencyFlow, node: Node, parts: dict[int, Numbers], rank: int) -> Numbers:
    """One array of channels for operands that are computed, whose own become the same."""
    labelled = [axis for axis in range(rank) if any(each.shape[axis] > 1 for each in parts.values())]
    together: Numbers | None = None
    for index, numbers in parts.items():
        sizes = _sizes(flow, node.inputs[index], rank)
        if all(sizes[axis] == 1 for axis in labelled):
            continue  # it is broadcast along all axes with channels
        if together is not None:
            flow.sets.join(together, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
            together = np.broadcast_to(
                together if together.size >= numbers.size else numbers,
                np.broadcast_shapes(together.shape, numbers.shape),
            )
        else:
            together = numbers
    return NONE if together is None else together


def _sizes(flow: DependencyFlow, tensor: Any, rank: int) -> list[int | None]:
    shape = list(flow.shapes.shape(tensor) or ())
    return [*[1] * (rank - len(shape)), *shape]


def _biased(flow: DependencyFlow, node: Node) -> bool:
    """f(x + b)"""
    numbers = _together(flow, node, range(min(2, len(node.inputs))))
    return numbers is not None and flow.give(node.outputs[0], numbers)


# --- products --------------------------------------------------------------------------------------------------------


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
    """Channel i of every group is read by the same column of the kernel, and one of every group made by the same row."""
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
    if flow.scope.opset < BROADCASTING_OPSET:
        return False
    index = 1 if flow.seen_shape(node, 1) is not None else 0
    made = _product(flow, node, index, int(node.attrs.get("transB" if index else "transA", 0)))
    if made is None:
        return False
    numbers = made if index else made[:, None]
    addend = given(node, 2)
    if addend is not None and constant_behind(addend, casts=True) is None:
        return False
    flow.takes(node, 2, numbers)
    return flow.give(node.outputs[0], numbers)


def _product(flow: DependencyFlow, node: Node, index: int, is_swapped: int) -> Numbers | None:
    """The channels that a product makes with a constant matrix; None where it cannot be followed."""
    shape = flow.seen_shape(node, index)
    if shape is None or len(shape) != 2:
        return None
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
        left, right = _as_one(flow, node, left, -1), _as_one(flow, node, right, -2)
    if any(size > 1 for each in (left, right) for size in each.shape[:-2]):
        left, right = _as_one(flow, node, left, -2), _as_one(flow, node, right, -1)
        made = _joined(flow, node, {0: left, 1: right}, rank)
        flow.heads.append(made)
        return flow.give(node.outputs[0], made)
    if left.shape[-2] > 1 and right.shape[-1] > 1:
        flow.sets.fix(left, f"{flow.key(node)} (MatMul) crosses its channels with others")
        return flow.give(node.outputs[0], right)
    return flow.give(node.outputs[0], left if left.shape[-2] > 1 else right)


def _as_one(flow: DependencyFlow, node: Node, numbers: Numbers, axis: int) -> Numbers:
    """All channels along an axis go together: one of them stands for all."""
    first: Numbers = np.take(numbers, [0], axis)
    if numbers.shape[axis] > 1:
        flow.sets.join(first, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
    return first


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


# --- normalizations, and what goes along one axis ----------------------------------------------------------------------


def _batch_norm(flow: DependencyFlow, node: Node) -> bool:
    rank, gain = flow.rank(node.inputs[0]), flow.seen_shape(node, 1)
    if trains(node) or node.attrs.get("spatial", 1) != 1 or rank is None or rank < 2 or gain is None:
        return False
    return _by_channel(flow, node, rank, gain, range(1, 5))


def _instance_norm(flow: DependencyFlow, node: Node) -> bool:
    rank, gain = flow.rank(node.inputs[0]), flow.seen_shape(node, 1)
    return rank is not None and rank > 2 and gain is not None and _by_channel(flow, node, rank, gain, (1, 2))


def _by_channel(flow: DependencyFlow, node: Node, rank: int, gain: Sequence[int], places: Sequence[int]) -> bool:
    numbers = along(flow.of(node.inputs[0]), 1 - rank, gain[0])
    if numbers is None:
        return False
    for index in places:
        flow.takes(node, index, numbers)
    return flow.give(node.outputs[0], numbers.reshape(-1, *(1,) * (rank - 2)))


def _layer_norm(flow: DependencyFlow, node: Node) -> bool:
    """Over the axes from ``axis`` on."""
    numbers = flow.spread(node.inputs[0])
    if numbers is None or not numbers.ndim:
        return False
    first = int(node.attrs.get("axis", -1)) % numbers.ndim
    return math.prod(numbers.shape[first:]) == 1 and flow.give(node.outputs[0], numbers)


def _softmax(flow: DependencyFlow, node: Node) -> bool:
    """Over one axis; before opset 13 over all from it on."""
    numbers = flow.spread(node.inputs[0])
    if numbers is None or not numbers.ndim:
        return False
    is_new = flow.scope.opset >= 13
    axis = int(node.attrs.get("axis", -1 if is_new else 1)) % numbers.ndim
    over = numbers.shape[axis : axis + 1] if is_new else numbers.shape[axis:]
    return math.prod(over) == 1 and flow.give(node.outputs[0], numbers)


def _along_axis(flow: DependencyFlow, node: Node) -> bool:
    """An operator along an axis that has no channels, whose outputs have as many axes as its input."""
    numbers = flow.spread(node.inputs[0])
    axis = node.attrs.get("axis", -1 if node.op in ("TopK", "LpNormalization") else 0)
    if node.op == "CumSum":
        stated = ints(given(node, 1))
        axis = None if stated is None else stated[0]
    if numbers is None or not numbers.ndim or axis is None or numbers.shape[int(axis)] != 1:
        return False
    if node.op in ("ArgMax", "ArgMin") and not node.attrs.get("keepdims", 1):
        numbers = np.squeeze(numbers, int(axis))
    return all(flow.give(out, numbers) for out in named_outputs(node))


def _quantize(flow: DependencyFlow, node: Node) -> bool:
    """Scale and zero point are one for all, or one for each index of an axis."""
    numbers, scale = flow.spread(node.inputs[0]), flow.seen_shape(node, 1)
    if numbers is None or scale is None or len(scale) > 1 or node.attrs.get("block_size"):
        return False
    if math.prod(scale) > 1:
        axis = int(node.attrs.get("axis", 1))
        own = along(numbers, axis % numbers.ndim - numbers.ndim, scale[0])
        if own is None:
            return False
        for index in (1, 2):
            flow.takes(node, index, own)
    return flow.give(node.outputs[0], numbers)


# --- forms -----------------------------------------------------------------------------------------------------------


def _max_pool(flow: DependencyFlow, node: Node) -> bool:
    """Its second output counts elements through all channels."""
    return len(named_outputs(node)) == 1 and FORM_RULES["MaxPool"](flow, node)


def _depth_to_space(flow: DependencyFlow, node: Node) -> bool:
    """Channel c of a picture is made of block * block channels, which go together."""
    block, is_crd = int(node.attrs["blocksize"]), node.attrs.get("mode", "DCR") == "CRD"
    shape = flow.shapes.shape(node.inputs[0])
    if shape is None or len(shape) != 4 or shape[1] is None:
        return False
    numbers = along(flow.of(node.inputs[0]), -3, shape[1])
    if numbers is None or shape[1] % block**2:
        return False
    parts = numbers.reshape(-1, block**2).T if is_crd else numbers.reshape(block**2, -1)
    made = _as_one(flow, node, parts, 0)
    return flow.give(node.outputs[0], made.reshape(-1, 1, 1))


def _shape_of(flow: DependencyFlow, node: Node) -> bool:
    """Sizes of axes without channels may be read, by those who pick them."""
    numbers = flow.spread(node.inputs[0])
    if not flow.is_followed(flow.of(node.inputs[0])):
        return True
    if numbers is None or flow.graph.is_output(node.outputs[0]):
        return False
    first, last = int(node.attrs.get("start", 0)), node.attrs.get("end")
    axes = list(range(numbers.ndim))[slice(first, None if last is None else int(last))]
    return all(_picked(axes, numbers, reader) for reader in node.outputs[0].outputs)


def _picked(axes: list[int], numbers: Numbers, reader: Node) -> bool:
    """Whether a node reads sizes of axes without channels only."""
    if all(numbers.shape[axis] == 1 for axis in axes):
        return True
    if is_onnx(reader, "Gather") and int(reader.attrs.get("axis", 0)) == 0:
        positions = ints(reader.inputs[1])
        picked = None if positions is None else [axes[each] for each in positions if -len(axes) <= each < len(axes)]
    elif is_onnx(reader, "Slice"):
        picked = _sliced(axes, reader)
    else:
        return False
    return picked is not None and all(numbers.shape[axis] == 1 for axis in picked)


def _sliced(axes: list[int], node: Node) -> list[int] | None:
    if len(node.inputs) < 3:
        starts, ends, steps = node.attrs.get("starts"), node.attrs.get("ends"), None
    else:
        starts, ends, steps = (ints(given(node, index)) for index in (1, 2, 4))
        if given(node, 4) is not None and steps is None:
            return None
    if not starts or not ends or len(starts) != 1:
        return None
    return axes[slice(int(starts[0]), int(ends[0]), int(steps[0]) if steps else 1)]


UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip

_PLAIN: dict[str, Rule] = {
    **FORM_RULES,
    **dict.fromkeys(["ReduceProd", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"], FORM_RULES["ReduceSum"]),
    **dict.fromkeys(UNARY, _keep),
    **dict.fromkeys(BROADCASTING, _broadcast),
    **dict.fromkeys(["Conv", "ConvTranspose"], _convolution),
    **dict.fromkeys(GATES, _recurrent),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"], _layer_norm),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax"], _softmax),
    **dict.fromkeys(["CumSum", "ArgMax", "ArgMin", "TopK", "LpNormalization"], _along_axis),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear"], _quantize),
    "Dropout": _dropout,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _lookup,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "MaxPool": _max_pool,
    "DepthToSpace": _depth_to_space,
    "Shape": _shape_of,
}
RULES: dict[tuple[str, str], Rule] = {
    **{(domain, op): rule for op, rule in _PLAIN.items() for domain in ONNX_DOMAINS if domain is not None},
    **dict.fromkeys([(MICROSOFT, "Gelu"), (MICROSOFT, "QuickGelu")], _keep),
    **dict.fromkeys([(MICROSOFT, "BiasGelu"), (MICROSOFT, "FastGelu")], _biased),
}
