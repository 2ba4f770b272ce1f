"""Pictures in another size, or read at given places.

Each axis by itself: the new elements are sums of old ones, ``y = W x``, with W (new, old) made once for the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

Floats = NDArray[np.float64]
NEAREST: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class AxisResize:
    """One axis from ``old`` to ``new`` elements. begin, end: of the crop, as shares of the axis."""

    old: int
    new: int
    scale: float
    begin: float = 0.0
    end: float = 1.0

    def coordinates(self, mode: str) -> Floats:
        """Where the new elements lie among the old ones."""
        at: Floats = np.arange(self.new, dtype=np.float64)
        last = self.old - 1
        if mode == "half_pixel" or (mode == "pytorch_half_pixel" and self.new > 1):
            return (at + 0.5) / self.scale - 0.5
        if mode == "half_pixel_symmetric":
            share = self.new / (self.scale * self.old)
            return self.old / 2 * (1 - share) + (at + 0.5) / self.scale - 0.5
        if mode == "asymmetric":
            return at / self.scale
        if mode == "align_corners":
            return at * last / max(self.new - 1, 1)
        if mode == "tf_crop_and_resize":
            if self.new == 1:
                return np.array([0.5 * (self.begin + self.end) * last])
            return self.begin * last + at * (self.end - self.begin) * last / (self.new - 1)
        return np.zeros(self.new)


@rule("Resize", "Upsample", host=(1, 2, 3))
def resize(call: Call, x: Tensor, *rest: Tensor | None) -> Tensor:
    axes = [each % x.dim() for each in call.get("axes") or range(x.dim())]
    mode = call.get("coordinate_transformation_mode", "half_pixel")
    if call.opset < 11:
        mode = "asymmetric"
    crop = mode == "tf_crop_and_resize"
    for axis, each in zip(axes, _sizes(call, x, axes, rest), strict=True):
        if each.new != each.old or each.scale != 1 or crop:
            x = _along(call, x, axis, each, mode)
    return x


def _sizes(call: Call, x: Tensor, axes: Sequence[int], rest: Sequence[Tensor | None]) -> list[AxisResize]:
    """What becomes of each of the axes."""
    if call.opset < 11:
        stated = call.get("scales") if call.node.op_type == "Upsample" and call.opset < 9 else _listed(rest[0])
        pairs = zip(axes, stated or (), strict=True)
        return [AxisResize(x.shape[axis], int(x.shape[axis] * each), each) for axis, each in pairs]
    region, scales, sizes = ([_listed(each) for each in rest] + [None] * 3)[:3]
    old = [x.shape[axis] for axis in axes]
    if sizes:
        new, factors = _fitted(call.get("keep_aspect_ratio_policy", "stretch"), old, [int(each) for each in sizes])
    else:
        factors = [float(each) for each in scales or ()]
        new = [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)]
    count = len(axes)
    starts, ends = (region[:count], region[count:]) if region else ([0.0] * count, [1.0] * count)
    return [AxisResize(*each) for each in zip(old, new, factors, starts, ends, strict=True)]


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None or not values.numel() else values.tolist()


def _fitted(policy: str, old: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    """The new sizes and factors; all by one factor unless the sizes stretch the picture."""
    factors = [new / size for size, new in zip(old, sizes, strict=True)]
    if policy == "stretch":
        return list(sizes), factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(factor * size + 0.5) for size in old], [factor] * len(old)


def _along(call: Call, x: Tensor, axis: int, each: AxisResize, mode: str) -> Tensor:
    key = (each, mode, x.dtype, x.device)
    if key not in call.kept:
        call.kept[key] = _prepared(call, each, mode, x)
    places, matrix, outside = call.kept[key]
    if matrix is None:
        y = x.index_select(axis, places)
    else:
        wide = x if x.dtype.is_floating_point else x.to(matrix.dtype)
        y = torch.matmul(wide.movedim(axis, -1), matrix).movedim(-1, axis)
        y = y if x.dtype.is_floating_point else y.round().to(x.dtype)
    if outside is None:
        return y
    shape = [1] * x.dim()
    shape[axis] = len(outside)
    return torch.where(outside.reshape(shape), torch.full_like(y[:1], call.get("extrapolation_value", 0.0)), y)


def _prepared(call: Call, each: AxisResize, mode: str, x: Tensor) -> tuple[Any, Any, Any]:
    """Places of the nearest elements, or the matrix (old, new); and which new elements a crop has from outside."""
    at = each.coordinates(mode)
    outside = (at < 0) | (at > each.old - 1)
    beyond = torch.from_numpy(outside).to(x.device) if mode == "tf_crop_and_resize" and outside.any() else None
    if call.get("mode", "nearest") == "nearest":
        name = call.get("nearest_mode", "round_prefer_floor") if call.opset >= 11 else "floor"
        nearest = NEAREST[name](at.astype(np.float32).astype(np.float64))
        return torch.from_numpy(np.clip(nearest, 0, each.old - 1).astype(np.int64)).to(x.device), None, beyond
    matrix = _weights(call, at, each)
    dtype = x.dtype if x.dtype.is_floating_point else torch.float64
    return None, torch.from_numpy(matrix.T.copy()).to(x.device, dtype), beyond


def _weights(call: Call, at: Floats, each: AxisResize) -> Floats:
    """(new, old): the share of each old element; those beyond the ends count as the last ones, or not at all."""
    cubic = call.get("mode") == "cubic"
    shrink = min(each.scale, 1.0) if call.get("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / shrink)
    near = np.floor(at)[:, None] + np.arange(-reach, reach + 2)
    distance = np.abs(near - at[:, None]) * shrink
    share = _cubic(distance, call.get("cubic_coeff_a", -0.75)) if cubic else np.clip(1 - distance, 0, 1)
    if call.get("exclude_outside", 0):
        share = np.where((near < 0) | (near >= each.old), 0.0, share)
    share /= share.sum(1, keepdims=True)
    matrix = np.zeros((each.new, each.old))
    rows = np.broadcast_to(np.arange(each.new)[:, None], near.shape)
    np.add.at(matrix, (rows, np.clip(near, 0, each.old - 1).astype(np.int64)), share)
    return matrix


def _cubic(distance: Floats, a: float) -> Floats:
    """Keys' kernel, https://ieeexplore.ieee.org/document/1163711."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.where(distance <= 1, inner, np.where(distance < 2, outer, 0.0))


