"""A model against another one that whoever unpacks it has: what changed, and how.

    SAME        items that the base has, by its numbers
    DIFFERENT   items by their difference to items of the base
    MOVED       the codes of a weight by their difference to those in the base's constants, which are laid out alike
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.errors import PackError
from onnxcomp.packing.code_forms import CodeForm, checked_data, ranks_in, symbols_most, symbols_of_ranks
from onnxcomp.packing.coders.differences import read_difference, write_difference
from onnxcomp.packing.coders.general import read_bytes, write_bytes
from onnxcomp.packing.coders.symbol_arrays import Array, read_symbols, write_symbols
from onnxcomp.packing.layout import Item
from onnxcomp.packing.origin import PackSource
from onnxcomp.packing.units import DIFFERENT, MOVED, SAME, ItemPart
from onnxcomp.packing.varints import NumberReader, framed, numbers

Made = tuple[int, tuple[int, ...], bytes]


class Base:
    """The model that a delta is taken against, and which of its items stand for which."""

    def __init__(self, source: PackSource) -> None:
        self.source = source
        self.items = source.layout.items
        self._by_key: dict[str, Item | None] = {}
        for each in self.items:
            self._by_key[each.key] = None if each.key in self._by_key else each

    def like(self, item: Item) -> Item | None:
        """The item of the same name, type and length."""
        found = self._by_key.get(item.key)
        is_like = found is not None and (found.length, found.data_type) == (item.length, item.data_type)
        return found if is_like else None

    def data(self, items: Sequence[Item]) -> bytes:
        """The data of items of the base, one after another."""
        return b"".join(self.source.data(each) for each in items)


def same(pairs: Sequence[tuple[Item, Item]]) -> Iterator[Made]:
    """The unit of items that the base has, where there are any: (item, the base's)."""
    if pairs:
        steps = (_folded(old.index - new.index) for new, old in pairs)
        held = numbers(*steps)
        yield SAME, tuple(new.index for new, _ in pairs), numbers(len(held)) + write_bytes(held)


def read_same(payload: bytes, unit_items: Sequence[int], base: Base) -> list[Item]:
    """The base's items for the items of a unit."""
    parts = NumberReader(payload)
    held = NumberReader(read_bytes_of(parts))
    return [_item(base, index + _unfolded(held.number())) for index in unit_items]


def read_bytes_of(parts: NumberReader) -> bytes:
    """Bytes that have their length before them, to the end."""
    length = parts.number(2**28)
    return read_bytes(parts.rest(), length)


def different(new: bytes, items: Sequence[Item], old: Sequence[Item], base: Base, part: ItemPart) -> Made:
    """The unit of items, or of a part of one, by their difference."""
    made = write_difference(new, base.data(old)[part.start : part.stop], items[0].data_type, part.dims)
    return DIFFERENT, tuple(each.index for each in items), _headed(items, old, made)


def read_different(payload: bytes, items: Sequence[Item], base: Base, part: ItemPart) -> bytes:
    """The data of a unit's items, one after another, or of a part of one."""
    old, parts = _old(payload, items, base)
    return read_difference(parts.rest(), base.data(old)[part.start : part.stop], items[0].data_type, part.dims)


def moved(form: CodeForm, symbols: Array, items: Sequence[Item], old: Sequence[Item], base: Base) -> Made | None:
    """The unit of a weight's codes by how far each moved; None where the base's constants have others."""
    before = _symbols_before(form, old, base)
    if before is None:
        return None
    levels = len(form.order)
    apart = (symbols - before + levels // 2) % levels
    body = framed([form.to_bytes(), write_symbols(apart, levels, form.shape)])
    return MOVED, tuple(each.index for each in items), _headed(items, old, body)


def read_moved(payload: bytes, items: Sequence[Item], base: Base) -> list[bytes]:
    """The data of the constants that hold the codes."""
    old, parts = _old(payload, items, base)
    head = NumberReader(parts.part())
    form = CodeForm.from_bytes(head)
    head.finish()
    lengths = [each.length for each in items]
    if form.count > symbols_most(form, lengths):
        raise PackError("the packed file is broken: it has more codes than fit in the data.")
    before = _symbols_before(form, old, base)
    if before is None:
        raise PackError("the packed file is broken: the base has no such codes.")
    levels = len(form.order)
    apart = read_symbols(parts.rest(), form.count, levels, form.shape)
    return checked_data(form, (apart + before - levels // 2) % levels, lengths)


# --- inside --------------------------------------------------------------------------------------------


def _symbols_before(form: CodeForm, old: Sequence[Item], base: Base) -> Array | None:
    try:
        ranks = ranks_in(form, [base.source.data(each) for each in old])
        found = symbols_of_ranks(form, ranks)
    except (ValueError, IndexError, OverflowError):
        return None
    return np.asarray(found) if found.size == form.count else None


def _headed(items: Sequence[Item], old: Sequence[Item], body: bytes) -> bytes:
    return numbers(*(_folded(was.index - now.index) for now, was in zip(items, old, strict=True))) + body


def _old(payload: bytes, items: Sequence[Item], base: Base) -> tuple[list[Item], NumberReader]:
    parts = NumberReader(payload)
    old = [_item(base, each.index + _unfolded(parts.number())) for each in items]
    if any(was.length != now.length for was, now in zip(old, items, strict=True)):
        raise PackError("the packed file is broken: what it differs from has another length.")
    return old, parts


def _item(base: Base, index: int) -> Item:
    if not 0 <= index < len(base.items):
        raise PackError("the packed file is broken: the base has no such tensor.")
    return base.items[index]


def _folded(number: int) -> int:
    return 2 * number if number >= 0 else -2 * number - 1


def _unfolded(number: int) -> int:
    return number >> 1 if number & 1 == 0 else -((number + 1) >> 1)
