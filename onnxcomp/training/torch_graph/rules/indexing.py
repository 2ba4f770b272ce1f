"""Elements by their places: gathered, scattered, chosen."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_front(places: Tensor, count: int) -> Tensor:
    """Places as int64, the negative ones counted from the end."""
    places = places if places.dtype == torch.int64 else places.to(torch.int64)
    return torch.where(places < 0, places + count, places)


@rule("Gather")
def gather(call: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    axis = axis + x.dim() if axis < 0 else axis
    if places.dim() == 0 and places.device.type == "cpu":
        return x.select(axis, int(places))
    places = _from_front(places, x.shape[axis])
    if axis == 0 and x.dim() == 2 and x.requires_grad:
        return F.embedding(places, x)
    if places.dim() == 1:
        return x.index_select(axis, places)
    shape = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, places.flatten()).reshape(shape)


@rule("GatherElements")
def gather_elements(call: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, _from_front(places, x.shape[axis]))


@rule("GatherND")
def gather_nd(call: Call, x: Tensor, places: Tensor) -> Tensor:
    lead = call.get("batch_dims", 0)
    batch, depth = math.prod(x.shape[:lead]), places.shape[-1]
    index = places.reshape(batch, -1, depth)
    rows = x.reshape(batch, -1, *x.shape[lead + depth :])
    flat = _flat(index, x.shape[lead : lead + depth])
    own = torch.arange(batch, device=flat.device)[:, None]
    return rows[own, flat].reshape(*places.shape[:-1], *x.shape[lead + depth :])


def _flat(index: Tensor, extents: torch.Size) -> Tensor:
    """Places in the axes ``extents`` flattened, of indices whose last axis goes over these."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for axis, extent in enumerate(extents):
        flat = flat * extent + _from_front(index[..., axis], extent)
    return flat


@rule("Scatter", "ScatterElements")
def scatter_elements(call: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return _scattered(x, axis, _from_front(places, x.shape[axis]), updates, call.get("reduction", "none"))


@rule("ScatterND")
def scatter_nd(call: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    depth = places.shape[-1]
    flat = _flat(places, x.shape[:depth]).reshape(-1)
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    wide = flat[:, None].expand(-1, rows.shape[1])
    made = _scattered(rows, 0, wide, updates.reshape(wide.shape), call.get("reduction", "none"))
    return made.reshape(x.shape)


def _scattered(x: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    if reduction == "add":
        return torch.scatter_add(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, REDUCED[reduction])


@rule("TensorScatter")
def tensor_scatter(call: Call, x: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """The update written into each sequence of the batch from its start on, around the end if ``circular``."""
    axis = call.get("axis", -2) % x.dim()
    first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if starts is None else starts.to(torch.int64)
    places = first[:, None] + torch.arange(update.shape[axis], device=x.device)
    if call.get("mode", "linear") == "circular":
        places = places % x.shape[axis]
    shape = [1] * x.dim()
    shape[0], shape[axis] = places.shape
    return torch.scatter(x, axis, places.reshape(shape).expand(update.shape), update)


@rule("OneHot", host=(1,))
def one_hot(call: Call, places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count, axis = int(depth), call.get("axis", -1)
    index = places.to(torch.int64)
    axis = axis + index.dim() + 1 if axis < 0 else axis
    shape = [1] * (index.dim() + 1)
    shape[axis] = count
    chosen = _from_front(index, count).unsqueeze(axis) == torch.arange(count, device=index.device).reshape(shape)
    return torch.where(chosen, values[1], values[0])


@rule("NonZero", discrete=True)
def non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@rule("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call.get("axis")
    if axis is None:
        x, axis = x.flatten(), 0
    return x.index_select(axis, torch.nonzero(condition).flatten())
