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
from onnxcomp.packing.layout import MODEL, FileLayout, Item, layout_of, locations
from onnxcomp.packing.origin import digest_of
from onnxcomp.packing.skeleton import places
from onnxcomp.packing.units import CODES, DATA, GAPS, GROUP, group_dims, is_whole, parts_of

SKELETON_MOST = 2**31


class PackedModel:
    """A packed model in a file that can be sought in.

    layout: what the files of the model are made of. skeleton: the model without the items' data.
    Raises PackError, here and in all methods, where the file is broken.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._container = ContainerReader(file)
        self.index = self._container.index
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
        kind = self.index.units[numbers[0]].kind
        if kind == DATA:
            for number, part in zip(numbers, parts_of(item), strict=True):
                payload = self._container.payload(number)
                yield read_data(payload, item.data_type, part.dims, part.stop - part.start)
            return
        for index, data in self._together(numbers[0]).items():
            self._held[index] = data
        yield self._held.pop(item.index)

    def content(self, file: FileLayout) -> Iterator[bytes]:
        """A file as it was, in order; to be asked for in the order of the layout. It is worth nothing before the end,
        where its SHA-256 is compared."""
        if file.name == MODEL:
            self._gaps = _Gaps(self)
        hashed = hashlib.sha256()
        for gap, item in zip(file.gaps, (*file.items, None), strict=True):
            for piece in self._gaps.take(gap):
                hashed.update(piece)
                yield piece
            for piece in () if item is None else self.parts(item):
                hashed.update(piece)
                yield piece
        expected = next(each.digest for each in self.index.files if each.name == file.name)
        if hashed.digest() != expected:
            raise PackError("the packed file is broken: what comes out is not what was packed.")

    def gap_part(self, number: int) -> bytes:
        """A part of the gaps."""
        length = min(PART_BYTES, self.index.gaps - number * PART_BYTES)
        return read_bytes(self._container.payload(self._gap_units[number]), length)

    def _together(self, number: int) -> dict[int, bytes]:
        """The items of a unit that holds several."""
        unit = self.index.units[number]
        items = [self._items[each] for each in unit.items]
        payload = self._container.payload(number)
        lengths = [each.length for each in items]
        if unit.kind == CODES:
            form, symbols = read_codes(payload, lengths)
            return dict(zip(unit.items, checked_data(form, symbols, lengths), strict=True))
        if not is_whole(items):
            raise PackError("the packed file is broken: a group has several types.")
        data = read_data(payload, items[0].data_type, group_dims(items), sum(lengths))
        ends = np.cumsum(lengths).tolist()
        return {each.index: data[end - each.length : end] for each, end in zip(items, ends, strict=True)}

    def _units_by_item(self) -> list[list[int]]:
        """The units of each item. Raises PackError where an item has too many or too few."""
        found: list[list[int]] = [[] for _ in self._items]
        for number, unit in enumerate(self.index.units):
            if unit.kind == GAPS:
                continue
            if unit.kind not in (DATA, GROUP, CODES) or not unit.items or max(unit.items) >= len(found):
                raise PackError("the packed file is broken: its index does not fit.")
            if unit.kind == DATA and len(unit.items) > 1:
                raise PackError("the packed file is broken: its index does not fit.")
            for each in unit.items:
                found[each].append(number)
        for item, numbers in zip(self._items, found, strict=True):
            kinds = {self.index.units[each].kind for each in numbers}
            if len(numbers) != (len(parts_of(item)) if kinds == {DATA} else 1):
                raise PackError("the packed file is broken: its index does not fit.")
        return found


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
