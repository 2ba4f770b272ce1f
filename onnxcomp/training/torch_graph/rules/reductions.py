"""Sums, norms and extremes over axes; running sums; the largest few."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.values import limits

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.log(torch.sum(x, axes, keep))


def _sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x * x, axes, keep)


def _norm(order: int, x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.linalg.vector_norm(x, order, axes, keep)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _extreme(function: Any, place: int, x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.numel() == 0 and any(x.shape[axis] == 0 for axis in axes):
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        bound = limits(x.dtype)[1 - place]
        if x.dtype.is_floating_point:
            bound = (math.inf, -math.inf)[place]
        made = torch.full(shape, bound, dtype=x.dtype, device=x.device)
        return made if keep else made.squeeze(axes)
    return function(x, axes, keep)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": functools.partial(_extreme, torch.amax, 1),
    "ReduceMin": functools.partial(_extreme, torch.amin, 0),
    "ReduceProd": _product,
    "ReduceL1": functools.partial(_norm, 1),
    "ReduceL2": functools.partial(_norm, 2),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": _sum_square,
}
AXES_BY_INPUT = {"ReduceSum": 13}  # since which opset the axes are an input; the others since 18
WHOLE = frozenset({"ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare"})
"""What whole numbers are reduced by without leaving them."""


def _reduce(function: Reduction, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    by_input = call.opset >= AXES_BY_INPUT.get(call.node.op_type, 18)
    stated = (None if axes is None else axes.tolist()) if by_input else call.get("axes")
    if not stated and call.get("noop_with_empty_axes", 0):
        stated = ()
    chosen = tuple(range(x.dim())) if not stated and stated != () else tuple(each % x.dim() for each in stated)
    if not chosen:
        return _over_nothing(call.node.op_type, x)
    keep = bool(call.get("keepdims", 1))
    if not x.dtype.is_floating_point and call.node.op_type not in WHOLE:
        return function(x.to(torch.float64), chosen, keep).to(x.dtype)
    made = function(x, chosen, keep)
    return made.to(x.dtype)


def _over_nothing(op: str, x: Tensor) -> Tensor:
    """Each element reduced by itself."""
    if op == "ReduceSumSquare":
        return x * x
    if op in ("ReduceL1", "ReduceL2"):
        return x.abs()
    return torch.log(x) if op == "ReduceLogSum" else x


for _name, _function in REDUCTIONS.items():
    rule(_name, host=(1,))(functools.partial(_reduce, _function))


@rule("ArgMax", discrete=True)
def arg_max(call: Call, x: Tensor) -> Tensor:
    return _place(torch.argmax, call, x)


@rule("ArgMin", discrete=True)
def arg_min(call: Call, x: Tensor) -> Tensor:
    return _place(torch.argmin, call, x)


def _place(function: Any, call: Call, x: Tensor) -> Tensor:
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
    return function(x, axis, keepdim=keep)


def _running(function: Any, neutral: int, call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Sums or products of all elements up to each, from the other end if ``reverse``, without it if ``exclusive``."""
    along = int(axis)
    y = x.flip(along) if call.get("reverse", 0) else x
    made = function(y, along).to(x.dtype)
    if call.get("exclusive", 0):
        first = torch.full_like(y.narrow(along, 0, min(1, y.shape[along])), neutral)
        made = torch.cat([first, made.narrow(along, 0, max(y.shape[along] - 1, 0))], along)
    return made.flip(along) if call.get("reverse", 0) else made


rule("CumSum", host=(1,))(functools.partial(_running, torch.cumsum, 0))
rule("CumProd", host=(1,))(functools.partial(_running, torch.cumprod, 1))


@rule("TopK", host=(1,))
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    count, axis = call.get("k") if k is None else int(k), call.get("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)
