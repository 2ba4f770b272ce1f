"""Storing arrays in which few symbols are much more frequent than the others.

    mask        one bit an element, then the codes of the elements that are not the most frequent one
    exceptions  codes of the most frequent symbols for all, the others put over them at stored distances
                (with one frequent symbol: the index gaps of Deep Compression, https://arxiv.org/abs/1510.00149)

Decoding takes ConstantOfShape, opset 9; CumSum and ScatterElements, opset 11, are made of older operators before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.numerics.encodings.coded_view import Symbols
from onnxcomp.numerics.encodings.expression import (
    Array,
    Literal,
    Term,
    binary,
    cast,
    concat,
    counting,
    cumsum,
    filled,
    first,
    flatten,
    gather,
    literal,
    scatter,
)  # fmt: skip
from onnxcomp.numerics.encodings.packing import BitLayout, bits_per_code, layouts, pack
from onnxcomp.numerics.encodings.table_decoder import INDEX, Memo, digits, looked_up

GAP_WIDTHS = (2, 3, 4, 5, 6, 8)  # bits of a stored distance
SMALL_TABLE = 2**15  # elements of a table over all indices that are allowed for a weight of any size
SPLITS_TRIED = 2


def fitting_layouts(levels: int, count: int) -> list[BitLayout]:
    """The layouts whose table over all indices is in proportion to what is looked up in it."""
    allowed = max(SMALL_TABLE, count // 4)
    return [each for each in layouts(levels) if each.group == 1 or each.rows * each.group <= allowed]


# --- a bit for each element ------------------------------------------------------------------------------


def masked(symbols: Symbols, memo: Memo) -> Iterator[tuple[str, Term]]:
    """(name, (count,) symbols or more) for each layout of the codes under the mask."""
    common = int(symbols.counts.argmax())
    kept = symbols.count - int(symbols.counts[common])
    dense = bits_per_code(symbols.levels)
    if symbols.levels < 3 or 1 + kept / symbols.count * bits_per_code(symbols.levels - 1) >= dense:
        return
    mask = memo(lambda: symbols.codes() != common)
    rest = np.delete(symbols.book_values(), common)

    def codes() -> Array:
        chosen: Array = symbols.codes()[mask()]
        chosen -= chosen > common
        return chosen

    for layout in fitting_layouts(symbols.levels - 1, kept):
        planes = memo(partial(_packed, codes, layout))
        pool = flatten(looked_up(literal(rest), planes, kept, layout))
        default = literal(symbols.book_values()[common : common + 1])
        yield f"mask and {layout.bits_per_code:.3g} bits", unmasked(mask, symbols.count, default, pool)


def _packed(codes: Callable[[], Array], layout: BitLayout) -> list[Array]:
    return pack(codes(), layout)


def unmasked(mask: Callable[[], Array], count: int, default: Term, pool: Term) -> Term:
    """Elements whose bit is set take the pool's values in order, others the default. Padded to whole bytes.

    mask: gives (count,) bool. default: (1,). pool: at least as many as bits are set.
    """
    packed = Literal((-(-count // 8),), np.dtype(np.uint8), lambda: np.packbits(mask()))
    bits = flatten(gather(digits(2, 8, 256), cast(packed, INDEX)))
    return gather(concat([default, pool]), binary("Mul", cumsum(bits), bits))


# --- exceptions at stored distances ----------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The ``frequent`` most frequent symbols are codes of all elements; distances of ``width`` bits lead to the rest.

    bits: the estimated price of an element.
    """

    frequent: int
    width: int
    bits: float


@dataclass(frozen=True, eq=False)
class Entries:
    """Where exceptions stand: ``positions`` (n,) ascending and the ``steps`` (n,) between them, below 2^width."""

    positions: Array
    steps: Array


