"""Values of a tensor, batch after batch, in memory as long as there is room and in a file beyond it.

A run keeps activations for the judge of a search, for the judge of the result, and two kinds for matching outputs: each
has a quarter of what there is for them all. Files are read and not mapped: what is mapped counts as memory, too.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.runtime import Value
from onnxcomp.tensors import Scratch

SMALL_BYTES = 4096  # not worth a place in a file
ALIGNMENT_BYTES = 64  # of values in a file
FILED = frozenset("biufc")  # kinds of numpy's types that a file can hold
LEAST_KEPT, MOST_KEPT = 64 * 2**20, 512 * 2**20  # bytes of all activations that a run keeps in memory
KEEPERS = 4


def kept_bytes(model_bytes: int) -> int:
    """How many bytes of activations each of the keepers may hold in memory: all together no more than the model has."""
    return min(MOST_KEPT, max(LEAST_KEPT, model_bytes)) // KEEPERS


class Room:
    """How many bytes some series may hold in memory together; files of theirs lie in the scratch folder."""

    def __init__(self, most_bytes: int, scratch: Scratch) -> None:
        self.most_bytes, self.scratch = most_bytes, scratch
        self.used_bytes = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether so many bytes are left, which are then taken."""
        with self._lock:
            fits = self.used_bytes + size <= self.most_bytes
            self.used_bytes += size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """Have so many bytes back."""
        with self._lock:
            self.used_bytes -= size


class Series:
    """The values of one tensor, to which more are added; memory and file go with the last reference to it."""

    def __init__(self, room: Room) -> None:
        self.size_bytes = 0
        self._room = room
        self._values: list[Value] = []  # or where a value lies in the file
        self._held = _Held()
        self._finalizer = weakref.finalize(self, _release, room, self._held)

    def __len__(self) -> int:
        return len(self._values)

    def append(self, value: Value) -> None:
        """Add the value of the next batch."""
        size = _size_bytes(value)
        self.size_bytes += size
        if size < SMALL_BYTES or not _is_filed(value):
            self._values.append(value)
        elif self._room.take(size):
            self._held.bytes += size
            self._values.append(np.ascontiguousarray(value))
        else:
            self._values.append(self._written(np.ascontiguousarray(value)))

    def __getitem__(self, batch: int) -> Value:
        value = self._values[batch]
        if not isinstance(value, _Place):
            return value
        assert self._held.path is not None
        read = np.fromfile(self._held.path, np.uint8, value.size_bytes, offset=value.offset)
        return read.view(value.dtype).reshape(value.shape)

    def _written(self, value: Array) -> _Place:
        if self._held.path is None:
            self._held.path = self._room.scratch.new_path(".series")
        with self._held.path.open("ab") as file:
            place = _Place(file.tell(), value.dtype, value.shape, value.nbytes)
            file.write(value.reshape(-1).view(np.uint8).data)
            file.write(bytes(-value.nbytes % ALIGNMENT_BYTES))
        return place


class _Held:
    """What a series has to give back."""

    bytes = 0
    path: Path | None = None


@dataclass(frozen=True)
class _Place:
    """Where a value lies in a file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size_bytes: int


def _size_bytes(value: Value) -> int:
    if isinstance(value, list | tuple):
        return sum(_size_bytes(each) for each in value)
    return int(getattr(value, "nbytes", 0))


def _is_filed(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in FILED


def _release(room: Room, held: _Held) -> None:
    room.give_back(held.bytes)
    if held.path is not None:
        with contextlib.suppress(OSError):  # mapped still, where that keeps a file; the scratch folder goes later
            held.path.unlink(missing_ok=True)
