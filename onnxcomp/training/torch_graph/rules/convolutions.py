"""Convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.padding import padded, window_pads

FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
BACKWARD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@rule("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return convolution(call, x, w, b)


def convolution(call: Call, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x: (batch, channels, *extents), w: (outputs, channels / group, *kernel)."""
    rank = w.dim() - 2
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = window_pads(call, x.shape[2:], w.shape[2:], strides, dilations)
    if list(before) != list(after):
        x, before = padded(x, before, after), [0] * rank
    return FORWARD[rank](x, w, b, strides, before, dilations, call.get("group", 1))


@rule("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = w.dim() - 2
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    extra = call.get("output_padding") or [0] * rank
    kernel = w.shape[2:]
    spans = [
        stride * (size - 1) + (width - 1) * gap + 1
        for size, stride, width, gap in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    before, after = _cut(call, x.shape[2:], spans, strides, extra)
    group = call.get("group", 1)
    if before == after and all(each >= 0 for each in before) and not any(extra):
        return BACKWARD[rank](x, w, b, strides, before, 0, group, dilations)
    y = BACKWARD[rank](x, w, None, strides, 0, 0, group, dilations)
    y = padded(y, [-each for each in before], [more - each for each, more in zip(after, extra, strict=True)])
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _cut(
    call: Call, extents: Sequence[int], spans: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Elements to take off before and after each axis of the full result."""
    shape, mode, rank = call.get("output_shape"), call.get("auto_pad", "NOTSET"), len(spans)
    if shape is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * rank if mode == "VALID" else call.get("pads") or [0] * 2 * rank
        return list(pads[:rank]), list(pads[rank:])
    wanted = shape[-rank:] if shape is not None else [a * b for a, b in zip(extents, strides, strict=True)]
    totals = [span + more - size for span, more, size in zip(spans, extra, wanted, strict=True)]
    less, more = [each // 2 for each in totals], [each - each // 2 for each in totals]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


@rule("Col2Im", host=(1, 2))
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    size, kernel = image.tolist(), block.tolist()
    rank = len(size)
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    pads = call.get("pads") or [0] * 2 * rank
    full = [extent + pads[axis] + pads[axis + rank] for axis, extent in enumerate(size)]
    channels = x.shape[1] // math.prod(kernel)
    places = _window_places(full, kernel, strides, dilations, x.device)
    flat = x.reshape(x.shape[0], channels, -1)
    y = flat.new_zeros(x.shape[0], channels, math.prod(full)).index_add(2, places, flat)
    y = y.reshape(x.shape[0], channels, *full)
    return padded(y, [-each for each in pads[:rank]], [-each for each in pads[rank:]])


def _window_places(
    full: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], device: torch.device
) -> Tensor:
    """Flat places in the image of every element of every window: kernel axes first, then windows."""
    places = torch.zeros((), dtype=torch.int64, device=device)
    for axis, extent in enumerate(full):
        reach = torch.arange(kernel[axis], device=device) * dilations[axis]
        starts = torch.arange(0, extent - (kernel[axis] - 1) * dilations[axis], strides[axis], device=device)
        rank = len(full)
        shape = [1] * 2 * rank
        shape[axis], shape[axis + rank] = len(reach), len(starts)
        places = places * extent + (reach[:, None] + starts).reshape(shape)
    return places.flatten()


@rule("DeformConv")
def deform_conv(
    call: Call, x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Each tap of the kernel reads where its offset says, between pixels, zero outside. Two spatial axes."""
    strides, gaps = call.get("strides") or [1, 1], call.get("dilations") or [1, 1]
    pads, groups = call.get("pads") or [0] * 4, call.get("offset_group", 1)
    batch, _, height, width = x.shape
    rows, columns = offset.shape[2:]
    taps = w.shape[2] * w.shape[3]
    shifts = offset.reshape(batch * groups, taps, 2, rows, columns)
    grid = x.reshape(batch * groups, -1, height, width)
    down = torch.arange(rows, device=x.device).to(x.dtype)[:, None] * strides[0] - pads[0]
    right = torch.arange(columns, device=x.device).to(x.dtype) * strides[1] - pads[1]
    read = []
    for tap in range(taps):
        y = down + tap // w.shape[3] * gaps[0] + shifts[:, tap, 0]
        z = right + tap % w.shape[3] * gaps[1] + shifts[:, tap, 1]
        scaled = torch.stack([2 * z / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
        read.append(F.grid_sample(grid, scaled, align_corners=True))
    columns_read = torch.stack(read, 2).reshape(batch, groups, -1, taps, rows, columns)
    if mask is not None:
        columns_read = columns_read * mask.reshape(batch, groups, 1, taps, rows, columns)
    group = call.get("group", 1)
    parts = columns_read.reshape(batch, group, -1, rows * columns)
    made = torch.matmul(w.reshape(group, w.shape[0] // group, -1), parts).reshape(batch, -1, rows, columns)
    return made if b is None else made + b.reshape(-1, 1, 1)
