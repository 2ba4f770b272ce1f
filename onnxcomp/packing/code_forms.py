"""The bytes that hold a weight's codes, as symbols in the weight's shape, and made again from them.

    dense       codes                                     <->   planes of packed codes
    masked      0 or the code under the mask              <->   bits, planes of the codes under the mask
    excepted    ranks by frequency                        <->   planes of distances, of exceptions, of all the others

The order of the symbols is that of the values that they stand for, as far as the book tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.numerics.encodings.packing import MAX_BITS, BitLayout, digits_in, pack, unpack
from onnxcomp.numerics.encodings.sparse_decoder import entries_of
from onnxcomp.packing.coders.symbol_arrays import LEVELS_MOST, read_symbols, write_symbols
from onnxcomp.packing.recognition import StoredCodes
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


def symbols_of(codes: StoredCodes, data: Sequence[bytes]) -> tuple[CodeForm, Array] | None:
    """The form and the (n,) symbols of a weight's codes; None where these are laid out in another way.

    data: of its constants, in the order of ``StoredCodes.names``.
    """
    try:
        form = _form_of(codes)
        symbols = symbols_of_ranks(form, ranks_in(form, data))
        return (form, symbols) if data_of(form, symbols) == list(data) else None
    except (ValueError, IndexError, OverflowError):
        return None


def symbols_of_ranks(form: CodeForm, ranks: Array) -> Array:
    """(n,) places in the alphabet of (n,) ranks. Raises IndexError where one is none."""
    place = np.empty(len(form.order), np.int64)
    place[list(form.order)] = np.arange(len(form.order))
    return np.asarray(place[ranks])


def ranks_in(form: CodeForm, data: Sequence[bytes]) -> Array:
    """(n,) int64 ranks that the data of the constants hold. Raises ValueError or IndexError where they hold none."""
    left = list(data)
    values = _taken(left, form.layouts[0])
    if form.kind == DENSE:
        return unpack(values, form.layouts[0], form.count).astype(np.int64)
    if form.kind == MASKED:
        mask = np.unpackbits(np.frombuffer(left.pop(0), np.uint8))[: form.count].astype(bool)
        ranks = np.zeros(form.count, np.int64)
        ranks[mask] = unpack(values, form.layouts[0], int(mask.sum())).astype(np.int64) + 1
        return ranks
    steps = _all_of(_taken(left, form.layouts[1]), form.layouts[1])
    exceptions = _all_of(values, form.layouts[0])
    used = min(steps.size, exceptions.size)
    ranks = np.zeros(form.count, np.int64)
    if form.kind == EXCEPTED:
        ranks[:] = unpack(_taken(left, form.layouts[2]), form.layouts[2], form.count)
    ranks[np.cumsum(steps)[:used]] = exceptions[:used]
    return ranks


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


def _form_of(codes: StoredCodes) -> CodeForm:
    values = codes.values.layout
    if codes.mask is not None:
        order = _order(codes.book, 1 + values.levels) if codes.book else _with_zero_inside(values.levels)
        return CodeForm(MASKED, codes.shape, (values,), order)
    order = _order(codes.book, values.levels)
    if codes.steps is None:
        return CodeForm(DENSE, codes.shape, (values,), order)
    if codes.base is None:
        return CodeForm(EXCEPTED_FROM_ONE, codes.shape, (values, codes.steps.layout), order)
    return CodeForm(EXCEPTED, codes.shape, (values, codes.steps.layout, codes.base.layout), order)


def _taken(left: list[bytes], layout: BitLayout) -> list[Array]:
    """The planes of a layout, taken from the front."""
    return [np.frombuffer(left.pop(0), "<u2" if width > 8 else np.uint8) for width in layout.widths]


def _all_of(planes: Sequence[Array], layout: BitLayout) -> Array:
    """All codes in planes, padding included."""
    return unpack(planes, layout, planes[0].nbytes * 8 // layout.widths[0] * layout.group).astype(np.int64)


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
