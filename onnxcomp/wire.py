"""The data of large tensors out of a serialized model, and in again, as the rest of the message stays as it is.

    initializer {dims, data_type, name, raw_data}   <->   initializer {dims, data_type, name, external_data}

Protobuf holds a message whole, copies it whole and encodes it whole to tell its length. Here it is read field by
field: a tag (number and wire type), then a value, or a length and so many bytes. What is not on the way to a tensor is
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

Buffer = bytes | memoryview
Inside = Mapping[str, Mapping[int, str]]
"""Kind of message -> number of a field -> the kind of message in it, as far as it leads to tensors."""

LENGTH_DELIMITED = 2
FIXED = {1: 8, 5: 4}  # bytes of a value by its wire type
TENSOR = "TensorProto"
RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
OP_TYPE = 4  # of a NodeProto
REFERENCE_KEY = b"location"  # in every message that holds a reference
# Only data that ONNX Runtime takes from a file: of initializers, and of Constant nodes.
TAKEN_FROM: Inside = {
    "ModelProto": {7: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR},
    "NodeProto": {5: "AttributeProto"},
    "Constant": {5: "its value"},
    "AttributeProto": {6: "GraphProto", 11: "GraphProto"},
    "its value": {5: TENSOR},
}


@dataclass(frozen=True)
class Missing:
    """The place of a tensor's data: so many bytes, to be read from where ``tensor`` refers to."""

    tensor: TensorProto
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


Piece = Buffer | Missing


def without_data(content: Buffer, least: int, moved: Callable[[TensorProto, memoryview], bool]) -> bytes:
    """A serialized model without the raw data of ``least`` bytes and more that ``moved`` takes over.

    moved: is given a tensor without its data, and the data; True where it has made the tensor a reference to them.
    Raises DecodeError for what is no message.
    """

    def taken(start: int, stop: int) -> list[Piece] | None:
        found = [each for each in _fields(view, start, stop) if each.number == RAW_DATA]
        if len(found) != 1 or found[0].kind != LENGTH_DELIMITED or found[0].stop - found[0].value < least:
            return None
        data = found[0]
        tensor = TensorProto.FromString(bytes(view[start : data.start]) + bytes(view[data.stop : stop]))
        return [tensor.SerializeToString(deterministic=True)] if moved(tensor, view[data.value : data.stop]) else None

    view = memoryview(content)
    rewriting = _Rewriting(view, TAKEN_FROM, lambda start, stop: stop - start >= least, taken)
    return b"".join(_buffers(rewriting.whole()))


def with_data(header: bytes, length_of: Callable[[TensorProto], int]) -> list[Piece]:
    """A serialized model, with the place of the data wherever it refers to a file.

    length_of: bytes of the data behind a reference, by type and shape.
    """

    def filled(start: int, stop: int) -> list[Piece] | None:
        tensor = TensorProto.FromString(header[start:stop])
        if tensor.data_location != TensorProto.EXTERNAL:
            return None
        whole = TensorProto()
        whole.CopyFrom(tensor)
        del whole.external_data[:]
        whole.ClearField("data_location")
        whole.raw_data = b""  # for its place among the fields
        around = whole.SerializeToString(deterministic=True)
        empty = next(each for each in _fields(memoryview(around), 0, len(around)) if each.number == RAW_DATA)
        length = length_of(tensor)
        tag = around[empty.start : empty.start + 1]
        return [around[: empty.start] + tag + varint(length), Missing(tensor, length), around[empty.stop :]]

    def refers(start: int, stop: int) -> bool:
        return header.find(REFERENCE_KEY, start, stop) >= 0

    return _Rewriting(memoryview(header), ANYWHERE, refers, filled).whole()


def varint(number: int) -> bytes:
    """A number as protobuf writes lengths: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


# --- inside --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    start: int
    value: int
    stop: int


@dataclass(frozen=True)
class _Rewriting:
    """One pass over a message. worth: whether there is something to do between two positions; tensor: what comes in
    the place of one, None where it stays."""

    content: memoryview
    inside: Inside
    worth: Callable[[int, int], bool]
    tensor: Callable[[int, int], list[Piece] | None]

    def whole(self) -> list[Piece]:
        return self._message("ModelProto", 0, len(self.content)) or [self.content]

    def _message(self, kind: str, start: int, stop: int) -> list[Piece] | None:
        """What comes in a message's place, None where it stays."""
        if kind == TENSOR:
            return self.tensor(start, stop)
        inner = self.inside[self._kind(kind, start, stop)]
        made: list[Piece] = []
        written = start
        for each in _fields(self.content, start, stop):
            name = inner.get(each.number)
            if name is None or each.kind != LENGTH_DELIMITED or not self.worth(each.value, each.stop):
                continue
            replaced = self._message(name, each.value, each.stop)
            if replaced is None:
                continue
            tag = varint(each.number << 3 | LENGTH_DELIMITED)
            made += [self.content[written : each.start], tag + varint(sum(map(len, replaced))), *replaced]
            written = each.stop
        return [*made, self.content[written:stop]] if made else None

    def _kind(self, kind: str, start: int, stop: int) -> str:
        """A node's operator where that matters."""
        if kind != "NodeProto" or "Constant" not in self.inside:
            return kind
        operators = [each for each in _fields(self.content, start, stop) if each.number == OP_TYPE]
        is_constant = len(operators) == 1 and bytes(self.content[operators[0].value : operators[0].stop]) == b"Constant"
        return "Constant" if is_constant else kind


def _fields(content: memoryview, position: int, end: int) -> Iterator[_Field]:
    """The fields between two positions. Raises DecodeError where they are none."""
    while position < end:
        start = position
        key, position = _varint(content, position, end)
        number, kind = key >> 3, key & 7
        if kind == LENGTH_DELIMITED:
            length, position = _varint(content, position, end)
            stop = position + length
        elif kind == 0:
            _, stop = _varint(content, position, end)
        elif kind in FIXED:
            stop = position + FIXED[kind]
        else:
            raise DecodeError(f"wire type {kind}")
        if stop > end:
            raise DecodeError("a field is cut short")
        yield _Field(number, kind, start, position, stop)
        position = stop


def _varint(content: memoryview, position: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while position < end:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise DecodeError("a number is cut short")


def _buffers(pieces: Iterable[Piece]) -> Iterator[Buffer]:
    for each in pieces:
        assert not isinstance(each, Missing)
        yield each


def _leading_to_tensors(kind: Any) -> Inside:
    """All ways from a message to the tensors in it."""
    found: dict[str, dict[int, str]] = {}

    def visit(message: Any) -> None:
        if message.name in found or message.name == TENSOR:
            return
        found[message.name] = {}
        for each in message.fields:
            if each.message_type is not None:
                visit(each.message_type)
                found[message.name][each.number] = each.message_type.name

    visit(kind)
    leading = {TENSOR}
    while more := {name for name, inner in found.items() if leading.intersection(inner.values())} - leading:
        leading |= more
    return {
        name: {number: inner for number, inner in held.items() if inner in leading}
        for name, held in found.items()
        if name in leading
    }


ANYWHERE = _leading_to_tensors(ModelProto.DESCRIPTOR)
