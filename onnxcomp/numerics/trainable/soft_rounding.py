"""Rounding up or down is learned: AdaRound's rectified sigmoid between the two levels around a value.

    w = low + h(v) (high - low),   h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
    added to the loss:  strength * mean(1 - |2 h - 1|^beta),   beta falling from 20 to 2

At the end h is 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.trainable.coded import settled
from onnxcomp.numerics.trainable.tensor import Array, Arrays, TrainedTensor

STRETCH, SHIFT = 1.2, -0.1
HIGHEST_BETA, LOWEST_BETA = 20.0, 2.0
FREE_SHARE = 0.2  # of the training, before anything is drawn to 0 or 1
STRENGTH = 0.1
FIRST_BOUNDS = (0.02, 0.98)  # of h: beyond, its sigmoid has no slope


@dataclass(frozen=True, eq=False)
class TrainedChoice(TrainedTensor):
    """Each value takes one of the two levels around it; the encoding stays as it is.

    initial: the rounded values. towards: the values from before, between whose levels is chosen; the rounded ones
    where None.
    """

    encoding: Encoding
    initial: Array
    towards: Array | None = None
    low: Array = field(init=False)
    high: Array = field(init=False)
    codes: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = self.initial.shape
        own = self.encoding.encode(self.initial)
        if own is None or self.encoding.level_count > 256:
            raise ValueError(f"the {self.encoding.kind} encoding has no levels in order that make the values")
        wanted = self.initial if self.towards is None else np.asarray(self.towards, self.initial.dtype)
        codes = self.encoding.nearest(wanted).astype(np.int64)
        rounded = self.encoding.decode(codes.astype(np.uint8), shape)
        ahead = self.encoding.decode(np.minimum(codes + 1, self.encoding.level_count - 1).astype(np.uint8), shape)
        rises = np.where(ahead >= rounded, 1, -1)
        codes = np.where((wanted - rounded) * rises < 0, codes - 1, codes)
        codes = np.clip(codes, 0, max(0, self.encoding.level_count - 2))
        low = self.encoding.decode(codes.astype(np.uint8), shape)
        high = self.encoding.decode((codes + min(1, self.encoding.level_count - 1)).astype(np.uint8), shape)
        for name, value in (("codes", codes), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    def start(self) -> dict[str, Array]:
        wanted = self.initial if self.towards is None else np.asarray(self.towards)
        span = np.where(self.high == self.low, 1, self.high - self.low)
        share = np.clip((wanted - self.low) / span, *FIRST_BOUNDS)
        inner = (share - SHIFT) / STRETCH
        return {"choice": np.log(inner / (1 - inner)).astype(np.float32)}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        share = rectified(arrays["choice"])
        if progress >= 1:
            share = (share >= 0.5).astype(np.float32)
        made = np.where(share == 1, self.high, self.low + share * (self.high - self.low))
        return np.asarray(made, self.initial.dtype)

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return {"choice": (adjoint * (self.high - self.low) * slope(arrays["choice"])).astype(np.float32)}

    def penalty(self, arrays: Arrays, progress: float) -> dict[str, Array]:
        if progress < FREE_SHARE:
            return {}
        beta = beta_at(progress)
        away = 2 * rectified(arrays["choice"]) - 1
        pulled = -2 * beta * np.sign(away) * np.abs(away) ** (beta - 1) * slope(arrays["choice"])
        return {"choice": (STRENGTH * pulled / max(1, away.size)).astype(np.float32)}

    def units(self) -> dict[str, Array]:
        return {"choice": np.asarray(1.0, np.float32)}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        values = self.values(arrays)
        return settled(self.encoding, self.encoding.nearest(values), values.shape)


def rectified(choice: Array) -> Array:
    """h, float32."""
    return np.clip(STRETCH * _sigmoid(choice) + SHIFT, 0, 1).astype(np.float32)


def slope(choice: Array) -> Array:
    """dh/dv; zero where h is 0 or 1."""
    inner = _sigmoid(choice)
    h = STRETCH * inner + SHIFT
    return np.where((h > 0) & (h < 1), STRETCH * inner * (1 - inner), 0).astype(np.float32)


def beta_at(progress: float) -> float:
    """The exponent, which falls along a cosine once the free share is over."""
    done = min(1.0, max(0.0, (progress - FREE_SHARE) / (1 - FREE_SHARE)))
    return float(LOWEST_BETA + (HIGHEST_BETA - LOWEST_BETA) * 0.5 * (1 + np.cos(np.pi * done)))


def _sigmoid(values: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-np.clip(values, -60, 60)))
    return made
