"""Sorted values on a line: sums over any run of them, and the cells where clusters may end.

The squared error of a run around its mean is sum(x^2) - sum(x)^2 / n, so prefix sums of x and x^2 give the
error of any run at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sums = tuple[Array, Array, Array]

BLOCK = 64
MOST_SINGLE_SUMS = 2**16
CELLS = 2048
MOST_EXACT_VALUES = 4096
KEPT_BITS = 19  # of float32's 32: sign, exponent and 10 of the mantissa's 23
BINNED_AT_ONCE = 2**21


class SortedLine:
    """Sorted finite values with the count, sum and sum of squares of any run of them.

    value_starts: where each distinct value begins, and n; None where there are more than 4096 of many values.
    values: (n,) ascending, float32 or float64, n > 0. Sums are of (x - shift) in float64. Of many values they
    are kept for every 64th only, so they take a sixteenth of the memory of float32 values. They count
    outwards from the value nearest to ``shift``: far outliers then do not drown the sums of what lies within.
    """

    def __init__(self, values: Array, *, shift: float) -> None:
        self.values = values
        self.size = int(values.size)
        self.shift = shift
        differs = values[1:] != values[:-1]
        few = self.size <= MOST_SINGLE_SUMS or int(np.count_nonzero(differs)) < MOST_EXACT_VALUES
        self.value_starts = _with_ends(np.flatnonzero(differs) + 1, self.size) if few else None
        self._block = BLOCK if self.size > MOST_SINGLE_SUMS else 1
        blocks = self.size // self._block
        sums = np.empty((2, blocks))
        for start in range(0, blocks, 2**13):
            stop = min(blocks, start + 2**13)
            part = values[start * self._block : stop * self._block].reshape(-1, self._block) - np.float64(shift)
            sums[0, start:stop] = part.sum(axis=1)
            sums[1, start:stop] = np.einsum("ij,ij->i", part, part)
        self._anchor = min(blocks, int(np.searchsorted(values, values.dtype.type(shift))) // self._block)
        self._first = _sums_outwards(sums[0], self._anchor)
        self._second = _sums_outwards(sums[1], self._anchor)

    def sums(self, cuts: Array) -> Sums:
        """Count, sum and sum of squares before each cut (an index from 0 to n); differences describe runs."""
        block = cuts // self._block
        index = block[..., None] * self._block + np.arange(self._block)
        rest = self.values[np.minimum(index, self.size - 1)].astype(np.float64) - self.shift
        # Within a block too the sum starts at the end nearer to the shift.
        inward = block < self._anchor
        counted = (index < cuts[..., None]) != inward[..., None]
        rest[~counted] = 0
        sign = np.where(inward, -1, 1)
        block = block + inward
        first = self._first[block] + sign * rest.sum(axis=-1)
        return (
            cuts.astype(np.float64),
            first,
            self._second[block] + sign * np.einsum("...i,...i->...", rest, rest),
        )

    def run_starts(self, cuts: Array) -> Array:
        """The cuts moved to where their run of equal values begins, unique, with 0 and n."""
        inner = cuts[(cuts > 0) & (cuts < self.size)]
        starts = np.searchsorted(self.values, self.values[inner])
        starts.sort()
        return _with_ends(starts[np.append(starts[:-1] != starts[1:], True) & (starts > 0)], self.size)

    def cells(self, count: int) -> Array:
        """Cuts between which lie about ``count`` cells of equal share of the best levels.

        The best levels lie with density (count / width)^(1/3) (Panter and Dite 1951), so a cell's share is
        count^(1/3) * width^(2/3).
        """
        cuts = self._fine_cuts() if self.value_starts is None else self.value_starts
        return equal_shares(self.shares(cuts), cuts, count)

    def shares(self, cuts: Array) -> Array:
        """The share of each run between the cuts, up to a factor."""
        bounds = np.append(self.values[cuts[:-1]], self.values[-1]).astype(np.float64)
        shares: Array = np.diff(cuts) ** (1 / 3) * np.diff(bounds) ** (2 / 3)
        return shares

    def _fine_cuts(self) -> Array:
        """Cuts between parts that are each small against a cell, or hold one value only."""
        by_count = np.linspace(0, self.size, 2 * CELLS + 1).astype(np.int64)
        low, high = float(self.values[0]), float(self.values[-1])
        cuts = self.run_starts(np.concatenate([by_count, self._places(np.linspace(low, high, 2 * CELLS))]))
        for _ in range(24):
            share = self.shares(cuts)
            heavy = np.flatnonzero((share > 0.5 * _capped(share, CELLS).sum() / CELLS) & (np.diff(cuts) > 1))
            left, right = cuts[heavy], cuts[heavy + 1]
            middle = (self.values[left].astype(np.float64) + self.values[right - 1]) / 2
            finer = self.run_starts(np.concatenate([cuts, (left + right) // 2, self._places(middle)]))
            if finer.size == cuts.size:
                break
            cuts = finer
        return cuts

    def _places(self, bounds: Array) -> Array:
        return np.searchsorted(self.values, bounds.astype(self.values.dtype))


class BinnedLine(SortedLine):
    """Values that were counted in bins (``binned``): sums are of the means of the bins, as often as values lie there.

    Indices and cuts are of bins, each of which is in one run as a whole.
    """

    def __init__(self, means: Array, counts: Array, *, shift: float) -> None:
        self.values, self.size, self.shift = means, int(means.size), shift
        self.value_starts = np.arange(self.size + 1)
        self._counts = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
        distance = means - shift
        anchor = int(np.searchsorted(means, shift))
        self._first = _sums_outwards(counts * distance, anchor)
        self._second = _sums_outwards(counts * np.square(distance), anchor)

    def sums(self, cuts: Array) -> Sums:
        """Count of values, sum and sum of squares before each cut."""
        return self._counts[cuts], self._first[cuts], self._second[cuts]

    def shares(self, cuts: Array) -> Array:
        """The share of each run between the cuts, up to a factor."""
        bounds = np.append(self.values[cuts[:-1]], self.values[-1]).astype(np.float64)
        shares: Array = np.diff(self._counts[cuts]) ** (1 / 3) * np.diff(bounds) ** (2 / 3)
        return shares


def binned(values: Array) -> tuple[Array, Array]:
    """The means (n,) float64 ascending of the values in each bin that holds some, and how many these are (n,).

    A bin is all that agrees in the first ``KEPT_BITS`` bits of float32, sign and exponent among them: it is a 1024th of
    what it stands for wide, wherever that is, and a lone outlier has a bin of its own. values: contiguous, finite, of a
    type that float32 holds.
    """
    dropped = np.uint32(32 - KEPT_BITS)
    counts, sums = np.zeros(2**KEPT_BITS, np.int64), np.zeros(2**KEPT_BITS)
    flat = values.reshape(-1)
    for start in range(0, flat.size, BINNED_AT_ONCE):
        part = flat[start : start + BINNED_AT_ONCE].astype(np.float32, copy=False)
        places = (part.view(np.uint32) >> dropped).astype(np.intp)
        counts += np.bincount(places, minlength=counts.size)
        sums += np.bincount(places, part, counts.size)
    taken = np.flatnonzero(counts)
    means = sums[taken] / counts[taken]
    order = np.argsort(means, kind="stable")
    return means[order], counts[taken[order]]


def _with_ends(inner: Array, size: int) -> Array:
    return np.concatenate([[0], inner, [size]])


def _sums_outwards(blocks: Array, anchor: int) -> Array:
    before = -np.cumsum(blocks[:anchor][::-1])[::-1]
    return np.concatenate([before, [0.0], np.cumsum(blocks[anchor:])])


def equal_shares(shares: Array, cuts: Array, count: int) -> Array:
    """Those of the cuts (m + 1,) that part the shares (m,) in about ``count`` equal ones; all if they are few."""
    if shares.size <= count:
        return cuts
    position = np.concatenate([[0.0], np.cumsum(_capped(shares, count))])
    wanted = np.searchsorted(position, np.linspace(0, position[-1], count + 1)[1:-1])
    # Where one run has several shares, the wanted cuts fall together; the next free ones take their place.
    wanted = np.maximum.accumulate(wanted - np.arange(count - 1)) + np.arange(count - 1)
    free = np.minimum(wanted, shares.size - count + 1 + np.arange(count - 1))
    parted: Array = cuts[np.concatenate([[0], free, [shares.size]])]
    return parted


def _capped(shares: Array, count: int) -> Array:
    """The shares, none above the mean of ``count``: a lone outlier is one cell, whatever the gap beside it."""
    for _ in range(8):
        shares = np.minimum(shares, shares.sum() / count)
    return shares


def run_costs(left: Sums, right: Sums) -> Array:
    """The squared error of each run from ``left`` to ``right`` around its own mean; 0 for an empty run."""
    count = right[0] - left[0]
    total = right[1] - left[1]
    costs: Array = np.maximum((right[2] - left[2]) - total * total / np.maximum(count, 1), 0)
    return costs
