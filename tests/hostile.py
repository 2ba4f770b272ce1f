"""Files changed as storage, transfer and ill will change them: seeded, so that a failure can be had again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto

from onnxcomp.tensors import tensors_of

WHOLE = (0, -1, 1, 2, 3, -2, 7, 13, 17, 99, 10**6, 2**31 - 1, -(2**31))
LARGE = (2**31, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "a", "x" * 5000, "\x00", "\x1b[31m", "../../etc/passwd", "é", "\n", "' \"<script>", "0", "y", "x")
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-40)
BYTES = (b"", b"\x00", b"\xff" * 7, bytes(range(64)))
LARGEST_COPY_BYTES = 200_000


def structure_of(content: bytes) -> list[int]:
    """The positions of a model's bytes that are no weights: most of a file is, and a changed weight is valid."""
    model = ModelProto()
    model.ParseFromString(content)
    weights: set[int] = set()
    for tensor in tensors_of(model):
        start = content.find(tensor.raw_data) if len(tensor.raw_data) > 64 else -1
        weights.update(range(start, start + len(tensor.raw_data)) if start >= 0 else ())
    return [place for place in range(len(content)) if place not in weights]


def changed_bytes(content: bytes, places: list[int], rng: random.Random) -> bytes:
    """The content with some bytes flipped, cut off, left out, repeated or swapped."""
    made = bytearray(content)
    kind = rng.choice(("flip", "flips", "byte", "cut", "leave out", "repeat", "swap"))
    at, other, length = rng.choice(places), rng.choice(places), rng.randint(1, 16)
    if kind in ("flip", "flips"):
        for place in rng.choices(places, k=1 if kind == "flip" else 6):
            made[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        made[at] = rng.randrange(256)
    elif kind == "cut":
        del made[at:]
    elif kind == "leave out":
        del made[at : at + length]
    elif kind == "repeat":
        made[at:at] = made[at : at + length]
    else:
        made[at], made[other] = made[other], made[at]
    return bytes(made)


def changed_fields(content: bytes, rng: random.Random) -> bytes:
    """A model with one or two of its fields emptied, repeated, moved or set to what nobody expects there."""
    model = ModelProto()
    model.ParseFromString(content)
    for _ in range(rng.randint(1, 2)):
        messages = list(_messages(model))
        message = rng.choice(messages)
        field = rng.choice(message.DESCRIPTOR.fields)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            _change_message(message, field, messages, rng)
        else:
            _change_value(message, field, rng)
    return model.SerializeToString()


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _change_message(message: Message, field: FieldDescriptor, all_of: list[Message], rng: random.Random) -> None:
    equals = [each for each in all_of if each.DESCRIPTOR is field.message_type]
    small = [each for each in equals if each.ByteSize() < LARGEST_COPY_BYTES]
    copied = type(small[0])() if small else None
    if copied is not None:
        copied.CopyFrom(rng.choice(small))
    if not field.is_repeated:
        if copied is None or rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).CopyFrom(copied)
        return
    entries = getattr(message, field.name)
    if entries and (copied is None or rng.random() < 0.4):
        del entries[rng.randrange(len(entries))]
    elif copied is not None:
        entries.insert(rng.randrange(len(entries) + 1), copied)


def _change_value(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return
    value = _odd_value(field, rng)
    if not field.is_repeated:
        setattr(message, field.name, value)
        return
    entries = getattr(message, field.name)
    if entries and rng.random() < 0.6:
        entries[rng.randrange(len(entries))] = value
    else:
        entries.append(value)


def _odd_value(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([each.number for each in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice(BYTES)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    wide = field.type == FieldDescriptor.TYPE_INT64
    values = [*WHOLE, *(LARGE if wide else ())]
    unsigned = field.type == FieldDescriptor.TYPE_UINT64
    return rng.choice([each for each in values if each >= 0] if unsigned else values)
