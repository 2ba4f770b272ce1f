"""A packed model: any tensor of it, or all its files as they were.

Nothing that stands in the file is trusted: lengths are compared with what they have to be, units with their checksums,
files with their SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from onnxcomp.errors import PackError
from onnxcomp.packing.code_forms import checked_data, read_codes
from onnxcomp.packing.coders.general import read_bytes
from onnxcomp.packing.coders.tensor_data import read_data
from onnxcomp.packing.container import PART_BYTES, ContainerReader
from onnxcomp.packing.deltas import Base, read_different, read_moved, read_same
from onnxcomp.packing.layout import MODEL, FileLayout, Item, layout_of, locations
from onnxcomp.packing.origin import digest_of
from onnxcomp.packing.skeleton import places
from onnxcomp.packing.units import (
    CODES,
    DATA,
    DELTAS,
    DIFFERENT,
    GAPS,
    GROUP,
    MOVED,
    SAME,
    ItemPart,
    is_whole,
    parts_of,
    whole_group,
)

SKELETON_MOST = 2**31
KINDS = frozenset({DATA, GROUP, CODES}) | DELTAS


class PackedModel:
    """A packed model in a file that can be sought in.

    layout: what the files of the model are made of. skeleton: the model without the items' data.
    base: what it is a delta of. Raises PackError, here and in all methods, where the file is broken.
    """

    def __init__(self, file: BinaryIO, base: Base | None = None) -> None:
        self._container = ContainerReader(file)
        self.index = self._container.index
        self._base = self._checked_base(base)
        sizes = {each.name: each.size for each in self.index.files}
        if self.index.skeleton > SKELETON_MOST or len(sizes) != len(self.index.files):
            raise PackError("the packed file is broken: its index does not fit.")
        self._gap_units = [number for number, each in enumerate(self.index.units) if each.kind == GAPS]
        if len(self._gap_units) != -(-self.index.gaps // PART_BYTES):
            raise PackError("the packed file is broken: its index does not fit.")
        self.skeleton = b"".join(_Gaps(self).take(self.index.skeleton))
        self.places, outside = places(self.skeleton, is_skeleton=True)
        if [MODEL, *locations(outside)] != [each.name for each in self.index.files]:
            raise PackError("the packed file is broken: it has other files than the model names.")
        self.layout = layout_of(self.places, outside, sizes)
        if self.layout.gap_bytes != self.index.gaps:
            raise PackError("the packed file is broken: its index does not fit.")
        self._items = self.layout.items
        self._units_of = self._units_by_item()
        self._held: dict[int, bytes] = {}

    @property
    def digest(self) -> bytes:
        return digest_of(tuple(each.digest for each in self.index.files))

    def data(self, item: Item) -> bytes:
        """The bytes of an item."""
        return b"".join(self.parts(item))

    def parts(self, item: Item) -> Iterator[bytes]:
        """The bytes of an item in parts of at most 16 MB, but for codes, which come in one."""
        if item.index in self._held:
            yield self._held.pop(item.index)
            return
        numbers = self._units_of[item.index]
        if self._is_alone(numbers[0]):
            for number, part in zip(numbers, parts_of(item), strict=True):
                yield self._part(number, item, part)
            return
        for index, data in self._together(numbers[0], item.index).items():
            self._held[index] = data
        yield self._held.pop(item.index)

    def content(self, file: FileLayout, kept: dict[int, bytes] | None = None) -> Iterator[bytes]:
        """A file as it was, in order; to be asked for in the order of the layout. It is worth nothing before the end,
        where its SHA-256 is compared. kept: gets the data of its items."""
        if file.name == MODEL:
            self._gaps = _Gaps(self)
        hashed = hashlib.sha256()
        for gap, item in zip(file.gaps, (*file.items, None), strict=True):
            for piece in self._gaps.take(gap):
                hashed.update(piece)
                yield piece
            pieces = iter(()) if item is None else self.parts(item)
            if kept is not None and item is not None:
                kept[item.index] = b"".join(pieces)
                pieces = iter((kept[item.index],))
            for piece in pieces:
                hashed.update(piece)
                yield piece
        expected = next(each.digest for each in self.index.files if each.name == file.name)
        if hashed.digest() != expected:
            raise PackError("the packed file is broken: what comes out is not what was packed.")

    def gap_part(self, number: int) -> bytes:
        """A part of the gaps."""
        length = min(PART_BYTES, self.index.gaps - number * PART_BYTES)
        known = b"" if self._base is None else self._base.source.skeleton
        return read_bytes(self._container.payload(self._gap_units[number]), length, known)

    def all_data(self) -> dict[int, bytes]:
        """The data of all items by their index, once the SHA-256 of every file was compared."""
        found: dict[int, bytes] = {}
        for file in self.layout.files:
            for _ in self.content(file, found):
                pass
        return found

    def _is_alone(self, number: int) -> bool:
        """Whether a unit holds one item, or a part of one."""
        unit = self.index.units[number]
        return unit.kind == DATA or (unit.kind == DIFFERENT and len(unit.items) == 1)

    def _part(self, number: int, item: Item, part: ItemPart) -> bytes:
        payload = self._container.payload(number)
        if self.index.units[number].kind == DATA:
            return read_data(payload, item.data_type, part.dims, part.stop - part.start)
        return read_different(payload, [item], self._known_base(), part)

    def _together(self, number: int, wanted: int) -> dict[int, bytes]:
        """The items of a unit that holds several; of those that the base has only the one that is wanted."""
        unit = self.index.units[number]
        items = [self._items[each] for each in unit.items]
        payload = self._container.payload(number)
        lengths = [each.length for each in items]
        if unit.kind == CODES:
            form, symbols = read_codes(payload, lengths)
            return dict(zip(unit.items, checked_data(form, symbols, lengths), strict=True))
        if unit.kind in DELTAS:
            return self._from_base(unit.kind, payload, items, wanted)
        if not is_whole(items):
            raise PackError("the packed file is broken: a group has several types.")
        return _apart(items, read_data(payload, items[0].data_type, whole_group(items).dims, sum(lengths)))

    def _from_base(self, kind: int, payload: bytes, items: list[Item], wanted: int) -> dict[int, bytes]:
        base = self._known_base()
        if kind == SAME:
            old = read_same(payload, [each.index for each in items], base)
            at = next(place for place, each in enumerate(items) if each.index == wanted)
            if old[at].length != items[at].length:
                raise PackError("the packed file is broken: what it shares with its base has another length.")
            return {wanted: base.source.data(old[at])}
        if kind == MOVED:
            return dict(zip([each.index for each in items], read_moved(payload, items, base), strict=True))
        if not is_whole(items):
            raise PackError("the packed file is broken: a group has several types.")
        return _apart(items, read_different(payload, items, base, whole_group(items)))

    def _known_base(self) -> Base:
        if self._base is None:
            raise PackError("the packed file is broken: it is no delta, and has a part of one.")
        return self._base

    def _checked_base(self, base: Base | None) -> Base | None:
        if self.index.base is None:
            return None
        if base is None:
            raise PackError("it is a delta: name the model that it was taken against by --base.")
        if base.source.digest != self.index.base:
            raise PackError("it is a delta of another model than the one that --base names.")
        return base

    def _units_by_item(self) -> list[list[int]]:
        """The units of each item. Raises PackError where an item has too many or too few."""
        found: list[list[int]] = [[] for _ in self._items]
        for number, unit in enumerate(self.index.units):
            if unit.kind == GAPS:
                continue
            if unit.kind not in KINDS or not unit.items or max(unit.items) >= len(found):
                raise PackError("the packed file is broken: its index does not fit.")
            if unit.kind == DATA and len(unit.items) > 1:
                raise PackError("the packed file is broken: its index does not fit.")
            for each in unit.items:
                found[each].append(number)
        for item, numbers in zip(self._items, found, strict=True):
            is_alone = bool(numbers) and all(map(self._is_alone, numbers))
            if len(numbers) != (len(parts_of(item)) if is_alone else 1):
                raise PackError("the packed file is broken: its index does not fit.")
        return found


def _apart(items: list[Item], data: bytes) -> dict[int, bytes]:
    ends = np.cumsum([each.length for each in items]).tolist()
    return {each.index: data[end - each.length : end] for each, end in zip(items, ends, strict=True)}


class _Gaps:
    """The gaps from the first one on."""

    def __init__(self, model: PackedModel) -> None:
        self._model = model
        self._number = 0
        self._left = b""

    def take(self, length: int) -> Iterator[bytes]:
        """The next so many bytes."""
        while length:
            if not self._left:
                self._left = self._model.gap_part(self._number)
                self._number += 1
            piece, self._left = self._left[:length], self._left[length:]
            length -= len(piece)
            yield piece
