"""What each operator does to channels that may be cut, from its specification (see ``dependency_flow``).

A rule returns False where it cannot follow; what the node reads then has to stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.channels.attention_rules import ATTENTION_RULES
from onnxcomp.graph.channels.dependency_flow import DependencyFlow, Rule, as_one, together
from onnxcomp.graph.channels.ids import Numbers, along
from onnxcomp.graph.channels.product_rules import FUSED_RULES, PRODUCT_RULES
from onnxcomp.graph.channels.shape_rules import FORM_RULES
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import given, ints, is_onnx, named_outputs, trains
from onnxcomp.operators import MICROSOFT, ONNX_DOMAINS

# --- element by element ----------------------------------------------------------------------------------------------


def _keep(flow: DependencyFlow, node: Node) -> bool:
    """y = f(x) element by element."""
    numbers = flow.of(node.inputs[0])
    return all(flow.give(out, numbers) for out in named_outputs(node))


def _dropout(flow: DependencyFlow, node: Node) -> bool:
    return not trains(node) and _keep(flow, node)


def _broadcast(flow: DependencyFlow, node: Node) -> bool:
    """All operands have the same channels, but for those of one element along an axis; constants go along."""
    numbers = together(flow, node, range(len(node.inputs)))
    return numbers is not None and flow.give(node.outputs[0], numbers)


def _biased(flow: DependencyFlow, node: Node) -> bool:
    """f(x + b)"""
    numbers = together(flow, node, range(min(2, len(node.inputs))))
    return numbers is not None and flow.give(node.outputs[0], numbers)


# --- normalizations, and what goes along one axis --------------------------------------------------------------------


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
    return math.prod(numbers.shape[first:]) == 1 and all(flow.give(out, numbers) for out in named_outputs(node))


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
    made = as_one(flow, node, parts, 0)
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
    return all(_picked(flow, axes, numbers, reader) for reader in node.outputs[0].outputs)


def _picked(flow: DependencyFlow, axes: list[int], numbers: Numbers, reader: Node) -> bool:
    """Whether a node reads sizes of axes without channels only."""
    if all(numbers.shape[axis] == 1 for axis in axes):
        return True
    if is_onnx(reader, "Cast", "Identity"):
        cast = reader.outputs[0]
        return not flow.graph.is_output(cast) and all(_picked(flow, axes, numbers, each) for each in cast.outputs)
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
    **PRODUCT_RULES,
    **dict.fromkeys(["ReduceProd", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"], FORM_RULES["ReduceSum"]),
    **dict.fromkeys(UNARY, _keep),
    **dict.fromkeys(BROADCASTING, _broadcast),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"], _layer_norm),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax"], _softmax),
    **dict.fromkeys(["CumSum", "ArgMax", "ArgMin", "TopK", "LpNormalization"], _along_axis),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear"], _quantize),
    "Dropout": _dropout,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "MaxPool": _max_pool,
    "DepthToSpace": _depth_to_space,
    "Shape": _shape_of,
}
RULES: dict[tuple[str, str], Rule] = {
    **{(domain, op): rule for op, rule in _PLAIN.items() for domain in ONNX_DOMAINS if domain is not None},
    **ATTENTION_RULES,
    **{(MICROSOFT, op): rule for op, rule in FUSED_RULES.items()},
    **dict.fromkeys([(MICROSOFT, "Gelu"), (MICROSOFT, "QuickGelu")], _keep),
    **dict.fromkeys([(MICROSOFT, "BiasGelu"), (MICROSOFT, "FastGelu")], _biased),
}
