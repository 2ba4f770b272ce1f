"""Data by their difference to other data of the same type and length.

    floats     how many floats lie between the old value and the new one: the length of that number in bits, which is a
               symbol, and its bits below the highest
    numbers    8-bit integers: the new one less the old one
    bytes      exclusive or
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.floats import LAYOUTS
from onnxcomp.packing.coders.general import read_bytes, write_bytes
from onnxcomp.packing.coders.symbol_arrays import read_symbols, write_symbols
from onnxcomp.packing.coders.tensor_data import EIGHT_BITS, element_bytes, read_data, write_data
from onnxcomp.packing.varints import NumberReader, framed

Array = NDArray[Any]

XOR, FLOATS, NUMBERS = range(3)
SLICE = 2**18  # numbers whose bits are taken apart at a time


def write_difference(new: bytes, old: bytes, data_type: int, dims: tuple[int, ...]) -> bytes:
    """The fewest bytes that ``read_difference`` makes the new data of, beside the old."""
    mixed = (np.frombuffer(new, np.uint8) ^ np.frombuffer(old, np.uint8)).tobytes()
    found = [bytes([XOR]) + write_bytes(mixed)]
    if data_type in LAYOUTS and len(new) % element_bytes(data_type) == 0 and new:
        found.append(bytes([FLOATS]) + _write_floats(new, old, data_type, dims))
    elif data_type in EIGHT_BITS and new:
        apart = (np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8)).tobytes()
        found.append(bytes([NUMBERS]) + write_data(apart, TensorProto.INT8, dims))
    return min(found, key=len)


def read_difference(packed: bytes, old: bytes, data_type: int, dims: tuple[int, ...]) -> bytes:
    """The inverse. Raises PackError where it is not what was packed."""
    kind, body = packed[:1], packed[1:]
    if kind == bytes([XOR]):
        mixed = np.frombuffer(read_bytes(body, len(old)), np.uint8)
        return (mixed ^ np.frombuffer(old, np.uint8)).tobytes()
    if kind == bytes([FLOATS]) and data_type in LAYOUTS and len(old) % element_bytes(data_type) == 0:
        return _read_floats(body, old, data_type, dims)
    if kind == bytes([NUMBERS]) and data_type in EIGHT_BITS:
        apart = np.frombuffer(read_data(body, TensorProto.INT8, dims, len(old)), np.uint8)
        return (apart + np.frombuffer(old, np.uint8)).tobytes()
    raise PackError("the packed file is broken: it has a difference of an unknown kind.")


# --- inside --------------------------------------------------------------------------------------------


def _write_floats(new: bytes, old: bytes, data_type: int, dims: tuple[int, ...]) -> bytes:
    size = element_bytes(data_type)
    apart = _ordered(np.frombuffer(new, f"<u{size}")) - _ordered(np.frombuffer(old, f"<u{size}"))
    folded = _folded(apart)
    lengths = _bit_lengths(folded)
    symbols = write_symbols(lengths.astype(np.int64), 8 * size + 1, dims)
    bits = [_low_bits(folded[lengths == length], length - 1) for length in range(2, 8 * size + 1)]
    return framed([symbols, np.packbits(np.concatenate(bits)).tobytes()])


def _read_floats(packed: bytes, old: bytes, data_type: int, dims: tuple[int, ...]) -> bytes:
    size = element_bytes(data_type)
    before = _ordered(np.frombuffer(old, f"<u{size}"))
    parts = NumberReader(packed)
    lengths = read_symbols(parts.part(), before.size, 8 * size + 1, dims)
    bits = np.unpackbits(np.frombuffer(parts.rest(), np.uint8))
    folded = np.zeros(before.size, before.dtype)
    position = 0
    for length in range(1, 8 * size + 1):
        held = np.flatnonzero(lengths == length)
        own = bits[position : position + held.size * (length - 1)]
        position += held.size * (length - 1)
        if own.size != held.size * (length - 1):
            raise PackError("the packed file is broken: a difference is cut short.")
        folded[held] = _from_low_bits(own, held.size, length - 1, before.dtype) | before.dtype.type(1 << (length - 1))
    return _unordered(before + _unfolded(folded)).tobytes()


def _ordered(words: Array) -> Array:
    """Unsigned words in the order of the floats that they are."""
    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    return np.where(words & top, ~words, words | top)


def _unordered(words: Array) -> Array:
    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    return np.where(words & top, words & ~top, ~words)


def _folded(apart: Array) -> Array:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    one, last = apart.dtype.type(1), apart.dtype.type(8 * apart.itemsize - 1)
    return np.asarray((apart << one) ^ (apart.dtype.type(0) - (apart >> last)))


def _unfolded(folded: Array) -> Array:
    one = folded.dtype.type(1)
    return np.asarray((folded >> one) ^ (folded.dtype.type(0) - (folded & one)))


def _bit_lengths(numbers: Array) -> Array:
    """(n,) int64 bits that unsigned numbers have."""
    found = np.zeros(numbers.size, np.int64)
    left = numbers.copy()
    for step in (32, 16, 8, 4, 2, 1):
        if step >= 8 * numbers.itemsize:
            continue
        is_more = left >= numbers.dtype.type(1 << step)
        found += step * is_more
        left = np.where(is_more, left >> numbers.dtype.type(step), left)
    return found + (left > 0)


def _low_bits(numbers: Array, count: int) -> Array:
    """(n * count,) uint8 the low bits of each number, the highest first."""
    places = np.arange(count - 1, -1, -1).astype(numbers.dtype)
    one = numbers.dtype.type(1)
    found = np.empty((numbers.size, count), np.uint8)
    for start in range(0, numbers.size, SLICE):
        found[start : start + SLICE] = (numbers[start : start + SLICE, None] >> places) & one
    return found.reshape(-1)


def _from_low_bits(bits: Array, count: int, width: int, dtype: np.dtype[Any]) -> Array:
    found = np.zeros(count, dtype)
    for column in bits.reshape(count, width).T:
        found <<= dtype.type(1)
        found |= column.astype(dtype)
    return found
