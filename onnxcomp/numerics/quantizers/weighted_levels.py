"""Codebooks whose errors count unevenly:  min over c of  sum_i f_i (w_i - c[q_i])^2,  f_i: how an error counts.

On a line the best clusters are runs of neighbours for any weights, so the cuts between cells of equal share are found
exactly (``CutProgram``, with sums of f, f w and f w^2 for counts), then Lloyd's iterations move single values. With
f = E g^2, g the gradient, these are the levels of SqueezeLLM, Kim et al. 2023, https://arxiv.org/abs/2306.07629.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays.nearest import nearest_codes
from onnxcomp.numerics.encodings.encoding import compute_dtype
from onnxcomp.numerics.quantizers.codebook import fit_scaled_codebook
from onnxcomp.numerics.quantizers.prefix_sums import Sums, equal_shares
from onnxcomp.numerics.quantizers.segmentation_dp import CutProgram, mirrored, share_runs

Array = NDArray[Any]

CELLS = 1024
ITERATIONS = 30
ROUNDS = 4  # of scales and levels in turn
LEAST_SHARE = 1e-3  # of the mean: what no sample showed to count counts a little


def fit_weighted_codebook(values: Array, counts: Array, k: int, *, keep_zero: bool = False) -> Array:
    """The levels (k',) ascending, k' <= k, of least sum of counts * (value - level)^2, in the decoders' type.

    values: any shape, finite, at least one. counts: of that shape, none negative; none is taken for less than a
    thousandth of their mean. keep_zero: 0.0 is one of the levels.
    """
    compute = compute_dtype(values.dtype)
    flat = np.asarray(values).astype(compute).ravel()
    order = np.argsort(flat, kind="stable")
    line = _WeighedLine(flat[order].astype(np.float64), _floored(np.asarray(counts, np.float64).ravel()[order]))
    distinct = np.unique(flat)
    if np.count_nonzero(distinct) + keep_zero <= k and distinct.size <= k:
        return np.unique(np.append(distinct, compute.type(0)) if keep_zero else distinct) + 0.0
    levels = line.settled(line.first_with_zero(k) if keep_zero else line.first(k), keep_zero)
    return np.unique(levels.astype(compute) + compute.type(0))


def fit_weighted_scaled_codebook(
    values: Array, counts: Array, k: int, *, keep_zero: bool = False
) -> tuple[Array, Array]:
    """A scale for each channel and one codebook for all, (channels,) and (k',), of least sum of counts * error^2.

    values, counts: (channels, n). From the fit in which every channel counts alike, levels and scales are set in turn.
    """
    scale, book = fit_scaled_codebook(values, k, keep_zero=keep_zero)
    rows = np.asarray(values).astype(scale.dtype)
    counts = _floored(np.asarray(counts, np.float64))
    alive = scale > 0
    for _ in range(ROUNDS):
        unit = rows[alive] / scale[alive, None]
        book = fit_weighted_codebook(unit, counts[alive] * np.square(scale[alive, None], dtype=np.float64), k,
                                     keep_zero=keep_zero)  # fmt: skip
        held = book.astype(np.float64)[nearest_codes(unit, book)]
        along = np.einsum("ij,ij,ij->i", counts[alive], held, rows[alive])
        power = np.einsum("ij,ij,ij->i", counts[alive], held, held)
        found = np.divide(along, power, out=scale[alive].astype(np.float64), where=(power > 0) & (along > 0))
        scale[alive] = found.astype(scale.dtype)
    return scale, book


def _floored(counts: Array) -> Array:
    """Counts of which the least is 1: what is divided by them needs no care."""
    mean = counts.mean()
    if not mean > 0:
        return np.ones_like(counts)
    raised: Array = np.maximum(counts / (LEAST_SHARE * mean), 1.0)
    return raised


class _WeighedLine:
    """Sorted values (n,) with counts (n,), float64, and sums of any run of them."""

    def __init__(self, values: Array, counts: Array) -> None:
        self.values, self.counts = values, counts
        self._shift = float(np.average(values, weights=counts))
        terms = (counts, counts * (values - self._shift), counts * np.square(values - self._shift))
        self._sums = tuple(np.concatenate([[0.0], np.cumsum(each)]) for each in terms)
        starts = np.flatnonzero(values[1:] != values[:-1]) + 1
        self._starts = np.concatenate([[0], starts, [values.size]])

    def sums(self, cuts: Array) -> Sums:
        """Of counts, counts * values and counts * values^2 before each cut, of the values less the shift."""
        first, second, third = (each[cuts] for each in self._sums)
        return first, second, third

    def plain_sums(self, cuts: Array) -> Sums:
        """The same of the values as they are."""
        count, total, squares = self.sums(cuts)
        return count, total + self._shift * count, squares + 2 * self._shift * total + self._shift**2 * count

    def cells(self) -> Array:
        """Cuts between cells of equal share of the best levels, which lie with density (count / width)^(1/3)."""
        bounds = np.append(self.values[self._starts[:-1]], self.values[-1])
        shares = np.diff(self.sums(self._starts)[0]) ** (1 / 3) * np.diff(bounds) ** (2 / 3)
        return equal_shares(shares, self._starts, CELLS)

    def first(self, k: int) -> Array:
        """The means of the best runs between cells."""
        cells = self.cells()
        program = CutProgram(self.sums(cells), k)
        return self._means(cells[program.cuts(program.most_runs, cells.size - 1)])

    def first_with_zero(self, k: int) -> Array:
        """The same with one at 0."""
        low, high = (int(np.searchsorted(self.values, 0, side=side)) for side in ("left", "right"))
        cells = self.cells()
        negative, positive = np.append(cells[cells < low], low), np.append(high, cells[cells > high])
        left = CutProgram(self.plain_sums(negative), k - 1)
        right = CutProgram(mirrored(self.plain_sums(positive)), k - 1)
        runs, left_end, right_end = share_runs(left, right, k - 1)
        below = self._means(negative[left.cuts(runs[0], left_end)])
        above = self._means(positive[::-1][right.cuts(runs[1], right_end)][::-1])
        return np.concatenate([below, [0.0], above])

    def settled(self, levels: Array, keep_zero: bool) -> Array:
        """The levels after Lloyd's iterations."""
        least = np.inf
        for _ in range(ITERATIONS):
            inner = np.searchsorted(self.values, (levels[1:] + levels[:-1]) / 2, side="right")
            cuts = np.concatenate([[0], inner, [self.values.size]])
            count, total, squares = (np.diff(each) for each in self.plain_sums(cuts))
            error = float((squares - 2 * levels * total + np.square(levels) * count).sum())
            if not error < least * (1 - 1e-7):
                break
            least = error
            means = np.divide(total, count, out=levels.copy(), where=count > 0)
            if keep_zero:
                means[np.abs(levels).argmin()] = 0.0
            levels = np.sort(means)
        return levels

    def _means(self, cuts: Array) -> Array:
        count, total, _ = (np.diff(each) for each in self.plain_sums(cuts))
        return total[count > 0] / count[count > 0]
