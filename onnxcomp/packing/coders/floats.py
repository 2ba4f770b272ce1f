"""Floats as exponents, which are symbols, and the rest of their bits, of which few can be told.

    sign | exponent | mantissa    ->    exponent         symbols in the context of their surroundings
                                        sign, mantissa   cut in bytes from the low end, each plane by itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.general import read_bytes, write_bytes
from onnxcomp.packing.coders.symbol_arrays import read_symbols, write_symbols
from onnxcomp.packing.varints import NumberReader, framed, numbers

Array = NDArray[Any]


@dataclass(frozen=True)
class FloatLayout:
    """Bits of a float type, the sign first."""

    size_bytes: int
    exponent: int
    mantissa: int

    @property
    def planes(self) -> int:
        """Bytes that sign and mantissa fill."""
        return (self.mantissa + 8) // 8

    def parted(self, words: Array) -> tuple[Array, Array]:
        """(n,) unsigned words -> exponents, and mantissas with the sign above them."""
        kind = words.dtype.type
        exponents = (words >> kind(self.mantissa)) & kind(2**self.exponent - 1)
        signs = words >> kind(self.mantissa + self.exponent)
        rest = (words & kind(2**self.mantissa - 1)) | (signs << kind(self.mantissa))
        return exponents.astype(np.int64), rest

    def joined(self, exponents: Array, rest: Array) -> Array:
        """The inverse."""
        kind = rest.dtype.type
        signs = rest >> kind(self.mantissa)
        found: Array = rest & kind(2**self.mantissa - 1)
        found |= exponents.astype(rest.dtype) << kind(self.mantissa)
        found |= signs << kind(self.mantissa + self.exponent)
        return found


LAYOUTS: dict[int, FloatLayout] = {
    TensorProto.FLOAT: FloatLayout(4, 8, 23),
    TensorProto.DOUBLE: FloatLayout(8, 11, 52),
    TensorProto.FLOAT16: FloatLayout(2, 5, 10),
    TensorProto.BFLOAT16: FloatLayout(2, 8, 7),
}


def write_floats(data: bytes | memoryview, data_type: int, dims: tuple[int, ...]) -> bytes:
    """What ``read_floats`` makes the bytes of (n,) floats of; dims: of the array that they are."""
    layout = LAYOUTS[data_type]
    exponents, rest = layout.parted(np.frombuffer(data, f"<u{layout.size_bytes}"))
    lowest = int(exponents.min(initial=2**layout.exponent))
    levels = int(exponents.max(initial=lowest)) - lowest + 1
    symbols = write_symbols(exponents - lowest, levels, dims)
    planes = [write_bytes(_plane(rest, place)) for place in range(layout.planes)]
    return numbers(lowest, levels) + framed([symbols, *planes])


def read_floats(packed: bytes, data_type: int, dims: tuple[int, ...], length: int) -> bytes:
    """The inverse, for ``length`` bytes. Raises PackError where it is not what was packed."""
    layout = LAYOUTS[data_type]
    if length % layout.size_bytes:
        raise PackError("the packed file is broken: floats are cut short.")
    count = length // layout.size_bytes
    parts = NumberReader(packed)
    lowest, levels = parts.number(2**layout.exponent), parts.number(2**layout.exponent)
    if not levels or lowest + levels > 2**layout.exponent:
        raise PackError("the packed file is broken: its exponents are none.")
    held = [parts.part() for _ in range(layout.planes)] + [parts.rest()]
    exponents = read_symbols(held[0], count, levels, dims) + lowest
    rest = np.zeros(count, f"<u{layout.size_bytes}")
    for place, plane in enumerate(held[1:]):
        own = np.frombuffer(read_bytes(plane, count), np.uint8)
        rest |= own.astype(rest.dtype) << rest.dtype.type(8 * place)
    if int((rest >> rest.dtype.type(layout.mantissa)).max(initial=0)) > 1:
        raise PackError("the packed file is broken: its signs are none.")
    return layout.joined(exponents, rest).tobytes()


def _plane(rest: Array, place: int) -> bytes:
    plane: bytes = (rest >> rest.dtype.type(8 * place)).astype(np.uint8).tobytes()
    return plane
