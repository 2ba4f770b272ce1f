"""Operators that move elements without computing on them, and those that speak of shapes."""

from __future__ import annotations

import math

import torch

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule


@rule("Reshape", host=(1,))
def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    stated = call.get("shape") if shape is None else shape.tolist()
    if not call.get("allowzero", 0):
        stated = [x.shape[axis] if size == 0 else size for axis, size in enumerate(stated)]
    return x.reshape(stated)


@rule("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@rule("Squeeze", host=(1,))
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    stated = call.get("axes") if axes is None else axes.tolist()
    if stated is None:
        return x.squeeze()
    wrong = [axis for axis in stated if x.shape[axis] != 1]
    if wrong:
        raise ValueError(f"axis {wrong[0]} has {x.shape[wrong[0]]} elements")
    return x.squeeze(tuple(stated))


@rule("Unsqueeze", host=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    stated = call.get("axes") if axes is None else axes.reshape(-1).tolist()
    rank = x.dim() + len(stated)
    for axis in sorted(each % rank for each in stated):
        x = x.unsqueeze(axis)
    return x


@rule("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or list(reversed(range(x.dim()))))


@rule("Expand", host=(1,))
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


@rule("Tile", host=(1, 2))
def tile(call: Call, x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
    if axis is None:
        return x.repeat(repeats.tolist())
    counts = [1] * x.dim()
    counts[int(axis)] = int(repeats)
    return x.repeat(counts)


@rule("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.get("axis", 1))


@rule("Split", host=(1,))
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    stated = call.get("split") if sizes is None else sizes.tolist()
    if stated is None:
        parts = call.get("num_outputs", call.outputs)
        size = math.ceil(x.shape[axis] / parts)
        stated = [min(size, max(x.shape[axis] - place * size, 0)) for place in range(parts)]
    return tuple(x.split(stated, axis))


@rule("Slice", host=(1, 2, 3, 4))
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    if starts is None or ends is None:
        first, last, chosen, gaps = call.get("starts"), call.get("ends"), call.get("axes"), None
    else:
        first, last = starts.tolist(), ends.tolist()
        chosen, gaps = (None if each is None else each.tolist() for each in (axes, steps))
    chosen = range(len(first)) if chosen is None else chosen
    gaps = [1] * len(first) if gaps is None else gaps
    for axis, start, end, step in zip(chosen, first, last, gaps, strict=True):
        x = _sliced(x, axis % x.dim(), start, end, step)
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """torch takes no negative steps: the axis is turned around for them."""
    picked = range(*slice(start, end, step).indices(x.shape[axis]))
    if not picked:
        return x.narrow(axis, 0, 0)
    whole = [slice(None)] * axis
    if step > 0:
        return x[(*whole, slice(picked[0], picked[-1] + 1, step))]
    return x[(*whole, slice(picked[-1], picked[0] + 1, -step))].flip(axis)


@rule("Shape", discrete=True)
def shape_of(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[slice(call.get("start", 0), call.get("end"))], dtype=torch.int64)


@rule("Size", discrete=True)
def size_of(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@rule("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    block = call.get("blocksize")
    left = channels // block**2
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(batch, block, block, left, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, left, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, left, height * block, width * block)


@rule("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    block = call.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = x.reshape(batch, channels, height // block, block, width // block, block).permute(order)
    return parts.reshape(batch, channels * block**2, height // block, width // block)


@rule("Trilu", host=(1,))
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if call.get("upper", 1) else torch.tril(x, offset)


@rule("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    return reversed_within(x, lengths, call.get("time_axis", 0), call.get("batch_axis", 1))


def reversed_within(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """Each sequence of the batch turned around within its length."""
    steps = torch.arange(x.shape[time_axis], device=x.device)[:, None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (time, batch)
    shape = [1] * x.dim()
    shape[time_axis], shape[batch_axis] = places.shape
    ordered = places if time_axis < batch_axis else places.T
    return torch.gather(x, time_axis, ordered.reshape(shape).expand(x.shape))


def _once_trained(call: Call) -> bool:
    return call.opset < 7 and not call.get("is_test", 0)


@rule("Dropout", random=True)
def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    rate = call.get("ratio", 0.5) if ratio is None else float(ratio)
    trains = training is not None and bool(training) if call.opset >= 12 else _once_trained(call)
    if not trains or rate == 0:
        return x, torch.ones_like(x, dtype=torch.bool) if call.outputs > 1 else x
    kept = torch.rand(x.shape, generator=call.generator(), device=x.device) >= rate
    return x * kept / (1 - rate), kept
