"""How far a window reaches beyond its input, by ``auto_pad`` or ``pads``; and the operator Pad."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

Sizes = Sequence[int]


def window_pads(call: Call, extents: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes) -> tuple[Sizes, Sizes]:
    """Elements to add before and after each spatial axis."""
    mode, count = call.get("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        pads = call.get("pads") or [0] * 2 * count
        return pads[:count], pads[count:]
    if mode == "VALID":
        return [0] * count, [0] * count
    spans = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilations, strict=True)]
    reached = [
        max((math.ceil(extent / stride) - 1) * stride + span - extent, 0)
        for extent, stride, span in zip(extents, strides, spans, strict=True)
    ]
    less, more = [each // 2 for each in reached], [each - each // 2 for each in reached]
    return (more, less) if mode == "SAME_LOWER" else (less, more)


def torch_pads(before: Sizes, after: Sizes) -> list[int]:
    """The pads as torch takes them: by axis, the last first."""
    return [each for pair in zip(reversed(before), reversed(after), strict=True) for each in pair]


def padded(x: Tensor, before: Sizes, after: Sizes, value: float = 0.0) -> Tensor:
    """The last axes with constants around them; as it is where there is nothing to add."""
    return F.pad(x, torch_pads(before, after), value=value) if any(before) or any(after) else x


@rule("Pad", host=(1, 3))
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    stated = call.get("pads", call.get("paddings")) if pads is None else pads.tolist()
    count = len(stated) // 2
    chosen = range(count) if axes is None else [each % x.dim() for each in axes.tolist()]
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = stated[place], stated[place + count]
    mode = call.get("mode", "constant")
    if mode != "constant":
        return _repeating(x, before, after, mode)
    if call.opset < 11:
        return padded(x, before, after, call.get("value", 0.0))
    if value is not None and value.requires_grad:
        inside = F.pad(torch.ones_like(x), torch_pads(before, after))
        return padded(x, before, after) + value * (1 - inside)
    return padded(x, before, after, 0.0 if value is None else value.item())


def _repeating(x: Tensor, before: Sizes, after: Sizes, mode: str) -> Tensor:
    """Axis by axis, the elements that the new places mirror, wrap around to or lie next to."""
    for axis, (less, more) in enumerate(zip(before, after, strict=True)):
        if less or more:
            count = x.shape[axis]
            places = torch.arange(-less, count + more, device=x.device)
            x = x.index_select(axis, _repeated(places, count, mode))
    return x


def _repeated(places: Tensor, count: int, mode: str) -> Tensor:
    if mode == "edge":
        return places.clamp(0, count - 1)
    if mode == "wrap":
        return places % count
    period = max(2 * (count - 1), 1)
    folded = places % period
    return torch.where(folded < count, folded, period - folded)
