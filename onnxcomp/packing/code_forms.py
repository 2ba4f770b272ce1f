"""The bytes that hold a weight's codes, as symbols in the weight's shape, and made again from them.

    dense       codes                                     <->   planes of packed codes
    masked      0 or the code under the mask              <->   bits, planes of the codes under the mask
    excepted    ranks by frequency                        <->   planes of distances, of exceptions, of all the others

The order of the symbols is that of the values that they stand for, as far as the book tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.numerics.encodings.packing import MAX_BITS, BitLayout, digits_in, pack, unpack
from onnxcomp.numerics.encodings.sparse_decoder import entries_of
from onnxcomp.packing.coders.symbol_arrays import LEVELS_MOST, read_symbols, write_symbols
from onnxcomp.packing.recognition import Planes, StoredCodes
from onnxcomp.packing.varints import NumberReader, framed, numbers

Array = NDArray[Any]

DENSE, MASKED, EXCEPTED, EXCEPTED_FROM_ONE = range(4)
RANK_MOST = 8


@dataclass(frozen=True)
class CodeForm:
    """How symbols are laid out in bytes.

    kind: one of the constants above. shape: of the symbols. layouts: of the values, then of the steps and of what the
    exceptions stand over. order: the symbol at each place of the alphabet.
    """

    kind: int
    shape: tuple[int, ...]
    layouts: tuple[BitLayout, ...]
    order: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many symbols there are."""
        return math.prod(self.shape)

    def to_bytes(self) -> bytes:
        """The form, as ``from_bytes`` reads it."""
        is_plain = self.order == tuple(range(len(self.order)))
        return b"".join([
            numbers(self.kind, len(self.shape), *self.shape),
            numbers(*(part for each in self.layouts for part in (each.levels, each.group, each.bits))),
            numbers(len(self.order), is_plain, *(() if is_plain else self.order)),
        ])  # fmt: skip

    @classmethod
    def from_bytes(cls, parts: NumberReader) -> CodeForm:
        """The inverse. Raises PackError where it is none."""
        kind = parts.number(EXCEPTED_FROM_ONE)
        shape = tuple(parts.number() for _ in range(parts.number(RANK_MOST)))
        layouts = tuple(_layout(*(parts.number(2**17) for _ in range(3))) for _ in range(_layout_count(kind)))
        levels = parts.number(LEVELS_MOST)
        order = tuple(range(levels)) if parts.number(1) else tuple(parts.number(levels) for _ in range(levels))
        if sorted(order) != list(range(levels)) or not levels:
            raise PackError("the packed file is broken: its symbols have no order.")
        return cls(kind, shape, layouts, order)


def symbols_of(codes: StoredCodes, arrays: Mapping[str, Array]) -> tuple[CodeForm, Array] | None:
    """The form and the (n,) symbols of a weight's codes; None where these are laid out in another way.

    arrays: the (bytes,) uint8 or (n,) uint16 data of its constants, by name.
    """
    try:
        form, ranks = _taken(codes, arrays)
        if len(form.order) > LEVELS_MOST:
            return None
        place = np.empty(len(form.order), np.int64)
        place[list(form.order)] = np.arange(len(form.order))
        symbols = place[ranks]
        made = data_of(form, symbols)
    except (ValueError, IndexError, OverflowError):
        return None
    own = [np.ascontiguousarray(arrays[name]).tobytes() for name in codes.names]
    return (form, symbols) if made == own else None


def data_of(form: CodeForm, symbols: Array) -> list[bytes]:
    """The data of the constants, in the order of ``StoredCodes.names``. Raises ValueError or IndexError for no form."""
    ranks = np.asarray(form.order, np.int64)[symbols]
    values, *others = form.layouts
    if form.kind == DENSE:
        planes = pack(ranks, values)
    elif form.kind == MASKED:
        mask = ranks > 0
        planes = [*pack(ranks[mask] - 1, values), np.packbits(mask)]
    else:
        frequent = others[1].levels if form.kind == EXCEPTED else 1
        entries = entries_of(ranks >= frequent, others[0].levels - 1)
        steps = np.zeros(others[0].padded(entries.steps.size), np.int64)
        steps[: entries.steps.size] = entries.steps
        planes = [*pack(ranks[entries.positions], values), *pack(steps, others[0])]
        if form.kind == EXCEPTED:
            planes += pack(np.minimum(ranks, frequent - 1), others[1])
    return [each.astype(f"<u{each.dtype.itemsize}").tobytes() for each in planes]


