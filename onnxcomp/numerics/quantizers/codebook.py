"""Codebooks: w -> the nearest of k levels, of k levels times a scale per channel, or of k vectors.

fit_codebook          minimizes sum (w - q)^2, near exactly (``line_kmeans``)
fit_scaled_codebook   minimizes sum over channels of |w_c - s_c q_c|^2 / |w_c|^2
fit_vector_codebook   k-means over rows, by scikit-learn
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from onnxcomp.numerics.arrays.nearest import nearest_codes
from onnxcomp.numerics.encodings.encoding import compute_dtype
from onnxcomp.numerics.metrics.weight_error import channel_error
from onnxcomp.numerics.quantizers.kmeans_1d import best_levels, best_levels_with_zero
from onnxcomp.numerics.quantizers.prefix_sums import BinnedLine, SortedLine, binned
from onnxcomp.numerics.quantizers.product_quantization import nearest_vectors

Array = NDArray[Any]

CHUNK = 2**20
MOST_SAMPLED_ROWS = 2**14
SEEDING_ROWS = 2**12  # from which the first vectors are drawn
SEEDING_TRIALS = 3  # draws for each of them, of which the best is taken
FIRST_ITERATIONS = 10  # of Lloyd's, over the sampled rows
LAST_ITERATIONS = 4  # of Lloyd's, over all rows
MOST_SAMPLED_VALUES = 2**18
MOST_JUDGED_VALUES = 2**16
BINNED_FROM = 2**22  # values, of which bins find the levels: no sorted copy, and a fifth of the time
BINS_A_LEVEL = 32  # fewer, and the bins are too coarse for the levels
ROUNDS = 15
# Below, levels times a scale would come near the denormal numbers, and codes could not be found again.
LEAST_POWER = {"float32": 1e-30, "float64": 1e-290}


def fit_codebook(values: Array, k: int, *, keep_zero: bool = False) -> Array:
    """The levels (k',) ascending, k' <= k, that the values lie nearest to in the sense of least squares.

    values: any shape, any float type, finite and at least one (else ValueError). The levels have the type
    that decoders compute in. keep_zero: 0.0 is one of the levels. All distinct values come back as they
    are where there are at most k. Of 2^22 values and more, counts in bins of a 1024th of a value find the levels: their
    squared error is within a 200th of that of levels found by all values (13 million normal, Laplace, t and uniform
    values, with and without outliers, 16 to 256 levels).
    """
    if k < 1 or values.size == 0:
        raise ValueError(f"a codebook needs k >= 1 and at least one value, got {k} and {values.size}")
    if values.size >= BINNED_FROM and compute_dtype(values.dtype) == np.float32:
        levels = _levels_by_bins(values, k, keep_zero)
        if levels is not None:
            return levels
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


def _levels_by_bins(values: Array, k: int, keep_zero: bool) -> Array | None:
    """The levels told by how many values lie in each bin; None where so few bins are taken that they matter."""
    if not np.isfinite([values.min(), values.max()]).all():
        raise ValueError("a codebook needs finite values")
    means, counts = binned(values)
    if means.size < BINS_A_LEVEL * k:
        return None
    if keep_zero:
        levels = best_levels_with_zero(BinnedLine(means, counts, shift=0.0), k)
    else:
        median = np.searchsorted(np.cumsum(counts), values.size // 2)
        levels = best_levels(BinnedLine(means, counts, shift=float(means[median])), k)
    return np.unique(levels.astype(np.float32) + np.float32(0))


def _exponent(ordered: Array) -> int:
    """The power of two to divide by so that squares stay within float64; 0 for float32 values."""
    largest = max(abs(float(ordered[0])), abs(float(ordered[-1])))
    exponent = int(np.frexp(largest)[1])
    return exponent if ordered.dtype == np.float64 and abs(exponent) > 256 else 0


def fit_scaled_codebook(values: Array, k: int, *, keep_zero: bool = False) -> tuple[Array, Array]:
    """A scale for each channel and one codebook for all: values[c] near scale[c] * codebook[code].

    values: (channels, n), finite. Gives (channels,) and (k',) ascending, in the decoders' type.
    Every channel counts alike, by its error relative to its own power. The root mean square is the first
    scale; then codes, scales and levels are each set to their least-squares optimum in turn, until a round
    gains less than one in 5000. Of large weights a fixed sample of 2^18 values finds the levels. Scales are
    positive; that of an all-zero channel is 1 where zero is a level, else 0. Levels lie far enough apart for
    codes to be found again from float32 values.
    """
    compute = compute_dtype(values.dtype)
    rows = np.asarray(values).astype(compute)
    power = _root_mean_square(rows)
    alive = power > 0
    if not alive.any():
        return np.ones(len(rows), compute), np.zeros(1, compute)
    power = np.maximum(power, LEAST_POWER[compute.name])
    sample = _sample_of(rows, np.flatnonzero(alive), MOST_SAMPLED_VALUES)
    unit = (sample / _root_mean_square(sample)[:, None].clip(LEAST_POWER[compute.name])).astype(compute)
    codebook = _apart(_shared_codebook(unit, k, keep_zero).astype(compute))
    scale = np.ones(len(rows))
    for part in _row_chunks(rows):
        unit = (rows[part] / power[part, None]).astype(compute)
        for _ in range(2):
            codes = _nearest(unit, scale[part], codebook)
            scale[part] = _best_scales(unit, codes, scale[part], codebook)
    scale = np.maximum(scale * power, LEAST_POWER[compute.name])
    return np.where(alive, scale, 1.0 if 0 in codebook else 0.0).astype(compute), codebook


def scale_gain(values: Array, k: int, *, keep_zero: bool = False) -> float:
    """The bits a value that a scale per channel saves against one codebook: half the log2 of the errors' ratio.

    values: (channels, n). The error is the mean over channels of each one's own, relative to its power: what
    one codebook does to the weakest channels is what scales repair. Judged on a fixed sample of 2^16 values
    with at most 16 levels, from where on the gain hardly changes. Infinite where scales leave no error.
    """
    rows = np.asarray(values)
    sample = _sample_of(rows, np.arange(len(rows)), MOST_JUDGED_VALUES).astype(compute_dtype(rows.dtype))
    k = min(k, 16)
    plain = fit_codebook(sample, k, keep_zero=keep_zero)
    scale, levels = fit_scaled_codebook(sample, k, keep_zero=keep_zero)
    plain_error = channel_error(sample, plain[nearest_codes(sample, plain)], axis=0)
    codes = _nearest(sample, np.where(scale > 0, scale, 1), levels)
    scaled_error = channel_error(sample, levels[codes] * scale[:, None], axis=0)
    if scaled_error >= plain_error:
        return 0.0
    return 0.5 * math.log2(plain_error / scaled_error) if scaled_error > 0 else math.inf


def _sample_of(rows: Array, chosen: Array, most: int) -> Array:
    """At most about so many values of the chosen rows, drawn evenly and always the same: (rows', columns')."""
    rng = np.random.default_rng(0)
    size = rows.shape[1]
    width = min(size, max(most // chosen.size, most // 32))
    height = min(chosen.size, max(1, most // width))
    if height < chosen.size:
        chosen = np.sort(rng.choice(chosen, height, replace=False))
    columns = np.arange(size) if width == size else np.sort(rng.choice(size, width, replace=False))
    return rows[chosen][:, columns]


def _shared_codebook(unit: Array, k: int, keep_zero: bool) -> Array:
    """The levels of least error when each channel of unit (channels, n) may also choose a scale around 1."""
    scale, codebook = np.ones(len(unit)), fit_codebook(unit, k, keep_zero=keep_zero)
    best, least = codebook, np.inf
    for _ in range(ROUNDS):
        codes = _nearest(unit, scale, codebook)
        error = float(np.sum(np.square(unit - codebook[codes] * scale[:, None])))
        if error < least:
            best = codebook
        if error >= least * (1 - 2e-4):
            break
        least = error
        scale = _best_scales(unit, codes, scale, codebook)
        codebook = _best_codebook(unit, codes, scale, codebook)
        if keep_zero:
            codebook[np.abs(codebook).argmin()] = 0.0
    return best


def _apart(codebook: Array) -> Array:
    """The levels without those that rounding of float32 products could mistake for their neighbour."""
    size = np.maximum(np.abs(codebook[1:]), np.abs(codebook[:-1]))
    distinct: Array = codebook[np.append(True, np.diff(codebook) > 1e-6 * size)] + codebook.dtype.type(0)
    return distinct


def _row_chunks(rows: Array) -> list[slice]:
    step = max(1, CHUNK // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _nearest(unit: Array, scale: Array, codebook: Array) -> Array:
    """The code of each value of unit (channels, n)."""
    return nearest_codes(unit / scale[:, None].astype(unit.dtype), codebook.astype(unit.dtype))


def _best_scales(unit: Array, codes: Array, scale: Array, codebook: Array) -> Array:
    """The scales of least squared error for these codes; the old one where that would not be positive."""
    levels = codebook.astype(unit.dtype)[codes]
    along = np.einsum("ij,ij->i", unit, levels)
    power = np.einsum("ij,ij->i", levels, levels)
    scales: Array = np.where(along > 0, along / np.where(power > 0, power, 1), scale)
    return scales


def _best_codebook(unit: Array, codes: Array, scale: Array, codebook: Array) -> Array:
    """The levels of least squared error for these codes and scales, ascending; unused ones stay."""
    flat = codes.ravel()
    weight = np.broadcast_to(scale[:, None], unit.shape)
    along = np.bincount(flat, (unit * weight).ravel(), codebook.size)
    power = np.bincount(flat, np.square(weight).ravel(), codebook.size)
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

    scikit-learn's k-means++ on at most 4,096 rows (or 16 a vector) drawn with the seed, ten of Lloyd's iterations over
    16,384 (or 32 a vector), then four over all rows. Distinct rows come back as they are where there are at most k. The
    vectors have the type that decoders compute in, in lexicographic order.
    """
    compute = compute_dtype(rows.dtype)
    plain = np.asarray(rows).astype(compute)
    sample = _sample(plain, max(MOST_SAMPLED_ROWS, 32 * k), seed)
    distinct = np.unique(sample, axis=0)
    if len(distinct) <= k and len(sample) < len(plain):
        distinct = np.unique(plain, axis=0)
    if len(distinct) <= k:
        return distinct + 0.0
    with _threads_of_sklearn().limit(limits=1):
        book = _by_sklearn(sample, k, seed)
    if len(sample) < len(plain):
        for _ in range(LAST_ITERATIONS):
            book = _vector_means(plain, book)
    return np.unique(book.astype(compute) + 0.0, axis=0)


@functools.cache
def _threads_of_sklearn() -> ThreadpoolController:
    """What limits them: whoever set a limit before the import did not reach them, and sums in another order differ."""
    import sklearn.cluster  # noqa: F401  (takes a second or more)

    return ThreadpoolController()


def _by_sklearn(sample: Array, k: int, seed: int) -> Array:
    import sklearn.cluster

    start, _ = sklearn.cluster.kmeans_plusplus(
        _sample(sample, max(SEEDING_ROWS, 16 * k), seed), k, random_state=seed, n_local_trials=SEEDING_TRIALS
    )
    model = sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=FIRST_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        centers: Array = model.fit(sample).cluster_centers_
    return centers


def _sample(rows: Array, most: int, seed: int) -> Array:
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def _vector_means(rows: Array, book: Array) -> Array:
    """The means of the rows nearest to each vector; a vector nearest to none stays."""
    totals, counts = np.zeros(book.shape), np.zeros(len(book))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        codes = nearest_vectors(part, book.astype(part.dtype))
        counts += np.bincount(codes, minlength=len(book))
        for column in range(book.shape[1]):
            totals[:, column] += np.bincount(codes, part[:, column], len(book))
    means: Array = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1)[:, None], book)
    return means
