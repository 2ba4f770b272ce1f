"""The file that packed units lie in: magic, version, units, index, trailer.

    magic 8 | version 1 | payloads of the units, one after another | index | trailer 16

    trailer: length of the packed index 4, length of the index 4, CRC-32 of the packed index 4, magic 4

Units are checked in chunks, consecutive units with one CRC-32; the index says which. docs/container.md has the format.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.general import read_bytes, write_bytes
from onnxcomp.packing.varints import NumberReader, numbers

MAGIC = b"\x93ONNXP\r\n"
VERSION = 1
END = b"PXNO"
TRAILER = struct.Struct("<III4s")
CHUNK_BYTES = 2**20  # of units that share a checksum, at least
PART_BYTES = 2**24  # of data that is packed at a time
INDEX_MOST = 2**28
UNIT_MOST = 2**31  # packed bytes of a unit
FILES_MOST = 2**16
DIGEST_BYTES = 32


@dataclass(frozen=True)
class PackedUnit:
    """What is packed together. kind: see ``units``. items: whose data it holds. length: packed bytes."""

    kind: int
    items: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class PackedFile:
    """A file of the model: its name below the model's folder, its size and its SHA-256."""

    name: str
    size: int
    digest: bytes


@dataclass
class Index:
    """What the container holds.

    skeleton: bytes of the model's skeleton; gaps: of that and the gaps of the other files. base: the digest of the
    model that it is a delta of. chunks: (units, CRC-32) of each chunk.
    """

    files: list[PackedFile] = field(default_factory=list)
    skeleton: int = 0
    gaps: int = 0
    base: bytes | None = None
    units: list[PackedUnit] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The index, column by column."""
        names = [each.name.encode() for each in self.files]
        columns = [
            numbers(len(self.files), self.skeleton, self.gaps, self.base is not None),
            numbers(len(self.units), len(self.chunks)),
            *(numbers(len(name), each.size) + name for name, each in zip(names, self.files, strict=True)),
            numbers(*(each.kind for each in self.units)),
            numbers(*(len(each.items) for each in self.units)),
            numbers(*_steps(item for each in self.units for item in each.items)),
            numbers(*(each.length for each in self.units)),
            numbers(*(count for count, _ in self.chunks)),
            b"".join(struct.pack("<I", checksum) for _, checksum in self.chunks),
            b"".join(each.digest for each in self.files),
            self.base or b"",
        ]
        return b"".join(columns)

    @classmethod
    def from_bytes(cls, content: bytes) -> Index:
        """The inverse. Raises PackError where it is broken."""
        parts = NumberReader(content)
        files = parts.number(FILES_MOST)
        skeleton, gaps, has_base = parts.number(), parts.number(), parts.number(1)
        units, chunks = parts.number(len(content)), parts.number(len(content))
        found = cls(skeleton=skeleton, gaps=gaps)
        named = []
        for _ in range(files):
            length, size = parts.number(2**12), parts.number()
            named.append((_text(parts.take(length)), size))
        kinds = [parts.number(255) for _ in range(units)]
        sizes = [parts.number(len(content)) for _ in range(units)]
        items = _from_steps(parts.number() for _ in range(min(sum(sizes), len(content))))
        lengths = [parts.number(UNIT_MOST) for _ in range(units)]
        counts = [parts.number(units) for _ in range(chunks)]
        sums = [struct.unpack("<I", parts.take(4))[0] for _ in range(chunks)]
        for name, size in named:
            found.files.append(PackedFile(name, size, parts.take(DIGEST_BYTES)))
        found.base = parts.take(DIGEST_BYTES) if has_base else None
        parts.finish()
        start = 0
        for kind, size, length in zip(kinds, sizes, lengths, strict=True):
            found.units.append(PackedUnit(kind, tuple(items[start : start + size]), length))
            start += size
        found.chunks = list(zip(counts, sums, strict=True))
        if not found.files or sum(counts) != units or skeleton > gaps:
            raise PackError("the packed file is broken: its index does not fit.")
        return found


class ContainerWriter:
    """Gives the bytes of a container while units are added."""

    def __init__(self) -> None:
        self.index = Index()
        self._checksum = self._bytes = self._units = 0

    def begin(self) -> bytes:
        """What a container begins with."""
        return MAGIC + bytes([VERSION])

    def add(self, kind: int, items: tuple[int, ...], payload: bytes) -> bytes:
        """Note a unit; gives what is to be written."""
        self.index.units.append(PackedUnit(kind, items, len(payload)))
        self._checksum = zlib.crc32(payload, self._checksum)
        self._bytes += len(payload)
        self._units += 1
        if self._bytes >= CHUNK_BYTES:
            self._end_chunk()
        return payload

    def finish(self) -> bytes:
        """The index and the trailer."""
        self._end_chunk()
        content = self.index.to_bytes()
        packed = write_bytes(content)
        return packed + TRAILER.pack(len(packed), len(content), zlib.crc32(packed), END)

    def _end_chunk(self) -> None:
        if self._units:
            self.index.chunks.append((self._units, self._checksum))
        self._checksum = self._bytes = self._units = 0


class ContainerReader:
    """A container in a file that can be sought in. Raises PackError where it is none, or is broken."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(len(MAGIC) + 1)
        if len(head) < len(MAGIC) + 1 or not head.startswith(MAGIC):
            raise PackError("not a file that onnxcomp packed, or cut short.")
        if head[-1] != VERSION:
            raise PackError(f"version {head[-1]} of packed files is not known, only {VERSION}: take a newer onnxcomp.")
        self.index = self._read_index(size)
        self._starts, self._chunk_of, self._chunks = self._places(size)
        self._held: tuple[int, bytes] | None = None

    def payload(self, number: int) -> bytes:
        """The packed bytes of a unit, once its chunk was checked."""
        chunk = self._chunk_of[number]
        start, length, checksum = self._chunks[chunk]
        if self._held is None or self._held[0] != chunk:
            self._held = None
            self._file.seek(start)
            content = self._file.read(length)
            if len(content) != length or zlib.crc32(content) != checksum:
                raise PackError("the packed file is broken: its data is not what was written.")
            self._held = chunk, content
        offset = self._starts[number] - start
        return self._held[1][offset : offset + self.index.units[number].length]

    def _read_index(self, size: int) -> Index:
        if size < len(MAGIC) + 1 + TRAILER.size:
            raise PackError("not a file that onnxcomp packed, or cut short.")
        self._file.seek(size - TRAILER.size)
        packed_length, length, checksum, end = TRAILER.unpack(self._file.read(TRAILER.size))
        start = size - TRAILER.size - packed_length
        if end != END or start < len(MAGIC) + 1 or length > INDEX_MOST:
            raise PackError("the packed file is cut short, or something was added to it.")
        self._file.seek(start)
        packed = self._file.read(packed_length)
        if zlib.crc32(packed) != checksum:
            raise PackError("the packed file is broken: its index is not what was written.")
        self._end = start
        return Index.from_bytes(read_bytes(packed, length))

    def _places(self, size: int) -> tuple[list[int], list[int], list[tuple[int, int, int]]]:
        """Where units start, the chunk of each, and the chunks: start, length, checksum."""
        starts, chunk_of, chunks = [], [], []
        position = first = len(MAGIC) + 1
        units = iter(self.index.units)
        for number, (count, checksum) in enumerate(self.index.chunks):
            for _ in range(count):
                starts.append(position)
                chunk_of.append(number)
                position += next(units).length
            chunks.append((first, position - first, checksum))
            first = position
        if position != self._end:
            raise PackError("the packed file is broken: its index does not fit.")
        return starts, chunk_of, chunks


def _steps(items: Iterator[int]) -> Iterator[int]:
    """Each number as its difference to the one after the number before it, the sign in the lowest bit."""
    expected = 0
    for each in items:
        step = each - expected
        yield 2 * step if step >= 0 else -2 * step - 1
        expected = each + 1


def _from_steps(steps: Iterator[int]) -> list[int]:
    found = []
    expected = 0
    for each in steps:
        item = expected + (each >> 1 if each & 1 == 0 else -((each + 1) >> 1))
        if item < 0:
            raise PackError("the packed file is broken: its index does not fit.")
        found.append(item)
        expected = item + 1
    return found


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise PackError("the packed file is broken: a name is no text.") from error
