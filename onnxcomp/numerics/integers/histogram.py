"""How values that stream by spread, in memory that does not grow with them.

``Extent`` keeps their ends. ``Histogram`` counts them, too: 4,096 equal bins over (-2^e, 2^e). When a value falls
outside, e grows and bins merge in pairs; their edges stay edges, so the counts do not depend on when it came.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HALF = 2048  # bins on each side of zero
PIECE = 2**20  # values counted at once
ALL_COUNTED = 2**20  # values; of what lies in the middle of each later array about
PART = 2**14  # are counted
TAIL = 0.001  # the share of the values, at either end, that does not count as the middle
LEAST_EXPONENT = -120  # finer than any float32 activation needs; keeps the bin width a normal number


class Extent:
    """Least and greatest of all finite values added, and the mean of both over the arrays that they came in.

    count: of finite values. non_finite: of NaN and infinities. parts: arrays that held finite values.
    """

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.count = 0
        self.non_finite = 0
        self.parts = 0
        self._low_sum = 0.0
        self._high_sum = 0.0

    def add(self, values: Array) -> None:
        """Take in the values of an array of any float type and shape."""
        flat = np.asarray(values).reshape(-1)
        plain = flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)
        if not plain.size:
            return
        low, high = float(plain.min()), float(plain.max())
        if math.isfinite(low) and math.isfinite(high):
            self._take(plain, low, high, plain.size)
            return
        finite = plain[np.isfinite(plain)]
        self.non_finite += plain.size - finite.size
        self.add(finite)

    def add_sample(self, sample: Array, *, low: float, high: float, count: int) -> None:
        """Take in ``count`` values between ``low`` and ``high`` of which only a sample is at hand, all of it finite."""
        if count:
            self._take(sample, low, high, count)

    def covering(self, share: float) -> tuple[float, float]:
        """The range of all values, for a share of 1, the only one that the ends alone tell."""
        if not self.count:
            raise ValueError("no values were added")
        if share < 1:
            raise ValueError("the ends alone do not tell how values spread between them")
        return float(self.low), float(self.high)

    def mean_ends(self) -> tuple[float, float]:
        """The mean least and the mean greatest value of the arrays; ValueError where there is none."""
        if not self.parts:
            raise ValueError("no values were added")
        return self._low_sum / self.parts, self._high_sum / self.parts

    def _take(self, plain: Array, low: float, high: float, count: int) -> None:
        """Take in finite values that stand for ``count`` of them."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += count
        self.parts += 1
        self._low_sum += low
        self._high_sum += high


class Histogram(Extent):
    """Counts of the values, beside their ends.

    The first million values are all counted. Of later arrays the outermost thousandths are, since they decide a
    range, and of the rest about 16,384, evenly spaced, which stand for all of it: counting all takes twice as long
    as computing the values. The ends are always exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exponent = LEAST_EXPONENT
        self._counts = np.zeros(2 * HALF)
        self._counted = 0

    @property
    def counts(self) -> NDArray[np.float64]:
        """(4096,) how many values lie in each bin."""
        return self._counts

    @property
    def width(self) -> float:
        """Of a bin."""
        return float(np.ldexp(1.0, self._exponent) / HALF)

    @property
    def middles(self) -> NDArray[np.float64]:
        """(4096,) the middles of the bins, half of them negative."""
        return np.asarray((np.arange(-HALF, HALF) + 0.5) * self.width)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all lie, straight lines within a bin; ValueError where there is none."""
        if not self.count:
            raise ValueError("no values were added")
        below = np.cumsum(self._counts)
        place = share * below[-1]
        index = min(int(np.searchsorted(below, place)), 2 * HALF - 1)
        inside = self._counts[index]
        part = (place - (below[index] - inside)) / inside if inside else 0.0
        return float(np.clip((index - HALF + part) * self.width, self.low, self.high))

    def covering(self, share: float) -> tuple[float, float]:
        """The range that leaves out (1 - share) / 2 of the values at either end; all of it for 1."""
        if share >= 1:
            return super().covering(share)
        return self.quantile((1 - share) / 2), self.quantile((1 + share) / 2)

    def _take(self, plain: Array, low: float, high: float, count: int) -> None:
        super()._take(plain, low, high, count)
        if not plain.size:
            return
        self._reach(int(np.frexp(max(high, -low))[1]))
        weight = count / plain.size
        if self._counted < ALL_COUNTED or plain.size <= PART:
            self._count(plain, weight)
        else:
            self._count_part(plain, low, high, weight)
        self._counted += plain.size

    def _count_part(self, plain: Array, low: float, high: float, weight: float) -> None:
        below = np.cumsum(self._counts)
        ends = np.searchsorted(below, below[-1] * np.array([TAIL, 1 - TAIL])) + np.array([-HALF, 1 - HALF])
        first, last = (float(each) * self.width for each in ends)  # the middle's outer edges: half open, as bins are
        part = plain[:: _stride(plain.size, PART)]
        outer = [plain[plain < first]] if low < first else []
        outer += [plain[plain >= last]] if high >= last else []
        if outer:
            part = part[(part >= first) & (part < last)]
        if not part.size:
            self._count(plain, weight)
            return
        for each in outer:
            self._count(each, weight)
        self._count(part, weight * (plain.size - sum(each.size for each in outer)) / part.size)

    def _count(self, values: Array, weight: float) -> None:
        for start in range(0, values.size, PIECE):
            found = self._bins(values[start : start + PIECE])
            self._counts += found if weight == 1 else found * weight

    def _bins(self, values: Array) -> NDArray[np.int64]:
        # A power of two: the product is exact, so a value falls in the bin that merged bins would give.
        scaled = values * values.dtype.type(np.ldexp(float(HALF), -self._exponent))
        codes = np.floor(scaled, out=scaled).astype(np.intp)
        codes += HALF
        return np.bincount(codes, minlength=2 * HALF)

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


def _stride(size: int, most: int) -> int:
    """The least step that leaves ``most`` of the elements at most and meets every channel, wherever its axis is.

    A step that shares no factor with the number of elements shares none with any dimension.
    """
    step = -(-size // most)
    while math.gcd(step, size) > 1:
        step += 1
    return step
