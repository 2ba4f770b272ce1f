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
from onnxcomp.training.torch_graph.rules.pooling import max_pool
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


@microsoft("BiasSplitGelu")
def bias_split_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    left, right = (x + bias).chunk(2, -1)
    return left * F.gelu(right)


@microsoft("BiasAdd")
def bias_add(call: Call, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@microsoft("BiasSoftmax")
def bias_softmax(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    axis = call.get("axis", 1) % x.dim()
    if not call.get("is_inner_broadcast", 0):  # the bias is that of the first samples, repeated in turns
        bias = bias.repeat_interleave(x.shape[0] // bias.shape[0], 0) if bias.dim() == x.dim() else bias
    return torch.softmax((x + bias).flatten(axis), -1).reshape(x.shape)


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


@microsoft("FusedMatMul", "TransposeMatMul")
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = (_turned(call, each, key) for each, key in ((a, "A"), (b, "B")))
    return torch.matmul(a, b) * call.get("alpha", 1.0)


def _turned(call: Call, x: Tensor, key: str) -> Tensor:
    """The operand with its batch axes moved behind its rows, then with rows and columns in turn."""
    if call.get(f"transBatch{key}", 0):
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if call.get(f"trans{key}", 0) and x.dim() > 1 else x


@microsoft("FusedMatMulActivation")
def fused_matmul_activation(call: Call, a: Tensor, b: Tensor) -> Tensor:
    values = [call.get(f"activation_{key}") for key in ("alpha", "beta", "gamma")]
    return _activated(call.get("activation"), fused_matmul(call, a, b), values)


@microsoft("FusedGemm")
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    values = [call.get(f"activation_{key}") for key in ("alpha", "beta", "gamma")]
    return _activated(call.get("activation", ""), general_product(call, a, b, c), values)


@microsoft("FusedConv")
def fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    made = convolution(call, x, w, b)
    return _activated(call.get("activation", ""), made if z is None else made + z, call.get("activation_params") or [])


@microsoft("NhwcFusedConv")
def nhwc_fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    made = convolution(call, x.movedim(-1, 1), w, b).movedim(1, -1)
    return _activated(call.get("activation", ""), made if z is None else made + z, call.get("activation_params") or [])


@microsoft("NhwcMaxPool")
def nhwc_max_pool(call: Call, x: Tensor) -> Tensor:
    made = max_pool(call, x.movedim(-1, 1))
    assert isinstance(made, torch.Tensor)
    return made.movedim(1, -1)


def _activated(name: str, x: Tensor, values: Any) -> Tensor:
    """The activation that a fused node names, with its values."""
    if not name:
        return x
    if name == "Clip":
        return limited(x, *values[:2])
    alpha, beta = (*values, None, None)[:2]
    made: Tensor = activation(name, alpha, beta)(x)
    return made


@microsoft("GroupNorm")
def group_norm(call: Call, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    y = x.movedim(-1, 1) if call.get("channels_last", 1) else x
    made = F.group_norm(y, call.get("groups"), gamma.to(x.dtype), beta.to(x.dtype), call.get("epsilon", 1e-5))
    made = F.silu(made) if call.get("activation", 0) else made
    return made.movedim(1, -1) if call.get("channels_last", 1) else made


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


@microsoft("ComplexMul")
def complex_mul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(a.contiguous()) * torch.view_as_complex(b.contiguous()))


@microsoft("Rfft")
def rfft(call: Call, x: Tensor) -> Tensor:
    axes = tuple(range(-call.get("signal_ndim", 1), 0))
    return torch.view_as_real(torch.fft.rfftn(x, dim=axes, norm="ortho" if call.get("normalized", 0) else "backward"))


@microsoft("Irfft")
def irfft(call: Call, x: Tensor) -> Tensor:
    axes = tuple(range(-call.get("signal_ndim", 1), 0))
    return torch.fft.irfftn(torch.view_as_complex(x.contiguous()), dim=axes)
