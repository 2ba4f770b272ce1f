"""Arrays of symbols: the fewest bytes of several ways, with what is needed to read them before them.

    counted   every symbol by how often it came before, and by a bell around the center until then
    mixed     in the context of its surroundings (see ``mixed_symbols``), for a view of the array in four axes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.classes import ClassScheme, scheme_of
from onnxcomp.packing.coders.mixed_symbols import mean_magnitude, read_mixed, write_mixed
from onnxcomp.packing.coders.range_coder import SymbolReader, SymbolWriter
from onnxcomp.packing.coders.surroundings import Shape4
from onnxcomp.packing.varints import NumberReader, numbers

Array = NDArray[Any]

COUNTED, MIXED = range(2)
LEVELS_MOST = 2**12
MIXED_LEAST = 256  # symbols from which contexts are tried
SHARES, SHARES_BELOW = (0.2, 0.45), 2**17  # other classes that are tried on fewer symbols
TRIED = 2**20  # symbols by which it is decided whether contexts are worth their time
WORTH = ((2**15, 1.0), (2**19, 0.99), (2**22, 0.97), (math.inf, 0.9))  # (fewer symbols, of the bytes without contexts at most)
BELL = 2**12  # of the prior's peak
BELL_WEIGHT = 64  # of the prior for each level, in all
LAGS_MOST = 64  # columns by which images behind a dense layer are looked for
LAG_LEAST = 0.04  # correlation that tells an image


@dataclass(frozen=True)
class ArrayView:
    """An array as (rows, channels, height, width): with its first two axes swapped, or not."""

    swapped: bool
    shape: Shape4

    def forth(self, symbols: Array, dims: tuple[int, ...]) -> Array:
        """(n,) symbols in the order of the view."""
        return _swapped(symbols, dims).reshape(-1) if self.swapped else symbols

    def back(self, symbols: Array, dims: tuple[int, ...]) -> Array:
        """(n,) symbols in the order of the array."""
        if not self.swapped:
            return symbols
        return _swapped(symbols, (dims[1], dims[0], *dims[2:])).reshape(-1)


def write_symbols(symbols: Array, levels: int, dims: tuple[int, ...]) -> bytes:
    """The fewest bytes that ``read_symbols`` makes (n,) symbols below ``levels`` of. dims: of the array."""
    counts = np.bincount(symbols, minlength=levels)
    found = _counted(symbols, counts)
    if symbols.size < MIXED_LEAST or levels < 2:
        return found
    whole = symbols.size <= TRIED
    rows = None if whole else max(1, dims[0] * TRIED // symbols.size)
    best = plain = found if whole else _counted(_head(symbols, dims, rows), counts)
    chosen: ArrayView | None = None
    for view in _views(symbols, dims):
        part = symbols if rows is None else _head(symbols, dims, rows)
        own = dims if rows is None else (rows, *dims[1:])
        tried = ArrayView(view.swapped, _cut(view, own, part.size))
        packed = _mixed(part, tried, own, scheme_of(np.bincount(part, minlength=levels)))
        if len(packed) < len(best):
            best, chosen = packed, view
    least = next(share for size, share in WORTH if symbols.size < size) * len(plain)
    if chosen is None or len(best) > least:
        return found
    if not whole:
        return _mixed(symbols, chosen, dims, scheme_of(counts))
    others = SHARES if symbols.size < SHARES_BELOW else ()
    return min([best, *(_mixed(symbols, chosen, dims, scheme_of(counts, share=each)) for each in others)], key=len)


def read_symbols(packed: bytes, count: int, levels: int, dims: tuple[int, ...]) -> Array:
    """(count,) int32 symbols below ``levels``. Raises PackError where it is not what was packed."""
    header = NumberReader(packed)
    kind = header.number()
    if kind == COUNTED:
        center, scale = header.number(levels), header.number(2**32)
        return SymbolReader(header.rest()).adaptive(count, bell(levels, center, scale))
    if kind != MIXED:
        raise PackError(f"the packed file is broken: it has symbols of an unknown kind {kind}.")
    flags, center, mean = header.number(3), header.number(levels), header.number(2**32)
    widths = [header.number(levels) for _ in range(header.number(levels))]
    channels, height, width = (header.number(count) for _ in range(3))
    size = channels * height * width
    if not size or count % size or min(widths, default=1) < 1 or not mean or not 0 <= center < levels:
        raise PackError("the packed file is broken: its symbols have an impossible shape.")
    if flags & 1 and (len(dims) < 2 or math.prod(dims) != count):
        raise PackError("the packed file is broken: its symbols have an impossible order.")
    scheme = ClassScheme(levels, center, bool(flags & 2), (*widths, levels))
    view = ArrayView(bool(flags & 1), (count // size, channels, height, width))
    return view.back(read_mixed(SymbolReader(header.rest()), view.shape, scheme, mean), dims)


def bell(levels: int, center: int, scale: int) -> Array:
    """(levels,) positive integers: a prior with heavy tails around the center. scale: its width in 16ths."""
    away = (16 * np.abs(np.arange(levels, dtype=np.int64) - center)) * 16 // max(1, scale)
    shape = (BELL << 8) // (256 + np.minimum(away, 2**20) ** 2)
    heights = shape * shape // BELL + 1
    found: Array = 1 + BELL_WEIGHT * levels * heights // int(heights.sum())
    return found


# --- inside --------------------------------------------------------------------------------------------


def _counted(symbols: Array, counts: Array) -> bytes:
    levels = len(counts)
    places = np.arange(levels)
    total = max(1, int(counts.sum()))
    center = int(np.rint((counts * places).sum() / total))
    spread = math.sqrt((counts * (places - center) ** 2).sum() / total)
    found = []
    for scale in {max(1, int(16 * spread * each)) for each in (1.0, 1.8)} | {2**24}:
        writer = SymbolWriter()
        writer.adaptive(symbols, bell(levels, center, scale))
        found.append(numbers(COUNTED, center, scale) + writer.content())
        if symbols.size > TRIED:
            break
    return min(found, key=len)


def _mixed(symbols: Array, view: ArrayView, dims: tuple[int, ...], scheme: ClassScheme) -> bytes:
    ordered = view.forth(symbols, dims)
    mean = mean_magnitude(scheme.classes[ordered], scheme)
    writer = SymbolWriter()
    write_mixed(writer, ordered, view.shape, scheme, mean)
    flags = int(view.swapped) + 2 * int(scheme.has_zero)
    widths = scheme.widths[:-1]
    header = numbers(MIXED, flags, scheme.center, mean, len(widths), *widths, *view.shape[1:])
    return header + writer.content()


def _views(symbols: Array, dims: tuple[int, ...]) -> Iterator[ArrayView]:
    """The views that are worth trying."""
    rows = dims[0] if dims else 1
    if len(dims) < 2 or not symbols.size or math.prod(dims) != symbols.size:
        side = math.isqrt(symbols.size)
        divisor = next((each for each in range(side, 0, -1) if symbols.size % each == 0), 1)
        yield ArrayView(False, (symbols.size // divisor, 1, 1, divisor))
        return
    inner = math.prod(dims[2:])
    if inner > 1:
        height = math.prod(dims[2:-1])
        yield ArrayView(False, (rows, dims[1], height, dims[-1]))
        if dims[1] > 1 and rows > 1:
            yield ArrayView(True, (dims[1], rows, height, dims[-1]))
        return
    yield ArrayView(False, (rows, 1, 1, dims[1]))
    for height, width in _images(symbols.reshape(rows, -1)):
        yield ArrayView(False, (rows, dims[1] // (height * width), height, width))
    if rows > 1:
        yield ArrayView(True, (dims[1], 1, 1, rows))


def _images(matrix: Array) -> Iterator[tuple[int, int]]:
    """The size of images that the columns seem to be the pixels of: columns so far apart are alike."""
    columns = matrix.shape[1]
    sample = matrix[: max(1, TRIED // columns)].astype(np.float64)
    sample -= sample.mean()
    power = float((sample * sample).mean()) or 1.0
    lags = [lag for lag in range(2, min(LAGS_MOST, columns // 2) + 1) if columns % lag == 0]
    likeness = {lag: float((sample[:, lag:] * sample[:, :-lag]).mean()) / power for lag in lags}
    if not likeness:
        return
    width = max(likeness, key=lambda lag: likeness[lag])
    if likeness[width] < LAG_LEAST:
        return
    height = width if columns % (width * width) == 0 else columns // width
    yield height, width


def _swapped(symbols: Array, dims: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.swapaxes(symbols.reshape(dims), 0, 1))


def _head(symbols: Array, dims: tuple[int, ...], rows: int | None) -> Array:
    return symbols if rows is None or not dims else symbols[: rows * (symbols.size // dims[0])]


def _cut(view: ArrayView, dims: tuple[int, ...], count: int) -> Shape4:
    """The shape of a view of fewer rows."""
    rows, channels, height, width = view.shape
    if not view.swapped:
        return count // (channels * height * width), channels, height, width
    if channels > 1 or height > 1:
        return rows, dims[0], height, width
    return rows, 1, 1, count // rows
