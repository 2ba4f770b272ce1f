"""Rows of codes against loops over single values, and the packing against taking bytes apart by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.integers.blockwise import (
    RowBlocks,
    cheapest_block,
    fit_rows,
    rows_of_grid,
    shared_block,
    stored_bits,
)
from onnxcomp.numerics.integers.symmetric_int8 import is_sliced
from onnxcomp.numerics.quantizers.affine import fit_grid

Array = NDArray[Any]


def drawn(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def grid(values: Array, **fields: Any) -> tuple[GridEncoding, Array, Array]:
    """An encoding, its codes, and the values that they stand for."""
    bits, axis, block_size = fields["bits"], fields.get("axis"), fields.get("block_size")
    scale, zero_point = fit_grid(values, **fields)
    encoding = GridEncoding(
        dtype="float32", levels=2**bits, scale=scale, zero_point=zero_point, axis=axis, block_size=block_size
    )
    codes = encoding.nearest(values)
    return encoding, codes, encoding.decode(codes, values.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("summed", [0, 1])
@pytest.mark.parametrize("form", ["tensor", "channel", "block"])
def test_rows_of_a_grid_have_its_values_to_the_bit(bits: int, symmetric: bool, summed: int, form: str) -> None:
    values = drawn(64, 96) if summed == 0 else drawn(96, 64)
    axis = {"tensor": None, "channel": 1 - summed, "block": summed}[form]
    block = {"block_size": 32} if form == "block" else {}
    encoding, codes, expected = grid(values, bits=bits, symmetric=symmetric, axis=axis, **block)
    for size in (None, 16, 32):
        rows = rows_of_grid(encoding, codes, summed=summed, block_size=size)
        got = rows.values() if summed == 1 else rows.values().T
        np.testing.assert_array_equal(got, expected)
        assert rows.codes.max() < 2**rows.bits and rows.bits == stored_bits(2**bits)
        assert not symmetric or rows.zero_points is None


def test_a_row_that_is_no_whole_number_of_blocks_keeps_its_values() -> None:
    encoding, codes, expected = grid(drawn(5, 100), bits=4, axis=0, symmetric=False)
    rows = rows_of_grid(encoding, codes, summed=1, block_size=64)
    assert rows.scales.shape == (5, 2)
    np.testing.assert_array_equal(rows.values(), expected)
    assert rows.packed().shape == (5, 2, 32)


def test_grids_across_the_summed_axis_are_refused() -> None:
    encoding, codes, _ = grid(drawn(32, 32), bits=4, axis=0, block_size=16)
    assert shared_block(encoding, (32, 32), 1) is None
    with pytest.raises(ValueError, match="summed axis"):
        rows_of_grid(encoding, codes, summed=1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_codes_come_apart_again(bits: int) -> None:
    codes = np.random.default_rng(1).integers(0, 2**bits, (3, 40)).astype(np.uint8)
    zero_points = np.random.default_rng(2).integers(0, 2**bits, (3, 3)).astype(np.uint8)
    rows = RowBlocks(codes, np.ones((3, 3), np.float32), zero_points, bits, 16)
    packed = rows.packed()
    assert packed.shape == (3, 3, 2 * bits)
    for n in range(3):
        for k in range(40):
            byte, place = divmod(k % 16 * bits, 8)
            assert (int(packed[n, k // 16, byte]) >> place) & (2**bits - 1) == codes[n, k]
    zeros = rows.packed_zero_points()
    assert zeros is not None and zeros.shape == (3, -(-3 * bits // 8))
    for n in range(3):
        for block in range(3):
            byte, place = divmod(block * bits, 8)
            assert (int(zeros[n, byte]) >> place) & (2**bits - 1) == zero_points[n, block]


@pytest.mark.parametrize("symmetric", [True, False])
def test_fitted_rows_are_the_nearest_codes(symmetric: bool) -> None:
    matrix = drawn(6, 50)
    rows = fit_rows(matrix, bits=4, block_size=16, symmetric=symmetric, search=False)
    zero = np.full(rows.scales.shape, 8) if rows.zero_points is None else rows.zero_points
    values = rows.values()
    for n in range(6):
        for k in range(50):
            scale, middle = rows.scales[n, k // 16], int(zero[n, k // 16])
            levels = (np.arange(16) - middle) * scale
            assert abs(values[n, k] - matrix[n, k]) <= np.abs(levels - matrix[n, k]).min() + 1e-6


@pytest.mark.parametrize(
    ("shared", "row", "bits", "expected"),
    [
        (384, 384, 4, 128),  # 3 x (64 + 4) bytes; 256 would fill up to 512
        (100, 100, 4, 128),  # 68 bytes; 32 takes 4 x 20
        (130, 130, 4, 32),  # 5 x 20 bytes; 128 takes 136
        (48, 96, 4, 16),
        (24, 96, 4, None),
        (512, 1024, 8, 256),
    ],
)
def test_blocks_are_those_of_the_fewest_bytes(shared: int, row: int, bits: int, expected: int | None) -> None:
    assert cheapest_block(shared, row, bits, (16, 32, 64, 128, 256)) == expected


def test_grids_whose_zero_points_are_no_integers_are_no_rows() -> None:
    encoding = GridEncoding(dtype="float32", levels=16, scale=np.ones((), np.float32), zero_point=np.float32(7.5))
    assert shared_block(encoding, (4, 8), 1) is None
    with pytest.raises(ValueError, match="no integers"):
        rows_of_grid(encoding, np.zeros((4, 8), np.uint8), summed=1)
    assert not is_sliced(encoding, (4, 8), (1,))
