"""A serialized model without the data of its tensors, and where they were: found again from what is left.

    message {dims, data_type, name, raw_data: 00 01 02 ...}   ->   the same bytes but for 00 01 02 ...

The lengths of all messages stay as they were, so a walk that does not find the data where there should be some knows
how much was taken out, and which tensor it belongs to. Nothing is serialized again: every byte that is no tensor's data
is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxcomp.errors import PackError
from onnxcomp.tensors import bits_of
from onnxcomp.wire import ANYWHERE, FIXED, LENGTH_DELIMITED, TENSOR

LEAST = 16  # bytes of data that are taken out
DEEPEST = 100  # messages in messages, as protobuf has it
HELD = {9: None, 4: TensorProto.FLOAT, 10: TensorProto.DOUBLE}  # fields with data, and the type of those that have one


@dataclass(frozen=True)
class DataPlace:
    """Data of a tensor: before which byte of what is left they stand, how many there are, and the tensor without them.

    field: of the message; data in another one than ``raw_data`` have the type of that field.
    """

    position: int
    length: int
    field: int
    tensor: TensorProto

    @property
    def data_type(self) -> int:
        """The ONNX element type of the data."""
        return HELD[self.field] or self.tensor.data_type

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape, where the data fill it."""
        return shape_of(self.tensor, self.data_type, self.length)


def shape_of(tensor: TensorProto, data_type: int, length: int) -> tuple[int, ...]:
    """The tensor's shape where so many bytes of a type fill it, else that of a vector of bytes."""
    dims = tuple(tensor.dims)
    try:
        bits = bits_of(data_type)
    except (ValueError, KeyError, TypeError):
        return (length,)
    if any(dim < 0 for dim in dims) or (math.prod(dims) * bits + 7) // 8 != length:
        return (length,)
    return dims


def places(content: bytes | memoryview, *, is_skeleton: bool) -> tuple[list[DataPlace], list[TensorProto]]:
    """The places of all data of ``LEAST`` bytes and more, and the tensors whose data lie in other files.

    is_skeleton: the data are not there any more. Raises PackError for what is no message.
    """
    walk = _Walk(memoryview(content), is_skeleton)
    try:
        walk.whole()
    except (DecodeError, RecursionError) as error:
        raise PackError(f"not an ONNX model, or cut short (protobuf: {error}).") from error
    return walk.found, walk.outside


class _Walk:
    def __init__(self, content: memoryview, is_skeleton: bool) -> None:
        self.content = content
        self.is_skeleton = is_skeleton
        self.position = 0  # in the content
        self.taken = 0  # bytes that are not in it
        self.removed = 0  # bytes that would not be in the skeleton
        self.found: list[DataPlace] = []
        self.outside: list[TensorProto] = []

    def whole(self) -> None:
        """Walk over the model."""
        end = None if self.is_skeleton else len(self.content)
        while self.position < len(self.content):
            self._message("ModelProto", end, 0, to_end=self.is_skeleton)

    def _message(self, kind: str, end: int | None, depth: int, *, to_end: bool = False) -> None:
        """Walk over a message that ends at a place of the whole, with the bytes that are not there."""
        if depth > DEEPEST:
            raise DecodeError("messages in messages without end")
        inner = ANYWHERE[kind]
        while (self.position < len(self.content)) if to_end else (self._place() < (end or 0)):
            number, wire, length = self._field(None if to_end else end)
            if wire != LENGTH_DELIMITED or number not in inner:
                self._skip(length)
            elif inner[number] == TENSOR:
                self._tensor(self._place() + length)
            else:
                self._message(inner[number], self._place() + length, depth + 1)

    def _tensor(self, end: int) -> None:
        first = len(self.found)
        parts: list[bytes] = []
        held: list[tuple[int, int, int]] = []
        while self._place() < end:
            start = self.position
            number, wire, length = self._field(end)
            if wire == LENGTH_DELIMITED and number in HELD and length >= LEAST:
                held.append((self.position - self.removed, length, number))
                self.removed += 0 if self.is_skeleton else length
                if self.is_skeleton:
                    self.taken += length
                else:
                    self._skip(length)
                continue
            self._skip(length)
            parts.append(bytes(self.content[start : self.position]))
        tensor = TensorProto.FromString(b"".join(parts))
        self.found[first:] = [DataPlace(position, length, number, tensor) for position, length, number in held]
        if tensor.data_location == TensorProto.EXTERNAL:
            self.outside.append(tensor)

    def _place(self) -> int:
        return self.position + self.taken

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > len(self.content):
            raise DecodeError("a field is cut short")

    def _field(self, end: int | None) -> tuple[int, int, int]:
        """Number, wire type and length of the next field, whose value stands at the position then."""
        key = self._number()
        number, wire = key >> 3, key & 7
        if wire == LENGTH_DELIMITED:
            length = self._number()
        elif wire == 0:
            start = self.position
            self._number()
            length, self.position = self.position - start, start
        elif wire in FIXED:
            length = FIXED[wire]
        else:
            raise DecodeError(f"wire type {wire}")
        if end is not None and self._place() + length > end:
            raise DecodeError("a field is longer than the message around it")
        return number, wire, length

    def _number(self) -> int:
        found = shift = 0
        while self.position < len(self.content) and shift < 70:
            byte = self.content[self.position]
            self.position += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7
        raise DecodeError("a number is cut short")


def pieces(content: memoryview, found: list[DataPlace]) -> Iterator[memoryview]:
    """What is left of a model when the data are taken out of their places."""
    start = removed = 0
    for each in found:
        at = each.position + removed
        yield content[start:at]
        start = at + each.length
        removed += each.length
    yield content[start:]
