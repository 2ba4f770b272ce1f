"""How far a weight may be from what it was where nothing shows what that does: as far as 8 bits a channel leave it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.metrics.weight_error import relative_error, whole_and_channel_error

Array = NDArray[Any]

NOISE_TOLERANCE = 10**0.05  # half a decibel: what "about 8 bits per channel" allows


@dataclass(frozen=True)
class NoiseBound:
    """What symmetric 8-bit rounding per channel does to a weight: relative squared errors, of the whole and, on the
    average, of each of its channels. What one codebook for all channels does to the weakest of them shows at the
    outputs and hardly in the whole."""

    weight: Weight
    whole: float
    channel: float

    @classmethod
    def of(cls, weight: Weight) -> NoiseBound:
        """The bound of a weight as it is."""
        return cls(weight, *_errors(weight, rounded_per_channel(weight)))

    def allows(self, values: Array, factor: float = 1.0) -> bool:
        """Whether other values of the weight are about as near; ``factor``: or so many times as far."""
        return self.times(values) <= factor * NOISE_TOLERANCE

    def times(self, values: Array) -> float:
        """How many times as far other values are, as a whole or channel by channel, whichever is more."""
        whole, channel = _errors(self.weight, values)
        return max(_ratio(whole, self.whole), _ratio(channel, self.channel))

    def allows_error(self, error: float, factor: float = 1.0) -> bool:
        """Whether that is about as near where nothing but the error of the whole is known."""
        return self.times_by_error(error) <= factor * NOISE_TOLERANCE

    def times_by_error(self, error: float) -> float:
        """How many times as far values of that error are."""
        return _ratio(error, self.whole)


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound else math.inf if error else 0.0


def _errors(weight: Weight, values: Array) -> tuple[float, float]:
    """Relative squared error of the whole weight, and the mean of its channels'."""
    old, axis = np.asarray(weight.values), weight.channel_axis
    if axis is None:
        whole = relative_error(old, values)
        return whole, whole
    return whole_and_channel_error(old, values, axis=axis)


def rounded_per_channel(weight: Weight) -> Array:
    """The weight's values in symmetric 8-bit rounding with a scale per output channel."""
    values, axis = np.asarray(weight.values), weight.channel_axis
    others = None if axis is None else tuple(each for each in range(values.ndim) if each != axis)
    ends = values.max(axis=others, keepdims=True), values.min(axis=others, keepdims=True)
    peak = np.maximum(ends[0], -ends[1]).astype(np.float32)
    scale = np.where(peak == 0, np.float32(1), peak / np.float32(127))
    rounded: Array = values / scale
    np.rint(rounded, out=rounded)
    rounded *= scale
    return rounded
