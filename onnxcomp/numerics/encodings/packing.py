"""Codes as bytes: groups of digits in bit planes, so that a decoder needs nothing but table lookups.

    codes in [0, levels)  --g at a time-->  index = sum(code[i] * levels^(g-1-i))  --cut in planes-->  bytes

An index of 8 to 15 bits is cut in one plane of 8 bits and planes of 4, 2 or 1 bits for the rest, one of 16
stays whole; a byte of a plane of width w holds 8 / w indices' parts, the first in its highest bits. Groups
make level counts cheap that are no power of two: five ternary codes in a byte (1.6 bits each), three of ten
levels in 10 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_BITS = 16  # of an index: its table has 2^bits rows
CHUNK = 2**20  # groups that are packed at a time


@dataclass(frozen=True)
class BitLayout:
    """``group`` codes of ``levels`` levels each in one index of ``bits`` bits (8 to 16)."""

    levels: int
    group: int
    bits: int

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the planes, the low byte of the index first."""
        if self.bits == MAX_BITS:
            return (MAX_BITS,)
        return (8, *(width for width in (4, 2, 1) if (self.bits - 8) & width))

    @property
    def unit(self) -> int:
        """The number of indices that fill whole bytes in every plane."""
        return max(1, 8 // min(self.widths))

    @property
    def rows(self) -> int:
        """The rows of a table over all indices."""
        return int(2**self.bits)

    @property
    def bits_per_code(self) -> float:
        """The price of one code."""
        return self.bits / self.group

    def indices(self, count: int) -> int:
        """How many indices hold ``count`` codes, padding included."""
        return -(-count // (self.group * self.unit)) * self.unit

    def padded(self, count: int) -> int:
        """How many codes come out when ``count`` went in."""
        return self.indices(count) * self.group

    def size_bytes(self, count: int) -> int:
        """The bytes of all planes together."""
        return self.indices(count) * self.bits // 8


@cache
def layouts(levels: int) -> tuple[BitLayout, ...]:
    """The layouts that may be best for a level count: none is less dense than one with fewer bits.

    levels: 2 to 65536. The first has the fewest bits to an index, the last the fewest bits to a code.
    """
    found: list[BitLayout] = []
    for bits in range(8, MAX_BITS + 1):
        group = digits_in(levels, bits)
        if group and (not found or bits / group <= found[-1].bits_per_code):
            found.append(BitLayout(levels, group, bits))
    return tuple(found)


def digits_in(levels: int, bits: int) -> int:
    """The largest g with levels^g <= 2^bits."""
    group, power = 0, levels
    while power <= 2**bits:
        group, power = group + 1, power * levels
    return group


def pack(codes: Array, layout: BitLayout) -> list[Array]:
    """The planes of (n,) codes, one array for each of ``layout.widths``. Padding repeats the last code."""
    flat = codes.reshape(-1)
    total = layout.indices(flat.size)
    planes = [np.empty(total * min(width, 8) // 8, _word(width)) for width in layout.widths]
    step = CHUNK // layout.unit * layout.unit
    for start in range(0, total, step):
        stop = min(total, start + step)
        part = flat[start * layout.group : stop * layout.group]
        missing = (stop - start) * layout.group - part.size
        if missing:
            part = np.concatenate([part, np.full(missing, flat[-1], flat.dtype)])
        index = _joined(part.reshape(-1, layout.group), layout.levels)
        for plane, width in zip(planes, layout.widths, strict=True):
            plane[start * min(width, 8) // 8 : stop * min(width, 8) // 8] = _squeezed(index & (2**width - 1), width)
            index >>= width
    return planes


def unpack(planes: Sequence[Array], layout: BitLayout, count: int) -> Array:
    """The inverse of ``pack``: (count,) codes, uint8 up to 256 levels, else uint16."""
    index = np.zeros(layout.indices(count), np.int32)
    shift = 0
    for plane, width in zip(planes, layout.widths, strict=True):
        places = np.arange(max(8 - width, 0), -1, -width)
        parts = (plane[:, None] >> places) & (2**width - 1)
        index += parts.reshape(-1).astype(np.int32) << shift
        shift += width
    powers = layout.levels ** np.arange(layout.group - 1, -1, -1)
    codes = index[:, None] // powers % layout.levels
    return codes.reshape(-1)[:count].astype(np.uint8 if layout.levels <= 256 else np.uint16)


def _joined(groups: Array, levels: int) -> Array:
    """(m, g) codes -> (m,) int32 indices."""
    index = groups[:, 0].astype(np.int32)
    for column in range(1, groups.shape[1]):
        index *= levels
        index += groups[:, column]
    return index


def _word(width: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if width > 8 else np.uint8


def _squeezed(parts: Array, width: int) -> Array:
    """(m,) values below 2^width -> (m * width / 8,) uint8, the first value in the highest bits."""
    if width >= 8:
        return parts.astype(_word(width))
    columns = parts.astype(np.uint8).reshape(-1, 8 // width)
    result: Array = np.zeros(len(columns), np.uint8)
    for column in range(columns.shape[1]):
        result = (result << width) | columns[:, column]
    return result


@cache
@cache
def bits_per_code(levels: int) -> float:
    """The fewest bits that a code of ``levels`` levels takes; 0 for one level."""
    return layouts(levels)[-1].bits_per_code if levels > 1 else 0.0
