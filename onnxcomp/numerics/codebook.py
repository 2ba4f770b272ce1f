"""Codebooks: w -> the nearest of k levels, of k levels times a scale per channel, or of k vectors.

fit_codebook          minimizes sum (w - q)^2, near exactly (``line_kmeans``)
fit_scaled_codebook   minimizes sum over channels of |w_c - s_c q_c|^2 / |w_c|^2
fit_vector_codebook   k-means over rows, by scikit-learn
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encoding import compute_dtype
from onnxcomp.numerics.line_kmeans import best_levels, best_levels_with_zero
from onnxcomp.numerics.sorted_line import SortedLine

Array = NDArray[Any]

CHUNK = 2**20
MOST_SAMPLED_ROWS = 2**16


def fit_codebook(values: Array, k: int, *, keep_zero: bool = False) -> Array:
    """The levels (k',) ascending, k' <= k, that the values lie nearest to in the sense of least squares.

    values: any shape, any float type, finite and at least one (else ValueError). The levels have the type
    that decoders compute in. keep_zero: 0.0 is one of the levels. All distinct values come back as they
    are where there are at most k.
    """
    if k < 1 or values.size == 0:
        raise ValueError(f"a codebook needs k >= 1 and at least one value, got {k} and {values.size}")
    ordered = np.sort(np.asarray(values).astype(compute_dtype(values.dtype)).ravel())
    if not (np.isfinite(ordered[0]) and np.isfinite(ordered[-1])):
        raise ValueError("a codebook needs finite values")
    if np.count_nonzero(ordered[1:] != ordered[:-1]) < k - keep_zero:
        return np.unique(np.append(ordered, ordered.dtype.type(0)) if keep_zero else ordered) + 0.0
    exponent = _exponent(ordered)
    ordered = np.ldexp(ordered, -exponent) if exponent else ordered
    if keep_zero:
        levels = best_levels_with_zero(SortedLine(ordered, shift=0.0), k)
    else:
        levels = best_levels(SortedLine(ordered, shift=float(ordered[ordered.size // 2])), k)
    return np.unique(np.ldexp(levels, exponent).astype(ordered.dtype) + 0.0)


def _exponent(ordered: Array) -> int:
    """The power of two to divide by so that squares stay within float64; 0 for float32 values."""
    largest = max(abs(float(ordered[0])), abs(float(ordered[-1])))
    exponent = int(np.frexp(largest)[1])
    return exponent if ordered.dtype == np.float64 and abs(exponent) > 256 else 0


def fit_scaled_codebook(
    values: Array, k: int, *, keep_zero: bool = False, rounds: int = 20
) -> tuple[Array, Array]:
    """A positive scale for each channel and one codebook for all: values[c] near scale[c] * codebook[code].

    values: (channels, n), finite. Gives (channels,) and (k',) ascending, in the decoders' type.
    Every channel counts alike, by its error relative to its own power. The root mean square is the first
    scale; then codes, scales and levels are each set to their least-squares optimum in turn, until a round
    gains less than a ten-thousandth. The scale of an all-zero channel is 1 where zero is a level, else 0.
    """
    compute = compute_dtype(values.dtype)
    rows = np.asarray(values).astype(compute)
    power = _root_mean_square(rows)
    alive = power > 0
    if not alive.any():
        return np.ones(len(rows), compute), np.zeros(1, compute)
    unit = (rows[alive] / power[alive, None]).astype(compute)
    scale, codebook = _alternate(unit, fit_codebook(unit, k, keep_zero=keep_zero), keep_zero, rounds)
    full = np.full(len(rows), 1.0 if keep_zero else 0.0)
    full[alive] = scale * power[alive]
    return full.astype(compute), codebook.astype(compute)


def _alternate(unit: Array, codebook: Array, keep_zero: bool, rounds: int) -> tuple[Array, Array]:
    """The scales and levels of least error found from scales of 1; unit: (channels, n)."""
    scale = np.ones(len(unit))
    best, least = (scale, codebook), np.inf
    for _ in range(rounds):
        codes, error = _nearest(unit, scale, codebook)
        if error < least:
            best = (scale, codebook)
        if error >= least * (1 - 1e-4):
            break
        least = error
        scale = _best_scales(unit, codes, scale, codebook)
        codebook = _best_codebook(unit, codes, scale, codebook)
        if keep_zero:
            codebook[np.abs(codebook).argmin()] = 0.0
    return best


def _row_chunks(rows: Array) -> list[slice]:
    step = max(1, CHUNK // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _nearest(unit: Array, scale: Array, codebook: Array) -> tuple[Array, float]:
    """The code of each value, (channels, n), and the squared error of all."""
    codes = np.empty(unit.shape, np.uint8 if codebook.size <= 256 else np.uint16)
    middles = (codebook[:-1] + codebook[1:]) / 2
    error = 0.0
    for part in _row_chunks(unit):
        codes[part] = np.searchsorted(middles, unit[part] / scale[part, None])
        error += float(np.sum(np.square(unit[part] - codebook[codes[part]] * scale[part, None])))
    return codes, error


def _best_scales(unit: Array, codes: Array, scale: Array, codebook: Array) -> Array:
    """The scales of least squared error for these codes; the old one where that would not be positive."""
    result = scale.copy()
    for part in _row_chunks(unit):
        levels = codebook[codes[part]].astype(np.float64)
        along = np.einsum("ij,ij->i", unit[part], levels)
        power = np.einsum("ij,ij->i", levels, levels)
        result[part] = np.where(along > 0, along / np.where(power > 0, power, 1), scale[part])
    return result


def _best_codebook(unit: Array, codes: Array, scale: Array, codebook: Array) -> Array:
    """The levels of least squared error for these codes and scales, ascending; unused ones stay."""
    along, power = np.zeros(codebook.size), np.zeros(codebook.size)
    for part in _row_chunks(unit):
        flat = codes[part].ravel()
        weight = np.broadcast_to(scale[part, None], unit[part].shape)
        along += np.bincount(flat, (unit[part] * weight).ravel(), codebook.size)
        power += np.bincount(flat, np.square(weight).ravel(), codebook.size)
    levels: Array = np.where(power > 0, along / np.where(power > 0, power, 1), codebook)
    return np.sort(levels)


def _root_mean_square(rows: Array) -> Array:
    """The root mean square of each row, float64, free of overflow and underflow."""
    result = np.zeros(len(rows))
    for part in _row_chunks(rows):
        chunk = rows[part].astype(np.float64)
        largest = np.abs(chunk).max(axis=1)
        chunk /= np.where(largest > 0, largest, 1)[:, None]
        result[part] = largest * np.sqrt(np.mean(np.square(chunk), axis=1))
    return result


def fit_vector_codebook(rows: Array, k: int, *, seed: int) -> Array:
    """The k vectors (k', d), k' <= k, that the rows (n, d) lie nearest to in the sense of least squares.

    scikit-learn's k-means on at most 65,536 rows (or 32 a vector) drawn with the seed, then two of Lloyd's
    iterations over all rows. Distinct rows come back as they are where there are at most k. The vectors have
    the type that decoders compute in, in lexicographic order.
    """
    import sklearn.cluster  # takes a second or more to import

    compute = compute_dtype(rows.dtype)
    plain = np.asarray(rows).astype(compute)
    sample = _sample(plain, max(MOST_SAMPLED_ROWS, 32 * k), seed)
    distinct = np.unique(sample, axis=0)
    if len(distinct) <= k and len(sample) < len(plain):
        distinct = np.unique(plain, axis=0)
    if len(distinct) <= k:
        return distinct + 0.0
    model = sklearn.cluster.KMeans(k, n_init=1, max_iter=50, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        book = model.fit(sample).cluster_centers_
    if len(sample) < len(plain):
        for _ in range(2):
            book = _vector_means(plain, book)
    return np.unique(book.astype(compute) + 0.0, axis=0)


def _sample(rows: Array, most: int, seed: int) -> Array:
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def _vector_means(rows: Array, book: Array) -> Array:
    """The means of the rows nearest to each vector; a vector nearest to none stays."""
    import sklearn.metrics

    totals, counts = np.zeros(book.shape), np.zeros(len(book))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        codes = sklearn.metrics.pairwise_distances_argmin(part, book.astype(part.dtype))
        counts += np.bincount(codes, minlength=len(book))
        for column in range(book.shape[1]):
            totals[:, column] += np.bincount(codes, part[:, column], len(book))
    means: Array = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1)[:, None], book)
    return means
