"""What each operator does to channels (see ``channel_flow``). A rule returns False where it cannot follow."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.channels.flow import BROADCASTING_OPSET, ChannelFlow, Rule
from onnxcomp.graph.channels.ids import NONE, along
from onnxcomp.graph.channels.shape_rules import FORM_RULES
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import clip_bounds, constant_operand, constant_value, given, trains
from onnxcomp.graph.weights.linear_op import summed_data_axis
from onnxcomp.operators import MICROSOFT, ONNX_DOMAINS
from onnxcomp.tensors import FLOAT_TYPES


def _ignore(flow: ChannelFlow, node: Node) -> bool:
    """Shape and Size read no values."""
    return True


def _keep(flow: ChannelFlow, node: Node) -> bool:
    """y = f(x) element by element, f(x / s) = f(x) / s."""
    return flow.give(node.outputs[0], flow.of(node.inputs[0]))


def _cast(flow: ChannelFlow, node: Node) -> bool:
    return node.attrs.get("to") in FLOAT_TYPES and _keep(flow, node)


def _dropout(flow: ChannelFlow, node: Node) -> bool:
    return not trains(node) and _keep(flow, node)


def _prelu(flow: ChannelFlow, node: Node) -> bool:
    flow.sets.fix(flow.of(node.inputs[1]), f"{flow.key(node)} takes it as a slope")
    return _keep(flow, node)


def _clip(flow: ChannelFlow, node: Node) -> bool:
    """Bounds of zero stay; others have to become one for each channel."""
    bounds = clip_bounds(node)
    if bounds is None:
        return False
    low, high = bounds
    numbers = flow.of(node.inputs[0])
    if (low or high) and not flow.bound(node, low, high, numbers):
        flow.sets.fix(numbers, f"{flow.key(node)} (Clip) cuts its channels off at one bound for all")
        return False
    return _keep(flow, node)


# --- products ----------------------------------------------------------------------------------------------


def _convolution(flow: ChannelFlow, node: Node) -> bool:
    held = flow.weight_of(node, 1)
    if held is None:
        return False
    rank = len(held[1].shape)
    kind = "conv" if node.op == "Conv" else "conv_transpose"
    made = flow.product(node, 1, 1 - rank, kind)
    if made is None:
        return False
    flow.factor(node, 2, made)
    return flow.give(node.outputs[0], made.reshape(-1, *(1,) * (rank - 2)))


def _gemm(flow: ChannelFlow, node: Node) -> bool:
    if flow.scope.opset < BROADCASTING_OPSET:
        return False
    if flow.weight_of(node, 1) is not None:
        made = flow.product(node, 1, summed_data_axis(node, 1), "linear")
    else:
        made = flow.product(node, 0, summed_data_axis(node, 0), "linear")
        made = None if made is None else made[:, None]
    if made is None:
        return False
    flow.factor(node, 2, made)
    return flow.give(node.outputs[0], made)


def _matmul(flow: ChannelFlow, node: Node) -> bool:
    if flow.weight_of(node, 1) is not None:
        made = flow.product(node, 1, -1, "linear")
        return made is not None and flow.give(node.outputs[0], made)
    if flow.weight_of(node, 0) is not None:
        if (flow.rank(node.inputs[1]) or 0) < 2:
            return False
        made = flow.product(node, 0, -2, "linear")
        return made is not None and flow.give(node.outputs[0], made[:, None])
    return _mixed(flow, node)


def _mixed(flow: ChannelFlow, node: Node) -> bool:
    """A product of two computed tensors keeps the channels of one along the axes that are not summed."""
    left, right = (flow.of(each) for each in node.inputs)
    if min(flow.rank(each) or 0 for each in node.inputs) < 2 or flow.is_followed(left) == flow.is_followed(right):
        return False
    numbers, summed = (left, -1) if flow.is_followed(left) else (right, -2)
    if numbers.ndim >= -summed and numbers.shape[summed] != 1:
        return False
    return flow.give(node.outputs[0], numbers)


def _recurrent(flow: ChannelFlow, node: Node) -> bool:
    made = flow.product(node, 1, -1, "recurrent")
    if made is None:
        return False
    flow.sets.fix(made, "a recurrent node makes it")
    for tensor in node.inputs[1:]:
        flow.sets.fix(flow.of(tensor), f"{flow.key(node)} reads it as a state")
    return True


# --- two operands ------------------------------------------------------------------------------------------


def _add(flow: ChannelFlow, node: Node) -> bool:
    """x + z couples their channels; a constant goes along as a bias does."""
    if flow.scope.opset < BROADCASTING_OPSET:
        return False
    index = constant_operand(node)
    if index is None:
        return _couple(flow, node)
    numbers = flow.of(node.inputs[1 - index])
    flow.factor(node, index, numbers)
    return flow.give(node.outputs[0], numbers)


def _couple(flow: ChannelFlow, node: Node) -> bool:
    """All operands get the same channels; constants among them have to be zero."""
    if flow.scope.opset < BROADCASTING_OPSET:
        return False
    operands = [each for each in node.inputs[1 if node.op == "Where" else 0 :] if not _is_zero(each)]
    together = NONE
    for index, tensor in enumerate(operands):
        numbers = flow.of(tensor)
        if index:
            flow.sets.join(together, numbers, f"{flow.key(node)} ({node.op}) joins it with what cannot be scaled")
        shape = np.broadcast_shapes(numbers.shape, together.shape)
        together = np.broadcast_to(numbers if numbers.ndim else together, shape) if index else numbers
    return flow.give(node.outputs[0], together)


def _is_zero(tensor: Any) -> bool:
    values = constant_value(tensor)
    return values is not None and not np.any(values)


def _multiply(flow: ChannelFlow, node: Node) -> bool:
    """x * z keeps the channels of the one that has some; by a constant vector, x without channels gets new ones."""
    if flow.scope.opset < BROADCASTING_OPSET:
        return False
    numbers = [flow.of(each) for each in node.inputs]
    followed = [flow.is_followed(each) for each in numbers]
    if all(followed) or (node.op == "Div" and followed[1]):
        return False
    if any(followed):
        return flow.give(node.outputs[0], numbers[followed.index(True)])
    return _gain(flow, node)


def _gain(flow: ChannelFlow, node: Node) -> bool:
    index = constant_operand(node)
    if index is None or (node.op == "Div" and index == 0):
        return False
    shape = tuple(node.inputs[index].shape)
    if sum(size > 1 for size in shape) != 1:
        return False
    made = flow.source(node, shape)
    flow.factor(node, index, made, 1 if node.op == "Div" else -1)
    return flow.give(node.outputs[0], made)


# --- normalizations ----------------------------------------------------------------------------------------


def _batch_norm(flow: ChannelFlow, node: Node) -> bool:
    """(x - m) f + b: the mean goes with the input's channels, the gain with both, b with the output's."""
    rank, gain = flow.rank(node.inputs[0]), given(node, 1)
    if trains(node) or node.attrs.get("spatial", 1) != 1 or rank is None or rank < 2:
        return False
    if not isinstance(gain, Constant) or len(gain.shape) != 1:
        return False
    read = along(flow.of(node.inputs[0]), 1 - rank, gain.shape[0])
    if read is None:
        return False
    made = flow.source(node, gain.shape)
    for index, numbers, power in (1, read, 1), (3, read, -1), (1, made, -1), (2, made, -1):
        flow.factor(node, index, numbers, power)
    return flow.give(node.outputs[0], made.reshape(-1, *(1,) * (rank - 2)))


def _normalized(gain_index: int, shift_index: int | None = None, *, is_channel: bool = False) -> Rule:
    """A normalization whose gain makes new channels. is_channel: gains go with axis 1, not with the last axes."""

    def rule(flow: ChannelFlow, node: Node) -> bool:
        gain, rank = given(node, gain_index), flow.rank(node.inputs[0])
        if not isinstance(gain, Constant) or (is_channel and (rank is None or len(gain.shape) != 1)):
            return False
        flow.stop(node)
        shape = (*gain.shape, *(1,) * ((rank or 2) - 2)) if is_channel else gain.shape
        made = flow.source(node, shape)
        for index in (gain_index, *([] if shift_index is None else [shift_index])):
            flow.factor(node, index, made.reshape(gain.shape))
        return flow.give(node.outputs[0], made)

    return rule


def _group_norm(flow: ChannelFlow, node: Node) -> bool:
    """Until opset 20 its gains go with groups of channels."""
    return flow.scope.opset >= 21 and _normalized(1, 2, is_channel=True)(flow, node)


_PLAIN: dict[str, Rule] = {
    **dict.fromkeys(["Shape", "Size"], _ignore),
    **dict.fromkeys(["Identity", "Relu", "LeakyRelu", "Neg", "Abs"], _keep),
    **dict.fromkeys(["Conv", "ConvTranspose"], _convolution),
    **dict.fromkeys(["LSTM", "GRU", "RNN"], _recurrent),
    **dict.fromkeys(["Add", "Sub"], _add),
    **dict.fromkeys(["Sum", "Max", "Min", "Mean", "Where"], _couple),
    **dict.fromkeys(["Mul", "Div"], _multiply),
    "Cast": _cast,
    "Dropout": _dropout,
    "PRelu": _prelu,
    "Clip": _clip,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _normalized(1, 2),
    "RMSNormalization": _normalized(1),
    "SimplifiedLayerNormalization": _normalized(1),
    "InstanceNormalization": _normalized(1, 2, is_channel=True),
    "GroupNormalization": _group_norm,
    **FORM_RULES,
}
RULES: dict[tuple[str, str], Rule] = {
    **{(domain, op): rule for op, rule in _PLAIN.items() for domain in ONNX_DOMAINS if domain is not None},
    (MICROSOFT, "SkipLayerNormalization"): _normalized(2, 3),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _normalized(2),
}
