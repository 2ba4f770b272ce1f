"""What operators that move, pool or join elements do to channels (see ``following``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.following import Following
from onnxcomp.graph.channels.ids import Numbers, padded, reformed
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_value, given, ints


def channels_only(numbers: Numbers, rank: int) -> bool:
    """Whether nothing changes along the axes behind that of a convolution's channels."""
    return numbers.ndim <= rank and math.prod(padded(numbers, rank).shape[2:]) == 1


def _pool(flow: Following, node: Node) -> bool:
    return _pooled(flow, node, 2 + len(node.attrs.get("kernel_shape") or ()))


def _global_pool(flow: Following, node: Node) -> bool:
    return _pooled(flow, node, flow.rank(node.inputs[0]) or 0)


def _pooled(flow: Following, node: Node, rank: int) -> bool:
    numbers = flow.of(node.inputs[0])
    return rank > 2 and channels_only(numbers, rank) and flow.give(node.outputs[0], numbers)


def _pad(flow: Following, node: Node) -> bool:
    """With zeros, or with values of the tensor, along axes without channels."""
    numbers = flow.spread(node.inputs[0])
    stated = given(node, 2)
    value = node.attrs.get("value", 0.0) if stated is None else constant_value(stated)
    pads = node.attrs.get("pads") if given(node, 1) is None else ints(given(node, 1))
    if numbers is None or value is None or pads is None:
        return False
    if flow.needs_zeros and node.attrs.get("mode", "constant") == "constant" and np.any(np.asarray(value, np.float64)):
        return False
    axes = range(numbers.ndim) if given(node, 3) is None else ints(given(node, 3))
    if axes is None or len(pads) != 2 * len(axes):
        return False
    if any((pads[i] or pads[i + len(axes)]) and numbers.shape[axis] != 1 for i, axis in enumerate(axes)):
        return False
    return flow.give(node.outputs[0], numbers)


def _resize(flow: Following, node: Node) -> bool:
    """Along axes without channels."""
    numbers = flow.spread(node.inputs[0])
    old, new = flow.shapes.shape(node.inputs[0]), flow.shapes.shape(node.outputs[0])
    if numbers is None or old is None or new is None or len(old) != len(new):
        return False
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    kept = all(numbers.shape[i] == 1 or (old[i] is not None and old[i] == new[i]) for i in range(len(old)))
    return kept and flow.states_sizes(node, 3, "", numbers) and flow.give(node.outputs[0], numbers)


def _reshape(flow: Following, node: Node) -> bool:
    old, new = flow.shapes.shape(node.inputs[0]), flow.shapes.shape(node.outputs[0])
    numbers = flow.of(node.inputs[0])
    made = numbers if not numbers.ndim else None
    if made is None and old is not None and new is not None and numbers.ndim <= len(old):
        made = reformed(numbers, old, new)
    return made is not None and flow.states_sizes(node, 1, "shape", made) and flow.give(node.outputs[0], made)


def _axes(node: Node) -> list[int] | None:
    """The axes that a node states as an attribute or as a constant."""
    stated = given(node, 1)
    found = node.attrs.get("axes") if stated is None else ints(stated)
    return None if found is None else [int(each) for each in found]


def _squeeze(flow: Following, node: Node) -> bool:
    numbers, axes = flow.spread(node.inputs[0]), _axes(node)
    if numbers is None or axes is None or any(numbers.shape[axis] != 1 for axis in axes):
        return _reshape(flow, node)
    return flow.give(node.outputs[0], np.squeeze(numbers, tuple(axes)))


def _unsqueeze(flow: Following, node: Node) -> bool:
    numbers, axes = flow.spread(node.inputs[0]), _axes(node)
    if numbers is None or axes is None:
        return False
    return flow.give(node.outputs[0], np.expand_dims(numbers, tuple(axes)))


def _transpose(flow: Following, node: Node) -> bool:
    numbers = flow.spread(node.inputs[0])
    if numbers is None:
        return False
    order = node.attrs.get("perm") or list(range(numbers.ndim))[::-1]
    return flow.give(node.outputs[0], numbers.transpose(order))


def _reduce(flow: Following, node: Node) -> bool:
    """Over axes without channels."""
    numbers, axes = flow.spread(node.inputs[0]), _axes(node)
    if numbers is None or (axes is None and given(node, 1) is not None):
        return False
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return flow.give(node.outputs[0], numbers)
    over = tuple(axes or range(numbers.ndim))
    if any(numbers.shape[axis] != 1 for axis in over):
        return False
    keeps = node.attrs.get("keepdims", 1)
    return flow.give(node.outputs[0], numbers if keeps else np.squeeze(numbers, over))


