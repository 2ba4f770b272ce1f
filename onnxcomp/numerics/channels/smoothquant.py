"""Factors that move what is hard to quantize from activations to weights, channel by channel.

Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438:

    X W = (X diag(s)^-1) (diag(s) W)        s_j = max|X_j|^a / max|W_j|^(1 - a)

a is the strength: 0 lets the weight's channels be alike, 1 those of the activation. Here it is the one of least
output error with X on one grid of 8 bits and W on one of 8 bits for each output.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

STRENGTHS = tuple(i / 10 for i in range(11))
# Shares of the range of X that a calibrator may draw it in to; of these the best counts.
CLIPPINGS = (1.0, 0.7, 0.5, 0.35, 0.25)
CLIPPED_ROWS = 64  # by which that is found
MOST_OUTPUTS = 128  # of a weight that the error is taken over
WEIGHT_LIMIT = 127
ACTIVATION_LEVELS = 255


@dataclass(eq=False)
class Reader:
    """A weight that reads the channels: its matrices, some of its input rows and how far its inputs reach.

    matrices: (groups, outputs, K); rows: (groups or 1, rows, K); low, high: (groups or 1, K); numbers: (groups, K),
    the number of the channel that each column reads.
    """

    matrices: Array
    rows: Array
    low: Array
    high: Array
    numbers: Numbers

    def peaks(self, count: int) -> tuple[Floats, Floats]:
        """(count,) by channel number: the largest magnitudes of the inputs and of the weight."""
        inputs, weight = np.zeros(count), np.zeros(count)
        reach = np.maximum(np.abs(self.low), np.abs(self.high))
        np.maximum.at(inputs, self.numbers, np.broadcast_to(reach, self.numbers.shape))
        np.maximum.at(weight, self.numbers, np.abs(self.matrices).max(axis=1, initial=0.0))
        return inputs, weight

    @functools.cached_property
    def _sampled(self) -> tuple[Array, Array]:
        """Some of the outputs' matrices, and what they make of the rows."""
        matrices = self.matrices[:, :: -(-self.matrices.shape[1] // MOST_OUTPUTS)]
        return matrices, np.matmul(self.rows, matrices.swapaxes(1, 2))

    def error(self, factors: Floats) -> float:
        """The squared output error, as a share of the outputs' squares, with both sides in 8 bits."""
        matrices, exact = self._sampled
        columns = factors[self.numbers].astype(np.float32)[:, None, :]
        shared = columns if self.rows.shape[0] == columns.shape[0] else columns[:1]
        energy = float(np.square(exact, dtype=np.float64).sum())
        if energy == 0:
            return 0.0
        weight = _on_rows(matrices * columns)
        inputs = self._inputs(shared, np.square(weight).sum(axis=1, keepdims=True))
        made = np.matmul(inputs, weight.swapaxes(1, 2))
        return float(np.square(made - exact, dtype=np.float64).sum()) / energy

    def _inputs(self, columns: Array, importance: Array) -> Array:
        """The rows divided by the factors, on the grid that costs least of the tried ones."""
        rows = self.rows / columns
        low = min(0.0, float((self.low[:, None] / columns).min()))
        high = max(0.0, float((self.high[:, None] / columns).max()))
        some = rows[:, :: -(-rows.shape[1] // CLIPPED_ROWS)]
        costs = [
            float((np.square(on_grid(some, low * share, high * share) - some) * importance).sum())
            for share in CLIPPINGS
        ]
        best = CLIPPINGS[int(np.argmin(costs))]
        return on_grid(rows, low * best, high * best)


def on_grid(values: Array, low: float, high: float) -> Array:
    """Values rounded to 256 levels from low to high, zero among them; what lies outside is cut off."""
    scale = np.float32((high - low) / ACTIVATION_LEVELS)
    if scale <= 0:
        return values
    zero = np.round(-low / scale)
    codes = np.clip(np.round(values / scale) + zero, 0, ACTIVATION_LEVELS)
    return np.asarray((codes - zero) * scale)


def _on_rows(matrices: Array) -> Array:
    """Matrices rounded to 255 levels a row, symmetric."""
    scale = np.abs(matrices).max(axis=2, keepdims=True, initial=0.0) / WEIGHT_LIMIT
    scale[scale == 0] = 1
    return np.asarray(np.round(matrices / scale) * scale)


def smoothing_factors(inputs: Floats, weight: Floats, strength: float, *, largest: float) -> Floats:
    """s of each channel from the largest magnitudes of both sides (count,), with the geometric mean 1.

    A channel that never fired, or that no weight reads, keeps 1: the data say nothing of it.
    """
    factors = np.ones(len(inputs))
    live = (inputs > 0) & (weight > 0)
    if np.count_nonzero(live) > 1:
        logs = strength * np.log(inputs[live]) - (1 - strength) * np.log(weight[live])
        limit = np.log(largest)
        factors[live] = np.exp(np.clip(logs - logs.mean(), -limit, limit))
    return factors


@dataclass(frozen=True)
class Smoothing:
    """The strength chosen, the factors (count,) that follow, and the mean error of the readers before and after."""

    strength: float
    factors: Floats
    before: float
    after: float


def best_smoothing(
    readers: Sequence[Reader], channels: Numbers, count: int, *, strengths: Sequence[float] = STRENGTHS, largest: float
) -> Smoothing:
    """The strength of least error for channels that several weights read. channels: the numbers that may be scaled."""
    peaks = [each.peaks(count) for each in readers]
    inputs, weight = (np.max([each[side] for each in peaks], axis=0) for side in (0, 1))
    ones = np.ones(count)
    before = _mean_error(readers, ones)
    tried: dict[float, Smoothing] = {}

    def attempt(chosen: Sequence[float]) -> Smoothing:
        for strength in chosen:
            factors = ones.copy()
            factors[channels] = smoothing_factors(inputs[channels], weight[channels], strength, largest=largest)
            tried[strength] = Smoothing(strength, factors, before, _mean_error(readers, factors))
        return min(tried.values(), key=lambda each: each.after)

    # The error is smooth in the strength: every other one, and then those beside the best.
    place = strengths.index(attempt(strengths[::2]).strength)
    return attempt([strengths[i] for i in (place - 1, place + 1) if 0 <= i < len(strengths)])


def _mean_error(readers: Sequence[Reader], factors: Floats) -> float:
    return float(np.mean([each.error(factors) for each in readers]))
