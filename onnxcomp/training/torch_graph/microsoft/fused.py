"""Several of ONNX's operators in one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as F

from onnxcomp.operators import MICROSOFT
from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.activations import activation
from onnxcomp.training.torch_graph.rules.convolutions import convolution
from onnxcomp.training.torch_graph.rules.elementwise import limited
from onnxcomp.training.torch_graph.rules.normalization import by_mean_square
from onnxcomp.training.torch_graph.rules.products import general_product

microsoft = functools.partial(rule, domain=MICROSOFT)


@microsoft("Gelu", "BiasGelu")
def gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias)


@microsoft("FastGelu")
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@microsoft("QuickGelu")
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


@microsoft("SkipLayerNormalization")
def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, gamma.shape, gamma, beta, call.get("epsilon", 1e-12)), None, None, total


@microsoft("SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return by_mean_square(total, (-1,), call.get("epsilon", 1e-12)) * gamma, None, None, total


@rule("SimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    return by_mean_square(x, axes, call.get("epsilon", 1e-5)).to(scale.dtype) * scale


@microsoft("EmbedLayerNormalization")
def embed_layer_normalization(
    call: Call, tokens: Tensor, segments: Tensor | None, words: Tensor, places: Tensor, kinds: Tensor | None,
    gamma: Tensor, beta: Tensor, mask: Tensor | None = None, at: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    order = torch.arange(tokens.shape[1], device=tokens.device) if at is None else at.to(torch.int64)
    total = F.embedding(tokens.to(torch.int64), words) + F.embedding(order, places)
    if segments is not None and kinds is not None:
        total = total + F.embedding(segments.to(torch.int64), kinds)
    lengths = tokens.new_zeros(tokens.shape[0]) if mask is None else mask.sum(1)
    made = F.layer_norm(total, gamma.shape, gamma, beta, call.get("epsilon", 1e-12))
    return made, lengths.to(torch.int32), total


@microsoft("FusedMatMul")
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = (_turned(call, each, key) for each, key in ((a, "A"), (b, "B")))
    return torch.matmul(a, b) * call.get("alpha", 1.0)


def _turned(call: Call, x: Tensor, key: str) -> Tensor:
    """The operand with its batch axes moved behind its rows, then with rows and columns in turn."""
    if call.get(f"transBatch{key}", 0):
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if call.get(f"trans{key}", 0) and x.dim() > 1 else x


@microsoft("FusedGemm")
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    values = [call.get(f"activation_{key}") for key in ("alpha", "beta", "gamma")]
    return _activated(call.get("activation", ""), general_product(call, a, b, c), values)


@microsoft("FusedConv")
def fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    made = convolution(call, x, w, b)
    return _activated(call.get("activation", ""), made if z is None else made + z, call.get("activation_params") or [])


def _activated(name: str, x: Tensor, values: Any) -> Tensor:
    """The activation that a fused node names, with its values."""
    if not name:
        return x
    if name == "Clip":
        return limited(x, *values[:2])
    alpha, beta = (*values, None, None)[:2]
    made: Tensor = activation(name, alpha, beta)(x)
    return made


@microsoft("Inverse")
def inverse(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.inv(x)


@microsoft("ExpandDims", host=(1,))
def expand_dims(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    return x.unsqueeze(int(axis))


@microsoft("Trilu", host=(1,))
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if call.get("upper", 1) else torch.tril(x, offset)


@microsoft("CDist")
def pairwise_distance(call: Call, a: Tensor, b: Tensor) -> Tensor:
    squares = ((a[:, None] - b) ** 2).sum(-1)
    return squares if call.get("metric", "sqeuclidean") == "sqeuclidean" else torch.sqrt(squares)
