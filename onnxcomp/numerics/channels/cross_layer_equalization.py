"""Factors of channels between weights that make the ranges of each weight's channels alike.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
https://arxiv.org/abs/1906.04721: channel i of a weight W1 is divided, and that of the next one W2 multiplied, by

    s_i = sqrt(r1_i / r2_i)        r1_i, r2_i: the largest magnitude of row i of W1, and of column i of W2

over and over along chains of weights, until the factors stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

ROUNDS = 100
SETTLED = 1e-3  # of log s: no code of 8 bits moves for less


@dataclass(eq=False)
class Peaks:
    """The largest magnitudes of a weight for each of its outputs and inputs.

    values: (groups, outputs, inputs) float64, changed in place. rows: (groups * outputs,) and columns:
    (groups * inputs,) the numbers of its channels; numbers without a factor stay as they are.
    """

    values: Floats
    rows: Numbers
    columns: Numbers

    def row_ranges(self, count: int) -> Floats:
        """(count,) by channel number: the range of the outputs as a share of the weight's own."""
        return self._ranges(self.rows, 2, count)

    def column_ranges(self, count: int) -> Floats:
        """(count,) by channel number: the range of the inputs as a share of the weight's own."""
        return self._ranges(self.columns, 1, count)

    def _ranges(self, numbers: Numbers, over: int, count: int) -> Floats:
        ranges = np.zeros(count)
        np.maximum.at(ranges, numbers, self.values.max(axis=over, initial=0.0).reshape(-1))
        largest = self.values.max(initial=0.0)
        return ranges / largest if largest > 0 else ranges

    def scale(self, factors: Floats) -> None:
        """Divide rows and multiply columns by their channels' factors (count,)."""
        groups, outputs, inputs = self.values.shape
        self.values *= factors[self.columns].reshape(groups, 1, inputs)
        self.values /= factors[self.rows].reshape(groups, outputs, 1)


@dataclass(frozen=True, eq=False)
class Link:
    """Channels that go from some weights to others: their numbers, who makes them and who reads them."""

    channels: Numbers
    producers: Sequence[Peaks]
    consumers: Sequence[Peaks]


def equalizing_factors(links: Sequence[Link], count: int, *, largest: float) -> Floats:
    """The factor s (count,) of each channel number, 1 where nothing is to be done.

    Several weights on one side count by the widest, each against its own range. The factors of a link have the
    geometric mean 1, and none is above ``largest`` or below its reciprocal.
    """
    logs = np.zeros(count)
    for _ in range(ROUNDS):
        moved = max((_equalize(link, logs, np.log(largest)) for link in links), default=0.0)
        if moved < SETTLED:
            break
    return np.exp(logs)


def _equalize(link: Link, logs: Floats, limit: float) -> float:
    """Equalize one link; the largest change of a log factor."""
    count = len(logs)
    made = np.max([each.row_ranges(count) for each in link.producers], axis=0)[link.channels]
    read = np.max([each.column_ranges(count) for each in link.consumers], axis=0)[link.channels]
    live = link.channels[(made > 0) & (read > 0)]
    if live.size < 2:
        return 0.0
    keep = (made > 0) & (read > 0)
    wanted = logs[live] + 0.5 * np.log(made[keep] / read[keep])
    step = np.clip(wanted - wanted.mean(), -limit, limit) - logs[live]
    factors = np.ones(count)
    factors[live] = np.exp(step)
    logs[live] += step
    touched: dict[int, Any] = {id(each): each for each in (*link.producers, *link.consumers)}
    for each in touched.values():
        each.scale(factors)
    return float(np.abs(step).max())


def high_biases(mean: Floats, deviation: Floats, deviations: float) -> Floats:
    """What of each channel's bias a Relu hardly ever sees the end of: max(0, mean - deviations * deviation).

    mean, deviation: (channels,) of what goes into the Relu; relu(y - c) = relu(y) - c for every y of at least c.
    """
    return np.maximum(0.0, mean - deviations * deviation)
