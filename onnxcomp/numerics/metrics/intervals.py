"""What so many samples can tell: bootstrap intervals of means, exact ones of counts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from onnxcomp.numerics.metrics.arrays import Floats

MAX_BOOTSTRAP_SAMPLES = 4096
ALPHA = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95% interval."""

    value: float
    low: float
    high: float


def estimate(values: Floats, *, power: float = 1.0, seed: int = 0, repeats: float = 1.0) -> Estimate:
    """The magnitude of the mean of per-sample values to a ``power``, with a 95% bootstrap interval (1,000 resamples).

    The bootstrap and not a normal interval, up to 4,096 samples: a few of them often make most of a divergence.
    A sample that is infinite leaves the upper end open. repeats: how often each distinct sample is among them; equal
    ones tell no more than one, so the interval is wider by its root.
    """
    if len(values) == 0:
        return Estimate(0.0, 0.0, 0.0)
    mean = values.mean()
    if not np.isfinite(mean):
        finite = np.where(np.isfinite(values), values, 0.0)
        least = estimate(finite, power=power, seed=seed, repeats=repeats)
        return Estimate(float(mean), least.low, math.inf)
    if len(values) > MAX_BOOTSTRAP_SAMPLES:
        half = 1.96 * values.std() * np.sqrt(repeats / len(values))
        low = max(mean - half, values.min())
        value, low, high = _raised(np.array([mean, low, mean + half]), power)
        return Estimate(float(value), float(low), float(high))
    means = _resamples(len(values), seed) @ values / len(values)
    means = np.clip(mean + np.sqrt(repeats) * (means - mean), values.min(), values.max())
    low, high = np.quantile(_raised(means, power), [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(float(_raised(np.array([mean]), power)[0]), float(low), float(high))


def _raised(means: Floats, power: float) -> Floats:
    """The means themselves for a power of 1, of any sign."""
    return means if power == 1.0 else np.asarray(np.abs(means) ** power)


@functools.lru_cache(maxsize=2)
def _resamples(count: int, seed: int) -> Floats:
    """How often each sample is drawn, (1000, samples): drawn once for all estimates of so many samples."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000)
    return drawn.astype(np.float64)


def share(count: float, total: float) -> Estimate:
    """``count`` of ``total`` as a share with its exact 95% interval (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import beta

    if not total:
        return Estimate(0.0, 0.0, 1.0)
    low = 0.0 if count == 0 else float(beta.ppf(ALPHA / 2, count, total - count + 1))
    high = 1.0 if count >= total else float(beta.ppf(1 - ALPHA / 2, count + 1, total - count))
    return Estimate(count / total, low, high)


def drop(lost: int, won: int, total: int, *, distinct: int) -> Estimate:
    """The drop of an accuracy when ``lost`` of ``total`` samples became wrong and ``won`` became right.

    Each count has its exact interval; their difference lies between the outer ends (a little more than 95%). Equal
    samples tell no more than one of them: the intervals are those of as many as are ``distinct``.
    """
    down, up = (share(count * distinct / total, distinct) for count in (lost, won))
    return Estimate(down.value - up.value, down.low - up.high, down.high - up.low)


def samples_to_resolve(limit: float, changed: float) -> int:
    """How many samples show a drop of ``limit`` in an accuracy, with 95% confidence.

    changed: the share of samples that become wrong or right. The variance of a paired difference is that share;
    where nothing changed n samples rule out a share of 3.7 / n (Clopper and Pearson's upper end for none).
    """
    if limit <= 0:
        return 0
    none = math.log(ALPHA / 2) / math.log1p(-min(limit, 0.999))
    return math.ceil(max(none, changed * (1.96 / limit) ** 2))