def entries_of(mask: Array, step: int) -> Entries:
    """The set elements of a (count,) mask, with fillers between those that are more than ``step`` apart."""
    places = np.flatnonzero(mask)
    distances = np.diff(places, prepend=0)
    fillers = np.maximum(-(-distances // step) - 1, 0)
    steps = np.full(places.size + int(fillers.sum()), step, np.int64)
    steps[np.cumsum(fillers + 1) - 1] = distances - fillers * step
    return Entries(np.cumsum(steps), steps.astype(np.uint8))


def positions_term(entries: Callable[[], Entries], width: int, memo: Memo) -> Term:
    """int32 positions of the entries (padding repeats the last one)."""
    layout = layouts(2**width)[0] if width in (1, 2, 4, 8) else layouts(2**width)[-1]
    count = entries().steps.size
    planes = memo(lambda: pack(_padded(entries().steps, layout, 0), layout))
    steps = looked_up(counting(256), planes, count, layout)
    return cumsum(flatten(steps))


def _padded(codes: Array, layout: BitLayout, fill: int) -> Array:
    """Padding with a step of zero stays on the last entry."""
    missing = layout.padded(codes.size) - codes.size
    return np.concatenate([codes, np.full(missing, fill, codes.dtype)])


def matched(left: Term, right: Term, count: int) -> tuple[Term, Term]:
    """Two padded terms cut to the same length, at least ``count``."""
    size = min(left.size, right.size)
    assert size >= count
    return first(left, size), first(right, size)


def best_width(share: float, value_bits: float) -> tuple[int, float]:
    """The width of distances, and the bits an element costs, for a share of exceptions that lie anywhere."""
    found = []
    for width in GAP_WIDTHS:
        step = 2**width - 1
        missed = (1 - share) ** step
        entries = share / (1 - missed) if missed < 1 else 1 / step
        found.append((entries * (width + value_bits), width))
    bits, width = min(found)
    return width, bits


def excepted(symbols: Symbols, memo: Memo) -> Iterator[tuple[str, Term]]:
    """(name, (count,) symbols or more) for the best splits that are smaller than plain codes."""
    order = np.argsort(-symbols.counts, kind="stable")
    dense = bits_per_code(symbols.levels)
    found = [each for each in _splits(symbols, order, dense) if each.bits < dense]
    single = [each for each in found if each.frequent == 1]
    others = sorted((each for each in found if each.frequent > 1), key=lambda each: each.bits)
    for split in (*single, *others[:SPLITS_TRIED]):
        yield from _with_exceptions(symbols, order, split, memo)


def _splits(symbols: Symbols, order: Array, value_bits: float) -> Iterator[Split]:
    """The frequent sets that fill a layout, each with its best distance."""
    share = 1 - np.cumsum(symbols.counts[order]) / symbols.count
    fullest = {bits_per_code(levels): levels for levels in range(1, min(symbols.levels, 256))}
    for bits, levels in fullest.items():
        width, price = best_width(float(share[levels - 1]), value_bits)
        yield Split(levels, width, bits + price)


def _with_exceptions(symbols: Symbols, order: Array, split: Split, memo: Memo) -> Iterator[tuple[str, Term]]:
    rank = np.empty(symbols.levels, np.uint8 if symbols.levels <= 256 else np.uint16)
    rank[order] = np.arange(symbols.levels)

    def ranked() -> Array:
        found: Array = rank[symbols.codes()]
        return found

    ranks = memo(ranked)
    entries = memo(lambda: entries_of(ranks() >= split.frequent, 2**split.width - 1))
    count = entries().steps.size
    if count == 0:
        return
    levels = symbols.book_values()[order]
    layout = fitting_layouts(symbols.levels, count)[-1]
    planes = memo(lambda: pack(ranks()[entries().positions], layout))
    updates = flatten(looked_up(literal(levels), planes, count, layout))
    places, updates = matched(positions_term(entries, split.width, memo), updates, count)
    what = f"exceptions at {split.width} + {layout.bits_per_code:.3g} bits"
    if split.frequent == 1:
        yield f"one level and {what}", scatter(filled((symbols.count,), levels[0]), places, updates)
        return
    dense = fitting_layouts(split.frequent, symbols.count)[-1]
    codes = memo(lambda: pack(np.minimum(ranks(), split.frequent - 1), dense))
    base = flatten(looked_up(literal(levels[: split.frequent]), codes, symbols.count, dense))
    yield f"{dense.bits_per_code:.3g} bits and {what}", scatter(base, places, updates)


# --- zeros among values that are not symbols ---------------------------------------------------------------


def sparse_values(read: Callable[[], Array], memo: Memo) -> Iterator[tuple[str, Term]]:
    """(name, (count,) values or more) for an array with many zeros and other values of any kind."""
    values = read()
    bits = values.dtype.itemsize * 8
    filled_share = np.count_nonzero(_not_zero(values)) / max(1, values.size)
    mask = memo(lambda: _not_zero(read()))
    zero = np.zeros((), values.dtype)
    if 1 / bits + filled_share < 1:
        kept = int(np.count_nonzero(mask()))
        pool = Literal((kept,), values.dtype, lambda: read().reshape(-1)[mask()])
        yield "mask and values", unmasked(mask, values.size, literal(zero.reshape(1)), pool)
    width, price = best_width(filled_share, bits)
    if price < bits and filled_share > 0:
        entries = memo(lambda: entries_of(mask(), 2**width - 1))
        places = positions_term(entries, width, memo)
        size = places.size
        updates = Literal((size,), values.dtype, lambda: _values_at(read(), entries(), size))
        yield f"values at distances of {width} bits", scatter(filled((values.size,), zero), places, updates)


def _not_zero(values: Array) -> Array:
    """Which elements are not +0.0, by their bits."""
    flat = np.ascontiguousarray(values).reshape(-1)
    found: Array = flat.view(f"u{flat.dtype.itemsize}") != 0
    return found


def _values_at(values: Array, entries: Entries, size: int) -> Array:
    flat = values.reshape(-1)
    positions = np.concatenate([entries.positions, np.repeat(entries.positions[-1:], size - entries.positions.size)])
    found: Array = flat[positions]
    return found