def write_codes(form: CodeForm, symbols: Array) -> bytes:
    """A unit's payload for the symbols."""
    head = form.to_bytes()
    return framed([head, write_symbols(symbols, len(form.order), form.shape)])


def read_codes(payload: bytes, lengths: Sequence[int]) -> tuple[CodeForm, Array]:
    """Form and symbols from a payload. lengths: of the data they are to make, which bound the number of symbols."""
    parts = NumberReader(payload)
    head = NumberReader(parts.part())
    form = CodeForm.from_bytes(head)
    head.finish()
    if form.count > symbols_most(form, lengths):
        raise PackError("the packed file is broken: it has more codes than fit in the data.")
    return form, read_symbols(parts.rest(), form.count, len(form.order), form.shape)


def symbols_most(form: CodeForm, lengths: Sequence[int]) -> int:
    """How many symbols may lie in data of these lengths, at most."""
    if form.kind == DENSE:
        return form.layouts[0].group * sum(lengths)
    if form.kind == MASKED:
        return 8 * lengths[-1] if lengths else 0
    return 2**8 * form.layouts[1].group * sum(lengths)


def checked_data(form: CodeForm, symbols: Array, lengths: Sequence[int]) -> list[bytes]:
    """``data_of``, which is of these lengths. Raises PackError."""
    try:
        made = data_of(form, symbols)
    except (ValueError, IndexError, OverflowError) as error:
        raise PackError(f"the packed file is broken: its codes fit no form: {error}.") from error
    if [len(each) for each in made] != list(lengths):
        raise PackError("the packed file is broken: its codes make data of another length.")
    return made


# --- inside --------------------------------------------------------------------------------------------


def _taken(codes: StoredCodes, arrays: Mapping[str, Array]) -> tuple[CodeForm, Array]:
    count = math.prod(codes.shape)
    values = codes.values.layout
    if codes.mask is not None:
        mask = np.unpackbits(arrays[codes.mask].view(np.uint8))[:count].astype(bool)
        ranks = np.zeros(count, np.int64)
        ranks[mask] = _unpacked(codes.values, arrays, int(mask.sum())).astype(np.int64) + 1
        order = _order(codes.book, 1 + values.levels) if codes.book else _with_zero_inside(values.levels)
        return CodeForm(MASKED, codes.shape, (values,), order), ranks
    if codes.steps is None:
        ranks = _unpacked(codes.values, arrays, count).astype(np.int64)
        return CodeForm(DENSE, codes.shape, (values,), _order(codes.book, values.levels)), ranks
    steps = _unpacked(codes.steps, arrays, None).astype(np.int64)
    exceptions = _unpacked(codes.values, arrays, None).astype(np.int64)
    used = min(steps.size, exceptions.size)
    base = codes.base
    ranks = np.zeros(count, np.int64) if base is None else _unpacked(base, arrays, count).astype(np.int64)
    ranks[np.cumsum(steps)[:used]] = exceptions[:used]
    kind = EXCEPTED_FROM_ONE if base is None else EXCEPTED
    layouts = (values, codes.steps.layout, *(() if base is None else (base.layout,)))
    return CodeForm(kind, codes.shape, layouts, _order(codes.book, values.levels)), ranks


def _unpacked(planes: Planes, arrays: Mapping[str, Array], count: int | None) -> Array:
    held = [arrays[name] for name in planes.names]
    layout = planes.layout
    if count is None:
        width = min(8, layout.widths[0])
        count = held[0].size * 8 // width * layout.group if layout.widths[0] <= 8 else held[0].size * layout.group
    return unpack(held, layout, count)


def _order(book: tuple[float, ...], levels: int) -> tuple[int, ...]:
    """The codes by the values that they stand for."""
    if len(book) < levels:
        return tuple(range(levels))
    return tuple(int(each) for each in np.argsort(np.asarray(book[:levels]), kind="stable"))


def _with_zero_inside(levels: int) -> tuple[int, ...]:
    """Rank 0 between the lower half of the others and the upper one."""
    half = levels // 2
    return (*range(1, half + 1), 0, *range(half + 1, levels + 1))


def _layout_count(kind: int) -> int:
    return {DENSE: 1, MASKED: 1, EXCEPTED: 3, EXCEPTED_FROM_ONE: 2}[kind]


def _layout(levels: int, group: int, bits: int) -> BitLayout:
    if not (2 <= levels <= 2**MAX_BITS and 8 <= bits <= MAX_BITS and 1 <= group <= digits_in(levels, bits)):
        raise PackError("the packed file is broken: its codes have an impossible layout.")
    return BitLayout(levels, group, bits)
