"""A matrix on affine grids, one for each block of a row, as codes that integer kernels read.

    matrix[n, k] = (codes[n, k] - zero_points[n, k // b]) * scales[n, k // b]          codes of 2, 4 or 8 bits

Rows are the output channels of a product, or the rows of a table; k is summed over, or the table's width. The last
block of a row may be shorter than the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import GridEncoding, split_shape
from onnxcomp.numerics.quantizers.affine import fit_grid

Array = NDArray[Any]

STORED_BITS = (2, 4, 8)  # of which a byte holds a whole number


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """codes: (N, K) uint8 below 2^bits; scales: (N, ceil(K / block_size)) float32.

    zero_points: uint8 of the scales' shape; None where all are 2^(bits - 1), the middle.
    """

    codes: Array
    scales: Array
    zero_points: Array | None
    bits: int
    block_size: int

    @property
    def middle(self) -> int:
        """The zero point that stands for itself."""
        return 1 << (self.bits - 1)

    def values(self) -> Array:
        """The matrix (N, K) float32: (code - zero point) * scale, each step rounded to float32."""
        count = self.codes.shape[1]
        zero: Any = self.middle
        if self.zero_points is not None:
            zero = np.repeat(self.zero_points, self.block_size, axis=1)[:, :count].astype(np.float32)
        scales = np.repeat(self.scales, self.block_size, axis=1)[:, :count]
        values: Array = (self.codes.astype(np.float32) - zero) * scales
        return values

    def packed(self) -> Array:
        """(N, blocks, block_size * bits / 8) uint8, the first code in the lowest bits; short blocks end in zeros."""
        rows, count = self.codes.shape
        blocks = self.scales.shape[1]
        padded = np.zeros((rows, blocks * self.block_size), np.uint8)
        padded[:, :count] = self.codes
        return pack_last(padded, self.bits).reshape(rows, blocks, -1)

    def packed_zero_points(self) -> Array | None:
        """(N, ceil(blocks * bits / 8)) uint8, packed like the codes."""
        if self.zero_points is None:
            return None
        per_byte = 8 // self.bits
        blocks = self.zero_points.shape[1]
        padded = np.zeros((len(self.zero_points), -(-blocks // per_byte) * per_byte), np.uint8)
        padded[:, :blocks] = self.zero_points
        return pack_last(padded, self.bits)


def pack_last(codes: Array, bits: int) -> Array:
    """Codes (.., n) of 2, 4 or 8 bits as bytes (.., n * bits / 8), the first in the lowest bits."""
    per_byte = 8 // bits
    parts = codes.reshape(*codes.shape[:-1], codes.shape[-1] // per_byte, per_byte)
    packed = parts[..., 0].copy()
    for place in range(1, per_byte):
        packed |= parts[..., place] << np.uint8(place * bits)
    return packed


def stored_bits(levels: int) -> int:
    """The least of 2, 4 and 8 bits that hold so many codes."""
    return next(bits for bits in STORED_BITS if 2**bits >= levels)


def shared_block(encoding: GridEncoding, shape: tuple[int, ...], summed: int) -> int | None:
    """How many neighbours along the axis ``summed`` of a matrix have one grid.

    None where grids run the other way, or have zero points that are no integers.
    """
    if not encoding.is_whole:
        return None
    if encoding.axis is None or (encoding.axis != summed and encoding.block_size is None):
        return shape[summed]
    return encoding.block_size if encoding.axis == summed else None


def cheapest_block(shared: int, row: int, bits: int, blocks: tuple[int, ...]) -> int | None:
    """Of some block sizes that cut no group of ``shared`` neighbours, the one whose rows take the fewest bytes.

    Rows are filled up to whole blocks, and each block has a scale of 4 bytes. The larger one where two take the
    same; None where every size cuts some group.
    """
    fitting = [block for block in blocks if shared >= row or shared % block == 0]
    return min(fitting, key=lambda block: (-(-row // block) * (block * bits / 8 + 4), -block), default=None)


def rows_of_grid(
    encoding: GridEncoding, codes: Array, *, summed: int, block_size: int | None = None, least_bits: int = 2
) -> RowBlocks:
    """A matrix whose codes are known as rows, to the bit; ``summed`` is the axis along which blocks run.

    block_size: must divide the neighbours that share a grid (``shared_block``), or all of the row must share
    one; None for just these. ValueError where ``shared_block`` finds none.
    """
    shared = shared_block(encoding, codes.shape, summed)
    if shared is None:
        raise ValueError("the grids do not run along the summed axis, or have no integers for zero points")
    block = block_size or max(1, shared)
    count = -(-codes.shape[summed] // block)
    one = np.ones((), np.float32) if encoding.scale is None else encoding.scale.astype(np.float32)
    scales = _by_row(one, encoding, codes.shape, summed, count)
    zero_points = _by_row(encoding.zero_point, encoding, codes.shape, summed, count).astype(np.int16)
    rows = codes if summed == 1 else codes.T
    bits = max(least_bits, stored_bits(encoding.levels))
    middle = 2 ** (bits - 1)
    first = int(zero_points.flat[0]) if zero_points.size else middle
    lowest, highest = middle - first, encoding.levels - 1 + middle - first
    if np.all(zero_points == first) and lowest >= 0 and highest < 2**bits:
        moved = (rows.astype(np.int16) + (middle - first)).astype(np.uint8)
        return RowBlocks(moved, scales, None, bits, block)
    return RowBlocks(np.ascontiguousarray(rows), scales, zero_points.astype(np.uint8), bits, block)


def _by_row(array: Array, encoding: GridEncoding, shape: tuple[int, ...], summed: int, count: int) -> Array:
    """A parameter of the grids as (N, count): one value for each stored block of each row."""
    split = np.broadcast_to(array, split_shape(shape, encoding.axis, encoding.block_size))
    if encoding.axis == summed and encoding.block_size is not None:
        split = np.take(split, 0, axis=summed + 1)
    elif shape[summed]:
        split = np.take(split, [0], axis=summed)
    else:
        split = np.ones(tuple(1 if axis == summed else size for axis, size in enumerate(shape)), array.dtype)
    rows = split if summed == 1 else split.T
    if not rows.shape[1]:
        return np.zeros((rows.shape[0], count), array.dtype)
    return np.repeat(rows, -(-count // rows.shape[1]), axis=1)[:, :count]


def fit_rows(
    matrix: Array, *, bits: int, block_size: int, symmetric: bool, search: bool, least_bits: int = 2
) -> RowBlocks:
    """Round a matrix (N, K) to the nearest codes of 2^bits levels on grids fitted to it; ``affine.fit_grid``.

    least_bits: of a stored code.
    """
    rows, count = matrix.shape
    blocks = -(-count // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :count] = matrix
    scale, zero_point = fit_grid(padded, bits=bits, symmetric=symmetric, axis=1, block_size=block_size, search=search)
    encoding = GridEncoding(
        dtype="float32", levels=2**bits, scale=scale, zero_point=zero_point, axis=1, block_size=block_size
    )
    whole = rows_of_grid(encoding, encoding.nearest(padded), summed=1, least_bits=least_bits)
    return RowBlocks(whole.codes[:, :count], whole.scales, whole.zero_points, whole.bits, block_size)
