"""Pooling: the largest, the mean or the norm of each window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.padding import padded, window_pads
from onnxcomp.training.torch_graph.values import limits

LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
Sizes = Sequence[int]


@dataclass(frozen=True)
class Windows:
    """kernel, strides, dilations: by spatial axis. before, after: elements around the input. beyond: what the last
    windows of ``ceil_mode`` reach further, which counts for nothing."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    before: Sizes
    after: Sizes
    beyond: Sizes


def windows_of(call: Call, x: Tensor) -> Windows:
    """The windows that a pooling node reads of its input."""
    kernel = call.get("kernel_shape")
    strides = call.get("strides") or [1] * len(kernel)
    dilations = call.get("dilations") or [1] * len(kernel)
    before, after = window_pads(call, x.shape[2:], kernel, strides, dilations)
    beyond = [0] * len(kernel)
    if call.get("ceil_mode", 0):
        for axis, extent in enumerate(x.shape[2:]):
            span, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
            count = math.ceil((extent + before[axis] + after[axis] - span) / stride) + 1
            if (count - 1) * stride >= extent + before[axis]:  # the last one would start beyond the input
                count -= 1
            beyond[axis] = max((count - 1) * stride + span - extent - before[axis] - after[axis], 0)
    return Windows(kernel, strides, dilations, before, after, beyond)


def unfolded(x: Tensor, windows: Windows) -> Tensor:
    """(batch, channels, *counts, elements): the elements of each window of an input that is padded already."""
    for axis, (size, stride, gap) in enumerate(zip(windows.kernel, windows.strides, windows.dilations, strict=True)):
        x = x.unfold(axis + 2, (size - 1) * gap + 1, stride)[..., ::gap]
    return x.flatten(-len(windows.kernel))


@rule("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    w = windows_of(call, x)
    rank, dtype = len(w.kernel), x.dtype
    if not dtype.is_floating_point:
        x = x.to(torch.float64)
    before = list(w.before)
    ends = [a + b for a, b in zip(w.after, w.beyond, strict=True)]
    if before != ends or any(2 * pad > size for pad, size in zip(before, w.kernel, strict=True)):
        lowest = limits(x.dtype)[0] if dtype.is_floating_point else limits(dtype)[0]
        y = padded(x, before, ends, -math.inf if dtype.is_floating_point else lowest)
        shift, before = before, [0] * rank
    else:
        y, shift = x, [0] * rank
    if call.outputs < 2:
        return LARGEST[rank](y, w.kernel, w.strides, before, w.dilations).to(dtype)
    made, places = LARGEST[rank](y, w.kernel, w.strides, before, w.dilations, return_indices=True)
    return made.to(dtype), _flat_places(places, x, y, shift, bool(call.get("storage_order", 0)))


def _flat_places(places: Tensor, x: Tensor, y: Tensor, shift: Sizes, by_columns: bool) -> Tensor:
    """Places in the whole input of places in each plane of the padded one."""
    flat, factor = torch.zeros_like(places), 1
    extents, rank = x.shape[2:], x.dim() - 2
    order = list(range(rank)) if by_columns else list(reversed(range(rank)))
    along: dict[int, Tensor] = {}
    for axis in reversed(range(rank)):
        along[axis] = places % y.shape[axis + 2] - shift[axis]
        places = places // y.shape[axis + 2]
    for axis in order:
        flat, factor = flat + along[axis] * factor, factor * extents[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return flat + planes * factor


@rule("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    return mean_of_windows(call, x)


def mean_of_windows(call: Call, x: Tensor) -> Tensor:
    w = windows_of(call, x)
    counts_pads = bool(call.get("count_include_pad", 0))
    plain = not any(w.beyond) and set(w.dilations) == {1} and list(w.before) == list(w.after)
    if plain and all(2 * pad <= size for pad, size in zip(w.before, w.kernel, strict=True)):
        kwargs = {"count_include_pad": counts_pads}
        return MEAN[len(w.kernel)](x, w.kernel, w.strides, list(w.before), **kwargs)
    counted = padded(torch.ones_like(x[:1, :1]), w.before, w.after, float(counts_pads))
    counts = unfolded(padded(counted, [0] * len(w.kernel), w.beyond), w).sum(-1)
    ends = [a + b for a, b in zip(w.after, w.beyond, strict=True)]
    return unfolded(padded(x, w.before, ends), w).sum(-1) / counts


@rule("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    w = windows_of(call, x)
    ends = [a + b for a, b in zip(w.after, w.beyond, strict=True)]
    return torch.linalg.vector_norm(unfolded(padded(x, w.before, ends), w), call.get("p", 2), -1)


@rule("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@rule("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    flat = x.flatten(2).max(-1).values  # the first of equals, as in MaxPool
    return flat.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


@rule("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, call.get("p", 2), tuple(range(2, x.dim())), keepdim=True)


@rule("MaxUnpool", host=(2,))
def max_unpool(call: Call, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    strides, pads = call.get("strides") or [1] * rank, call.get("pads") or [0] * 2 * rank
    sizes = [
        (extent - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[axis + rank]
        for axis, extent in enumerate(x.shape[2:])
    ]
    least = [*x.shape[:2], *sizes]
    wanted = least if shape is None else shape.tolist()
    flat = x.new_zeros(math.prod(least)).scatter(0, places.flatten(), x.flatten()).reshape(least)
    return padded(flat, [0] * len(least), [a - b for a, b in zip(wanted, least, strict=True)])