@rule("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "linear"), call.get("mode"))
    padding = call.get("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode or "bilinear", padding, align_corners=bool(call.get("align_corners", 0)))


@rule("AffineGrid", host=(1,))
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    return F.affine_grid(theta, size.tolist(), align_corners=bool(call.get("align_corners", 0)))


@rule("RoiAlign")
def roi_align(call: Call, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """The mean or maximum of points between pixels in each cell of a region; (regions, channels, height, width)."""
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    half = call.opset >= 16 and call.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    made = []
    for region, index in zip(rois, batch.tolist(), strict=True):
        left, top, right, bottom = (region * call.get("spatial_scale", 1.0) - (0.5 if half else 0.0)).unbind()
        tall, wide = bottom - top, right - left
        if not half:
            tall, wide = tall.clamp(min=1), wide.clamp(min=1)
        down = _points(top, tall, height, call.get("sampling_ratio", 0))
        across = _points(left, wide, width, call.get("sampling_ratio", 0))
        made.append(_cells(call, x[index], down, across))
    return torch.stack(made) if made else x.new_zeros(0, x.shape[1], height, width)


def _points(start: Tensor, length: Tensor, cells: int, ratio: int) -> Tensor:
    """(cells, points): evenly over each cell."""
    count = ratio or math.ceil(float(length) / cells)
    inside = (torch.arange(count, dtype=start.dtype, device=start.device) + 0.5) / count
    return start + (torch.arange(cells, device=start.device)[:, None] + inside) * length / cells


def _cells(call: Call, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """x: (channels, height, width) -> (channels, cells, cells)."""
    rows, columns = (_linear(points, size) for points, size in ((down, x.shape[1]), (across, x.shape[2])))
    if call.get("mode", "avg") == "avg":
        return torch.einsum("aph,chw,bqw->cab", rows, x, columns) / (rows.shape[1] * columns.shape[1])
    corners = [
        torch.einsum("aph,chw,bqw->cabpq", one, x, other)
        for one in _halves(down, x.shape[1]) for other in _halves(across, x.shape[2])
    ]  # fmt: skip
    return _largest(corners).flatten(3).max(-1).values


def _linear(points: Tensor, size: int) -> Tensor:
    """(cells, points, size): the shares of the two pixels next to each point; none for points off the picture."""
    first, second = _halves(points, size)
    return first + second


def _halves(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    off = (points < -1) | (points > size)
    at = points.clamp(min=0)
    low = at.floor().clamp(max=size - 1)
    part = torch.where(low == size - 1, torch.zeros_like(at), at - low)
    places = torch.arange(size, device=points.device)
    below = (places == low[..., None]) * (1 - part)[..., None]
    above = (places == (low + 1).clamp(max=size - 1)[..., None]) * part[..., None]
    inside = (~off)[..., None]
    return below * inside, above * inside


def _largest(parts: Sequence[Tensor]) -> Tensor:
    """The largest of several tensors, element by element."""
    return torch.stack(list(parts)).amax(0)
