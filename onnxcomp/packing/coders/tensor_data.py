"""The data of one tensor, or of a part of it: the fewest bytes of the ways that its type admits.

    bytes      whatever it is                      (``general``)
    floats     exponents and the rest              (``floats``)
    numbers    8-bit integers as ordered symbols   (``symbol_arrays``)
    book       few distinct values: the values, and which one stands where
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.floats import LAYOUTS, read_floats, write_floats
from onnxcomp.packing.coders.general import promised, read_bytes, write_bytes
from onnxcomp.packing.coders.symbol_arrays import LEVELS_MOST, read_symbols, write_symbols
from onnxcomp.packing.varints import NumberReader, framed, numbers
from onnxcomp.tensors import bits_of

Array = NDArray[Any]

BYTES, FLOATS, NUMBERS, BOOK = range(4)
SIGNED = frozenset({TensorProto.INT8})
EIGHT_BITS = SIGNED | {
    TensorProto.UINT8, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ, TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2,
}  # fmt: skip
REPEATED = 0.8  # of the bytes of floats, by a sample, below which they are tried as bytes
SEEN = 2**14  # values by which it is seen whether there are few distinct ones
DISTINCT_SHARE = 0.25  # of them, at most


def element_bytes(data_type: int) -> int:
    """The bytes of one element; 1 for types that share a byte and for unknown ones."""
    try:
        return max(1, bits_of(data_type) // 8)
    except (ValueError, KeyError, TypeError):
        return 1


def write_data(data: bytes | memoryview, data_type: int, dims: tuple[int, ...]) -> bytes:
    """The fewest bytes that ``read_data`` makes the data of."""
    own = _own_dims(dims, len(data) // element_bytes(data_type))
    found = []
    if data_type not in LAYOUTS or promised(data) < REPEATED:
        found.append(bytes([BYTES]) + write_bytes(bytes(data)))
    if len(data) % element_bytes(data_type) == 0 and len(data):
        if data_type in LAYOUTS:
            found.append(bytes([FLOATS]) + write_floats(data, data_type, own))
        if data_type in EIGHT_BITS:
            found.append(bytes([NUMBERS]) + _write_numbers(data, data_type, own))
        if element_bytes(data_type) > 1 and _has_few(data, element_bytes(data_type)):
            found += [bytes([BOOK]) + each for each in _write_book(data, data_type, own)]
    return min(found, key=len) if found else bytes([BYTES]) + write_bytes(bytes(data))


def read_data(packed: bytes, data_type: int, dims: tuple[int, ...], length: int) -> bytes:
    """The inverse, for data of a known length. Raises PackError where it is not what was packed."""
    if not packed:
        raise PackError("the packed file is broken: a tensor is empty.")
    kind, body = packed[0], packed[1:]
    own = _own_dims(dims, length // element_bytes(data_type))
    if kind == BYTES:
        return read_bytes(body, length)
    if kind == FLOATS and data_type in LAYOUTS:
        return read_floats(body, data_type, own, length)
    if kind == NUMBERS and data_type in EIGHT_BITS:
        return _read_numbers(body, data_type, own, length)
    if kind == BOOK and length % element_bytes(data_type) == 0:
        return _read_book(body, data_type, own, length)
    raise PackError(f"the packed file is broken: it has a tensor of an unknown kind {kind}.")


# --- inside --------------------------------------------------------------------------------------------


def _own_dims(dims: tuple[int, ...], count: int) -> tuple[int, ...]:
    return dims if math.prod(dims) == count else (count,)


def _write_numbers(data: bytes | memoryview, data_type: int, dims: tuple[int, ...]) -> bytes:
    values = np.frombuffer(data, np.int8 if data_type in SIGNED else np.uint8).astype(np.int64) + 128
    lowest = int(values.min())
    levels = int(values.max()) - lowest + 1
    return numbers(lowest, levels) + write_symbols(values - lowest, levels, dims)


def _read_numbers(packed: bytes, data_type: int, dims: tuple[int, ...], length: int) -> bytes:
    parts = NumberReader(packed)
    lowest, levels = parts.number(512), parts.number(256)
    values = read_symbols(parts.rest(), length, max(1, levels), dims) + (lowest - 128)
    return values.astype(np.uint8).tobytes()


def _has_few(data: bytes | memoryview, size: int) -> bool:
    sample = np.frombuffer(data, f"<u{size}")
    sample = sample[:: max(1, sample.size // SEEN)]
    return len(np.unique(sample)) <= max(2, DISTINCT_SHARE * sample.size)


def _write_book(data: bytes | memoryview, data_type: int, dims: tuple[int, ...]) -> list[bytes]:
    """The one way there is, or none. Levels are in the order of the values, so that like codes are like values."""
    words = np.frombuffer(data, f"<u{element_bytes(data_type)}")
    book = np.unique(words)
    if book.size > LEVELS_MOST:
        return []
    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    is_signed = data_type in LAYOUTS
    order = np.argsort(np.where(book & top, ~book, book | top)) if is_signed else np.arange(book.size)
    place = np.empty(book.size, np.int64)
    place[order] = np.arange(book.size)
    symbols = place[np.searchsorted(book, words)]
    values = book[order].tobytes()
    held = write_bytes(values)
    if is_signed:
        held = min(held, bytes([255]) + write_floats(values, data_type, (book.size,)), key=len)
    return [numbers(book.size) + framed([held, write_symbols(symbols, book.size, dims)])]


def _read_book(packed: bytes, data_type: int, dims: tuple[int, ...], length: int) -> bytes:
    size = element_bytes(data_type)
    parts = NumberReader(packed)
    levels = parts.number(LEVELS_MOST)
    held = parts.part()
    if held[:1] == b"\xff" and data_type in LAYOUTS:
        values = read_floats(held[1:], data_type, (levels,), levels * size)
    else:
        values = read_bytes(held, levels * size)
    if not levels:
        raise PackError("the packed file is broken: a book has no values.")
    symbols = read_symbols(parts.rest(), length // size, levels, dims)
    return np.frombuffer(values, f"<u{size}")[symbols].tobytes()
