"""The range of an activation's grid, chosen from how its values spread.

    minmax            all that was seen
    moving-average    the mean of the ranges of the batches
    percentile        without the outermost share of the values
    entropy           least divergence of the rounded distribution from the true one, as TensorRT does
    mse, error        least mean error of what is cut off and what is rounded, by its power 2 or 2.4

Zero is in every range that is searched for, since it must be a code. A search draws in each end in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.integers.histogram import HALF, Extent, Histogram

Array = NDArray[Any]

CALIBRATORS = ("error", "minmax", "moving-average", "percentile", "entropy", "mse")
BY_ENDS = frozenset({"minmax", "moving-average"})  # they need no histogram
SHRINKS = 1 - np.arange(56) / 64
ROUNDS = 2
# Nahshan et al., https://arxiv.org/abs/1911.07190, try powers from 2 to 4: squares let rare large values go too easily.
POWERS = {"mse": 2.0, "error": 2.4}
LEAST_SHARE = 1e-12  # of a level that holds no value but those cut off; keeps the divergence finite

# Of ranges given by their ends, (n,) each.
Cost = Callable[[Array, Array], Array]


def range_by(method: str, values: Extent, *, coverage: float = 0.9999, steps: int = 255) -> tuple[float, float]:
    """The range (low, high) by one of CALIBRATORS, for a grid of ``steps`` steps.

    coverage: the share of the values that percentile keeps. Raises ValueError where there are no values, and
    TypeError where the method needs a Histogram and has an Extent.
    """
    if method not in CALIBRATORS:
        raise ValueError(f"no such calibrator: {method}")
    if method == "minmax":
        return values.covering(1.0)
    if method == "moving-average":
        return values.mean_ends()
    if not isinstance(values, Histogram):
        raise TypeError(f"{method} needs a histogram")
    if method == "percentile":
        return values.covering(coverage)
    cost = divergence(values, steps) if method == "entropy" else error(values, POWERS[method], steps)
    return drawn_in(values, cost)


def drawn_in(values: Extent, cost: Cost) -> tuple[float, float]:
    """The range of least cost, each end drawn in by 64ths in turn."""
    low, high = values.covering(1.0)
    low, high = min(low, 0.0), max(high, 0.0)
    for _ in range(ROUNDS):
        highs = high * SHRINKS
        high = float(highs[np.argmin(cost(np.full_like(highs, low), highs))])
        lows = low * SHRINKS
        low = float(lows[np.argmin(cost(lows, np.full_like(lows, high)))])
    return low, high


def error(values: Histogram, power: float, steps: int) -> Cost:
    """The error of a grid: |e|^power summed over the values, with bins taken at their middles.

    Values within half a step of zero cost nothing, since zero is a code.
    """
    middles, counts = values.middles, values.counts
    below = np.append(0.0, np.cumsum(counts))

    def between(low: Array, high: Array) -> Array:
        return np.asarray(below[np.searchsorted(middles, high, "right")] - below[np.searchsorted(middles, low)])

    def cost(low: Array, high: Array) -> Array:
        half = (high - low) / steps / 2
        # |e|^p of errors spread evenly over [-half, half]
        rounded = between(low, high) - between(np.maximum(low, -half), np.minimum(high, half))
        cut = _cut_off(-middles, counts, -low, power) + _cut_off(middles, counts, high, power)
        found: Array = cut + rounded * half**power / (power + 1)
        return found

    return cost


def _cut_off(middles: Array, counts: Array, ends: Array, power: float) -> Array:
    """For each end, what the values beyond it lose when they are moved to it."""
    distinct, which = np.unique(ends, return_inverse=True)
    beyond = (middles > distinct[0]) & (counts > 0)
    lost = np.maximum(middles[beyond] - distinct[:, None], 0) ** power @ counts[beyond]
    found: Array = lost[which]
    return found


def divergence(values: Histogram, steps: int) -> Cost:
    """The divergence KL(p, q) of a grid, after Migacz, 8-bit inference with TensorRT, GTC 2017.

    p: the distribution over the bins in the range, with all that is cut off added to the outermost ones. q: each
    level's share of what is in the range, spread evenly over the bins of the level that hold anything.
    Deviations: both ends are searched for, and by 64ths; the bins beside zero count no more than their
    neighbours, since what is zero stays zero.
    """
    middles, counts = values.middles, _without_zeros(values.counts)
    below = np.append(0.0, np.cumsum(counts))
    filled = np.append(0, np.cumsum(counts > 0))
    entropy = np.append(0.0, np.cumsum(_xlogx(counts)))

    def cost(low: Array, high: Array) -> Array:
        bounds = low[:, None] + (np.arange(steps + 2) - 0.5) * ((high - low) / steps)[:, None]
        places = np.searchsorted(middles, bounds)
        first, last = np.searchsorted(middles, low), np.searchsorted(middles, high, "right") - 1
        places[:, 0], places[:, -1] = first, last + 1
        inside, bins = np.diff(below[places]), np.diff(filled[places])
        cut = np.stack([below[first], below[-1] - below[last + 1]])
        ends = counts[np.stack([np.minimum(first, 2 * HALF - 1), last])]
        whole = inside.copy()
        for side, level in enumerate((0, -1)):
            whole[:, level] += cut[side]
            bins[:, level] += (ends[side] == 0) & (cut[side] > 0)
        own = entropy[last + 1] - entropy[first] + (_xlogx(ends + cut) - _xlogx(ends)).sum(axis=0)
        within = np.maximum(below[last + 1] - below[first], LEAST_SHARE)
        level_share = inside / np.maximum(bins, 1) / within[:, None]
        expected = np.sum(whole * np.log(np.maximum(level_share, LEAST_SHARE)), axis=1)
        total = below[-1]
        found: Array = (own - expected) / max(total, LEAST_SHARE) - np.log(max(total, LEAST_SHARE))
        return found

    return cost


def _without_zeros(counts: Array) -> Array:
    """The counts with the two bins beside zero cut to their outer neighbours, unless there is nothing else."""
    found = counts.copy()
    found[HALF - 1] = min(found[HALF - 1], found[HALF - 2])
    found[HALF] = min(found[HALF], found[HALF + 1])
    return found if found.any() else counts


def _xlogx(values: Array) -> Array:
    found: Array = values * np.log(np.where(values > 0, values, 1.0))
    return found
