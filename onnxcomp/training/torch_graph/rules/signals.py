"""Fourier transforms. Complex numbers are pairs of floats along the last axis."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule


@rule("DFT", host=(1, 2))
def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    along = call.get("axis", 1) if call.opset < 20 else -2 if axis is None else int(axis)
    along = along % x.dim()
    count = x.shape[along] if length is None else int(length)
    one_sided, inverse = bool(call.get("onesided", 0)), bool(call.get("inverse", 0))
    if one_sided and inverse:
        return torch.fft.irfft(_complex(x), count if length is not None else None, along).unsqueeze(-1)
    if one_sided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], count, along))
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(_complex(x), count, along))


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex((x if x.shape[-1] == 2 else F.pad(x, (0, 1))).contiguous())


@rule("STFT", host=(1, 3))
def stft(
    call: Call, signal: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
) -> Tensor:
    signal = signal.unsqueeze(-1) if signal.dim() == 2 else signal
    size = int(length) if length is not None else window.shape[0] if window is not None else signal.shape[1]
    frames = signal.unfold(1, size, int(step))  # (batch, frames, 1 or 2, size)
    if window is not None:
        frames = frames * window
    if call.get("onesided", 1):
        return torch.view_as_real(torch.fft.rfft(frames[:, :, 0]))
    return torch.view_as_real(torch.fft.fft(_complex(frames.transpose(2, 3))))
