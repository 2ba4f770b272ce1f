"""Attention in one operator, its projections and masks, and rotary positions."""

from __future__ import annotations

import functools

import torch

from onnxcomp.operators import MICROSOFT
from onnxcomp.training.torch_graph.rule import Call, Tensor, rule

microsoft = functools.partial(rule, domain=MICROSOFT)


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, length, width) -> (batch, heads, length, width / heads)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attended(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, *, causal: bool
) -> Tensor:
    """softmax(q k' scale + what is masked + bias) v; mask: True where a key counts, as (batch, heads, q, k)."""
    scale = call.get("scale", 0.0) or q.shape[-1] ** -0.5
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    lowest = call.get("mask_filter_value", -10000.0)
    if mask is not None:
        scores = scores + torch.where(mask, 0.0, lowest).to(scores.dtype)
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(k.shape[2] - q.shape[2] + 1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, -1), v)


def key_mask(mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """Which keys count, in a shape that broadcasts to (batch, heads, queries, keys), of a mask in any of its forms.

    (batch, keys), (batch, queries, keys) or (batch, 1, queries, keys) of ones and zeros; (batch) lengths; (2 batch)
    ends and starts.
    """
    if mask is None:
        return None
    if mask.dim() > 1:
        shape = {2: (batch, 1, 1, -1), 3: (batch, 1, mask.shape[1], -1)}.get(mask.dim(), tuple(mask.shape))
        return mask.reshape(shape) != 0
    places = torch.arange(keys, device=mask.device)
    inside = places < mask[:batch, None]
    if mask.numel() == 2 * batch:
        inside = inside & (places >= mask[batch:, None])
    return inside[:, None, None]


@microsoft("Attention")
def attention(
    call: Call, x: Tensor, weights: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
    past: Tensor | None = None, extra: Tensor | None = None, past_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    projected = x @ weights if bias is None else x @ weights + bias
    return self_attention(call, projected, mask, past, extra)


def self_attention(
    call: Call, projected: Tensor, mask: Tensor | None, past: Tensor | None, extra: Tensor | None
) -> tuple[Tensor, Tensor]:
    """projected: queries, keys and values side by side. Gives the output, and keys and values as the next past."""
    count = call.get("num_heads")
    sizes = call.get("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    q, k, v = (_heads(each, count) for each in projected.split(sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    kept = key_mask(mask, projected.shape[0], k.shape[2])
    if kept is not None and kept.dim() == 4 and kept.shape[-1] > k.shape[2]:  # (batch, 1, longest, longest)
        kept = kept[:, :, k.shape[2] - q.shape[2] : k.shape[2], : k.shape[2]]
    made = attended(call, q, k, v, kept, extra, causal=bool(call.get("unidirectional", 0)))
    return _together(made), torch.stack([k, v]) if k.shape == v.shape else k


@microsoft("MultiHeadAttention")
def multi_head_attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None,
    mask: Tensor | None = None, extra: Tensor | None = None, past_key: Tensor | None = None,
    past_value: Tensor | None = None, *rest: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count = call.get("num_heads")
    parts = [query, key, value]
    if bias is not None:
        own = bias.split([query.shape[2] if each.dim() == 4 else each.shape[-1] for each in parts])
        parts = [_with_bias(each, one, count) for each, one in zip(parts, own, strict=True)]
    q, k, v = (each if each.dim() == 4 else _heads(each, count) for each in parts)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    kept = key_mask(mask, q.shape[0], k.shape[2])
    made = attended(call, q, k, v, kept, extra, causal=bool(call.get("unidirectional", 0)))
    return _together(made), k, v


def _with_bias(x: Tensor, bias: Tensor, count: int) -> Tensor:
    return x + (bias.reshape(count, 1, -1) if x.dim() == 4 else bias)


@microsoft("GroupQueryAttention")
def group_query_attention(
    call: Call, query: Tensor, key: Tensor | None, value: Tensor | None, past_key: Tensor | None,
    past_value: Tensor | None, last_keys: Tensor, total: Tensor, cosines: Tensor | None = None,
    sines: Tensor | None = None, *rest: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Several query heads share each head of keys and values; causal; sequences of one length only."""
    count, shared = call.get("num_heads"), call.get("kv_num_heads")
    if any(each is not None for each in rest) or call.get("local_window_size", -1) > 0 or call.get("softcap", 0.0):
        raise ValueError("its windows, caps, biases and sinks have no rule")
    if int(last_keys.min()) != int(last_keys.max()):
        raise ValueError("sequences of unequal length have no rule")
    if key is None or value is None:
        size = query.shape[-1] // (count + 2 * shared)
        query, key, value = query.split([count * size, shared * size, shared * size], -1)
    q, k, v = _heads(query, count), _heads(key, shared), _heads(value, shared)
    before = int(total) - q.shape[2]
    if call.get("do_rotary", 0) and cosines is not None and sines is not None:
        places = torch.arange(before, before + q.shape[2], device=q.device)[None]
        q, k = (_rotated(call, each, places, cosines, sines) for each in (q, k))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key[:, :, :before], k], 2), torch.cat([past_value[:, :, :before], v], 2)
    keys, values = (each.repeat_interleave(count // shared, 1) for each in (k, v))
    return _together(attended(call, q, keys, values, None, None, causal=True)), k, v


@microsoft("RotaryEmbedding", host=(1,))
def rotary_embedding(call: Call, x: Tensor, places: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    if x.dim() == 3:
        count = call.get("num_heads", 0) or x.shape[-1] // (2 * cosines.shape[-1])
        split = _heads(x, count)
        return _together(_rotated(call, split, _places(places, split), cosines, sines))
    return _rotated(call, x, _places(places, x), cosines, sines)


def _places(places: Tensor, x: Tensor) -> Tensor:
    """(batch or 1, length), also where the first place alone is stated."""
    if places.numel() == 1:
        return int(places) + torch.arange(x.shape[2], device=x.device)[None]
    return places.to(x.device)


def _rotated(call: Call, x: Tensor, places: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Pairs of the first elements of each head turned by the angle of their place; the others stay."""
    size = call.get("rotary_embedding_dim", 0) or 2 * cosines.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    c, s = cosines[places][:, None], sines[places][:, None]
    if call.get("interleaved", call.get("rotary_interleaved", 0)):
        a, b = turned[..., ::2], turned[..., 1::2]
        made = torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        made = torch.cat([a * c - b * s, b * c + a * s], -1)
    return torch.cat([made, rest], -1)
