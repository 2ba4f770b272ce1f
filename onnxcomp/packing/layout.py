"""What the files of a model are made of: bytes that are no tensor's, and the data of tensors, in turn.

    model.onnx   gap, item 0, gap, item 1, ..., gap            data.bin   gap, item 7, gap, ...

Gaps of the model file are its skeleton. All of this follows from the skeleton and the sizes of the files.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from onnxcomp.errors import OnnxcompError, PackError
from onnxcomp.packing.skeleton import LEAST, DataPlace, shape_of
from onnxcomp.tensors import data_length, data_offset, reference_of

MODEL = ""  # what the model file is called among the files


@dataclass(frozen=True)
class Item:
    """The data of one tensor. offset: in its file. key: a name that tells it from others, where it has one."""

    index: int
    file: str
    offset: int
    length: int
    data_type: int
    dims: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class FileLayout:
    """A file: its name below the model's folder, its size, and its items in order; what is between them are gaps."""

    name: str
    size: int
    items: tuple[Item, ...]

    @property
    def gaps(self) -> tuple[int, ...]:
        """The lengths of the gaps before each item, and after the last."""
        ends = itertools.accumulate(self.items, lambda _, item: item.offset + item.length, initial=0)
        starts = (*(each.offset for each in self.items), self.size)
        return tuple(start - end for start, end in zip(starts, ends, strict=True))


@dataclass(frozen=True)
class FilesLayout:
    """The files of a model, the model itself first."""

    files: tuple[FileLayout, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All items by their index."""
        return tuple(item for each in self.files for item in each.items)

    @property
    def gap_bytes(self) -> int:
        """Bytes of all gaps together."""
        return sum(sum(each.gaps) for each in self.files)


def locations(outside: Sequence[TensorProto]) -> list[str]:
    """The files that tensors refer to, in the order in which they are met."""
    return list(dict.fromkeys(reference_of(each).get("location", "") for each in outside))


def layout_of(places: Sequence[DataPlace], outside: Sequence[TensorProto], sizes: Mapping[str, int]) -> FilesLayout:
    """The layout of a model. sizes: of its files by name. Raises PackError where these are too short."""
    own: list[Item] = []
    taken = 0
    for place in places:
        key = f"{place.field}:{place.tensor.name}"
        offset = place.position + taken
        own.append(Item(len(own), MODEL, offset, place.length, place.data_type, place.dims, key))
        taken += place.length
    files = [FileLayout(MODEL, sizes[MODEL], tuple(own))]
    count = len(own)
    for name in locations(outside):
        held = _outside_items(name, outside, sizes[name], count)
        count += len(held)
        files.append(FileLayout(name, sizes[name], tuple(held)))
    if any(gap < 0 for each in files for gap in each.gaps):
        raise PackError("a file is shorter than the data that should be in it.")
    return FilesLayout(tuple(files))


def _outside_items(name: str, outside: Sequence[TensorProto], size: int, first: int) -> list[Item]:
    """The data in one file, without what overlaps data before it, or is not there."""
    regions: dict[tuple[int, int], TensorProto] = {}
    for tensor in outside:
        if reference_of(tensor).get("location", "") != name:
            continue
        try:
            offset, length = data_offset(tensor), data_length(tensor)
        except (OnnxcompError, ValueError, KeyError, TypeError):
            continue
        if length >= LEAST and offset >= 0 and offset + length <= size:
            regions.setdefault((offset, length), tensor)
    found: list[Item] = []
    end = 0
    for (offset, length), tensor in sorted(regions.items(), key=lambda each: (each[0][0], -each[0][1])):
        if offset >= end:
            dims = shape_of(tensor, tensor.data_type, length)
            found.append(Item(first + len(found), name, offset, length, tensor.data_type, dims, f"0:{tensor.name}"))
            end = offset + length
    return found
