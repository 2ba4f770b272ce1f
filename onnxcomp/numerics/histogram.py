"""Ranges of values that stream by, in memory that does not grow with them.

A histogram of 4,096 equal bins over (-2^e, 2^e). When a value falls outside, e grows and bins merge in
pairs; their edges stay edges, so the counts are the same in whatever order the values came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HALF = 2048  # bins on each side of zero
PIECE = 2**20  # values looked at at once
SHRINKS = tuple(1 - each / 64 for each in range(56))
ROUNDS = 2
POWER = 2.4
LEAST_EXPONENT = -120  # finer than any float32 activation needs; keeps the bin width a normal number


class Histogram:
    """Counts, least and greatest of all finite values added; ``odd`` counts NaN and infinities."""

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.count = 0
        self.odd = 0
        self._exponent = LEAST_EXPONENT
        self._counts: NDArray[np.int64] = np.zeros(2 * HALF, np.int64)

    def add(self, values: Array) -> None:
        """Count the values of an array of any float type and shape."""
        flat = np.asarray(values).reshape(-1)
        for start in range(0, flat.size, PIECE):
            self._add(flat[start : start + PIECE])

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all lie, straight lines within a bin; ValueError where there is none."""
        if not self.count:
            raise ValueError("no values were added")
        below = np.cumsum(self._counts)
        place = share * self.count
        index = min(int(np.searchsorted(below, place)), 2 * HALF - 1)
        inside = self._counts[index]
        part = (place - (below[index] - inside)) / inside if inside else 0.0
        width = np.ldexp(1.0, self._exponent) / HALF
        return float(np.clip((index - HALF + part) * width, self.low, self.high))

    def covering(self, share: float) -> tuple[float, float]:
        """The range that leaves out (1 - share) / 2 of the values at either end; all of it for 1."""
        if share >= 1:
            if not self.count:
                raise ValueError("no values were added")
            return float(self.low), float(self.high)
        return self.quantile((1 - share) / 2), self.quantile((1 + share) / 2)

    def of_least_error(self, steps: int = 255) -> tuple[float, float]:
        """The range whose grid of ``steps`` steps has the least error: what is cut off, and what is rounded.

        Errors count by their 2.4th power (Nahshan et al., https://arxiv.org/abs/1911.07190, try powers from 2 to
        4): squares let rare large values go too easily. Each end is drawn in by 64ths in turn. Values within
        half a step of zero cost nothing, since zero is a code. Raises ValueError where there are no values.
        """
        low, high = self.covering(1.0)
        ends = [min(low, 0.0), max(high, 0.0)]
        for _ in range(ROUNDS):
            for side in (1, 0):
                tries = [[*ends] for _ in SHRINKS]
                for each, shrink in zip(tries, SHRINKS, strict=True):
                    each[side] *= shrink
                ends = min(tries, key=lambda each: self._error(each[0], each[1], steps))
        return ends[0], ends[1]

    def _error(self, low: float, high: float, steps: int) -> float:
        """The error of a grid over [low, high], with bins taken at their middles."""
        middles = (np.arange(-HALF, HALF) + 0.5) * (np.ldexp(1.0, self._exponent) / HALF)
        half = (high - low) / steps / 2
        cut = np.abs(middles - np.clip(middles, low, high))
        # |e|^p of errors spread evenly over [-half, half]
        rounded = np.where((cut == 0) & (np.abs(middles) > half), half**POWER / (POWER + 1), 0.0)
        return float(np.dot(self._counts, cut**POWER + rounded))

    def _add(self, values: Array) -> None:
        plain = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
        low, high = plain.min(), plain.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = plain[np.isfinite(plain)]
            self.odd += plain.size - finite.size
            if finite.size:
                self._add(finite)
            return
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += plain.size
        self._reach(int(np.frexp(max(float(high), -float(low)))[1]))
        # A power of two: the product is exact, so a value falls in the bin that merged bins would give.
        scaled = plain * plain.dtype.type(np.ldexp(float(HALF), -self._exponent))
        codes = np.floor(scaled, out=scaled).astype(np.int64)
        codes += HALF
        self._counts += np.bincount(codes, minlength=2 * HALF)

    def _reach(self, exponent: int) -> None:
        """Widen the bins until values below 2^exponent have one."""
        while self._exponent < exponent:
            if exponent - self._exponent > 12 or not self._counts.any():
                self._jump(exponent)
                return
            merged = np.zeros_like(self._counts)
            merged[HALF // 2 : HALF + HALF // 2] = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = merged
            self._exponent += 1

    def _jump(self, exponent: int) -> None:
        """After eleven doublings nothing is left but the two bins beside zero."""
        counts = np.zeros_like(self._counts)
        counts[HALF - 1], counts[HALF] = self._counts[:HALF].sum(), self._counts[HALF:].sum()
        self._counts = counts
        self._exponent = exponent
