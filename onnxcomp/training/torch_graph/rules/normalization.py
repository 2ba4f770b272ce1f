"""Normalization to a mean and a spread, and the losses of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

NEVER = -(2**31)  # an index of no class


@rule("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    epsilon = call.get("epsilon", 1e-5)
    trains = call.get("training_mode", 0) if call.opset >= 14 else call.opset < 7 and not call.get("is_test", 0)
    if trains:
        return _batch_statistics(call, x, scale, bias, mean, variance, epsilon)
    if call.opset < 9 and not call.get("spatial", 1):
        return (x - mean) / torch.sqrt(variance + epsilon) * scale + bias
    if mean.requires_grad or variance.requires_grad or x.dim() < 2 or mean.dtype != x.dtype or scale.dtype != x.dtype:
        mean, variance, scale, bias = (_by_channel(each, x) for each in (mean, variance, scale, bias))
        return ((x - mean) / torch.sqrt(variance + epsilon) * scale + bias).to(x.dtype)
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _batch_statistics(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    own, spread = x.mean(axes), x.var(axes, correction=0)
    momentum = call.get("momentum", 0.9)
    made = (x - _by_channel(own, x)) / torch.sqrt(_by_channel(spread, x) + epsilon)
    made = made * _by_channel(scale, x) + _by_channel(bias, x)
    running = mean * momentum + own * (1 - momentum), variance * momentum + spread * (1 - momentum)
    return (made, *running, own, spread)[: 5 if call.opset < 14 else 3]


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


@rule("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    flat = standardized(x, tuple(range(2, x.dim())), call.get("epsilon", 1e-5))
    return flat * _by_channel(scale, x) + _by_channel(bias, x)


@rule("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.get("num_groups")
    if call.opset < 21:  # one value a group
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@rule("LayerNormalization")
def layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    axis, epsilon = call.get("axis", -1) % x.dim(), call.get("epsilon", 1e-5)
    if call.outputs == 1 and scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape):
        return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)
    wide = x.float() if x.dtype.itemsize < 4 else x
    axes = tuple(range(axis, x.dim()))
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)
    made = ((wide - mean) * inverse).to(x.dtype) * scale
    return (made if bias is None else made + bias), mean, inverse


@rule("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    return by_mean_square(x, axes, call.get("epsilon", 1e-5)).to(scale.dtype) * scale


@rule("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    axes = tuple(call.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


@rule("LRN")
def lrn(call: Call, x: Tensor) -> Tensor:
    size = call.get("size")
    squares = (x * x).transpose(1, -1)
    summed = F.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1).transpose(1, -1)
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * summed) ** call.get("beta", 0.75)


@rule("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


def standardized(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """The mean taken off, by the root of the variance, over these axes."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)


def by_mean_square(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """By the root of the mean square over these axes, at least in float32."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(x.dtype)


@rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    call: Call, scores: Tensor, labels: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logarithms = torch.log_softmax(scores, 1)
    return _class_loss(call, logarithms, labels, weights), logarithms


@rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(call: Call, x: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return _class_loss(call, x, labels, weights)


def _class_loss(call: Call, logarithms: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """minus the weighted logarithms at the labels, as they are, summed, or over the sum of the weights."""
    ignored = call.get("ignore_index", NEVER)
    counted = labels != ignored
    places = torch.where(counted, labels, torch.zeros_like(labels)).to(torch.int64)
    weight = torch.ones_like(logarithms[0, 0].reshape(-1)[:1]) if weights is None else weights
    share = (weight[places] if weights is not None else weight.expand(places.shape)) * counted
    losses = -logarithms.gather(1, places.unsqueeze(1)).squeeze(1) * share
    kind = call.get("reduction", "mean")
    if kind == "none":
        return losses
    return losses.sum() if kind == "sum" else losses.sum() / share.sum()
