"""Values out of nothing: constants, ranges, random numbers, windows."""

from __future__ import annotations

import math

import numpy as np
import torch

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.values import TYPES


@rule("Constant", discrete=True)
def constant(call: Call) -> object:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32), ("value_int", torch.int64),
                        ("value_ints", torch.int64)):  # fmt: skip
        if name in call.attributes:
            return torch.tensor(call.get(name), dtype=dtype, device=call.device)
    for name in ("value_string", "value_strings"):
        if name in call.attributes:
            return np.array(call.get(name), dtype=object)
    return call.get("value", call.get("sparse_value"))


@rule("ConstantOfShape", discrete=True, host=(0,))
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    if value is None:
        return torch.zeros(shape.tolist(), device=call.device)
    return value.reshape(()).expand(shape.tolist()).clone()


@rule("Range", host=(0, 1, 2))
def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, end, step = (each.item() for each in (start, limit, delta))
    count = max(math.ceil((end - first) / step), 0)
    return start + delta * torch.arange(count, dtype=start.dtype)


@rule("EyeLike", discrete=True)
def eye_like(call: Call, x: Tensor) -> Tensor:
    rows, columns = x.shape
    shifted = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    return (shifted == call.get("k", 0)).to(_dtype(call, x.dtype))


def _dtype(call: Call, default: torch.dtype) -> torch.dtype:
    return TYPES[call.get("dtype")] if call.get("dtype") else default


def _normal(call: Call, shape: list[int], dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(shape, generator=call.generator(), device=call.device)
    return (drawn * call.get("scale", 1.0) + call.get("mean", 0.0)).to(dtype)


def _uniform(call: Call, shape: list[int], dtype: torch.dtype) -> Tensor:
    low, high = call.get("low", 0.0), call.get("high", 1.0)
    drawn = torch.rand(shape, generator=call.generator(), device=call.device)
    return (drawn * (high - low) + low).to(dtype)


@rule("RandomNormal", random=True, discrete=True)
def random_normal(call: Call) -> Tensor:
    return _normal(call, call.get("shape"), _dtype(call, torch.float32))


@rule("RandomNormalLike", random=True, discrete=True)
def random_normal_like(call: Call, x: Tensor) -> Tensor:
    return _normal(call, list(x.shape), _dtype(call, x.dtype))


@rule("RandomUniform", random=True, discrete=True)
def random_uniform(call: Call) -> Tensor:
    return _uniform(call, call.get("shape"), _dtype(call, torch.float32))


@rule("RandomUniformLike", random=True, discrete=True)
def random_uniform_like(call: Call, x: Tensor) -> Tensor:
    return _uniform(call, list(x.shape), _dtype(call, x.dtype))


@rule("Bernoulli", random=True, discrete=True)
def bernoulli(call: Call, x: Tensor) -> Tensor:
    drawn = torch.rand(x.shape, generator=call.generator(), device=x.device)
    return (drawn < x).to(_dtype(call, x.dtype))


@rule("Multinomial", random=True, discrete=True)
def multinomial(call: Call, x: Tensor) -> Tensor:
    chances = torch.softmax(x.float(), -1)
    count = call.get("sample_size", 1)
    drawn = torch.multinomial(chances, count, replacement=True, generator=call.generator())
    return drawn.to(_dtype(call, torch.int32))