def _slice(flow: Following, node: Node) -> bool:
    numbers = flow.spread(node.inputs[0])
    if numbers is None:
        return False
    if flow.scope.opset < 10:
        starts, ends, axes = (node.attrs.get(name) for name in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (ints(given(node, index)) for index in range(1, 5))
        if any(given(node, i) is not None and each is None for i, each in ((3, axes), (4, steps))):
            return False
    axes = list(range(len(starts or ()))) if axes is None else axes
    for position, axis in enumerate(axes):
        if numbers.shape[axis] == 1:
            continue
        if starts is None or ends is None:
            return False
        step = 1 if steps is None else steps[position]
        if not flow.takes_slice(node, position, axis, numbers, step):
            return False
        numbers = _sliced(numbers, axis, starts[position], ends[position], step)
    return flow.give(node.outputs[0], numbers)


def _sliced(numbers: Numbers, axis: int, start: int, end: int, step: int) -> Numbers:
    """As numpy does, but that an end before the first element, -1 for instance, can be stated as a very small one."""
    size = numbers.shape[axis]
    last = None if step < 0 and end < -size else end
    where: list[Any] = [slice(None)] * numbers.ndim
    where[axis] = slice(start, last, step)
    part: Numbers = numbers[tuple(where)]
    return part


def _split(flow: Following, node: Node) -> bool:
    numbers, axis = flow.spread(node.inputs[0]), int(node.attrs.get("axis", 0))
    if numbers is None:
        return False
    if numbers.shape[axis] == 1:
        return _give_each(flow, node, [numbers] * len(node.outputs))
    shapes = [flow.shapes.shape(out) for out in node.outputs]
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    known = [each for each in sizes if each is not None]
    if len(known) < len(sizes) or sum(known) != numbers.shape[axis]:
        return False
    parts = np.split(numbers, np.cumsum(known)[:-1], axis)
    return flow.takes_parts(node, axis, parts) and _give_each(flow, node, parts)


def _give_each(flow: Following, node: Node, parts: Sequence[Numbers]) -> bool:
    for out, part in zip(node.outputs, parts, strict=True):
        flow.give(out, part)
    return True


def _gather(flow: Following, node: Node) -> bool:
    data, indices = node.inputs
    numbers, axis, rank = flow.spread(data), int(node.attrs.get("axis", 0)), flow.rank(indices)
    if numbers is None or rank is None or not numbers.ndim:
        return False
    axis %= numbers.ndim
    positions = constant_value(indices)
    if numbers.shape[axis] == 1:
        positions = np.zeros((1,) * rank, np.int64)
    if positions is None or not positions.size or not flow.takes_picks(node, axis, numbers):
        return False
    return flow.give(node.outputs[0], np.take(numbers, positions, axis, mode="wrap"))


def _concat(flow: Following, node: Node) -> bool:
    """Along an axis with channels they follow each other; along another they have to be the same."""
    parts = [flow.spread(each) for each in node.inputs]
    known = [each for each in parts if each is not None]
    if len(known) < len(parts) or "axis" not in node.attrs or not known[0].ndim:
        return False
    axis = int(node.attrs["axis"]) % known[0].ndim
    follow = any(each.shape[axis] > 1 for each in known) or all(each.size == 1 for each in known)
    if not follow:
        for each in known[1:]:
            flow.sets.join(known[0], each, f"{flow.key(node)} (Concat) joins it with what cannot be scaled")
        return flow.give(node.outputs[0], max(known, key=lambda each: each.size))
    sizes = [(flow.shapes.shape(each) or ())[axis] for each in node.inputs]
    if any(size is None for size in sizes):
        return False
    return flow.give(node.outputs[0], _joined(known, [int(size or 0) for size in sizes], axis))


def _joined(parts: list[Numbers], sizes: list[int], axis: int) -> Numbers:
    shape = list(np.broadcast_shapes(*[(*each.shape[:axis], 1, *each.shape[axis + 1 :]) for each in parts]))
    spread = []
    for numbers, size in zip(parts, sizes, strict=True):
        shape[axis] = size
        spread.append(np.broadcast_to(numbers, shape))
    return np.concatenate(spread, axis)


def _expand(flow: Following, node: Node) -> bool:
    numbers = flow.of(node.inputs[0])
    return flow.states_sizes(node, 1, "", numbers) and flow.give(node.outputs[0], numbers)


FORM_RULES: dict[str, Callable[[Following, Node], bool]] = {
    **dict.fromkeys(["MaxPool", "AveragePool", "LpPool"], _pool),
    **dict.fromkeys(["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"], _global_pool),
    **dict.fromkeys(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"], _reduce),
    **dict.fromkeys(["Reshape", "Flatten"], _reshape),
    **dict.fromkeys(["Resize", "Upsample"], _resize),
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Expand": _expand,
}
