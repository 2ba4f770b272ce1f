"""Packed codes come out as they went in, in the bits that the layout says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.numerics.encodings.expression import evaluate, literal
from onnxcomp.numerics.encodings.packing import bits_per_code, layouts, pack, unpack
from onnxcomp.numerics.encodings.table_decoder import looked_up


def naive_planes(codes: list[int], levels: int, group: int, bits: int) -> list[list[int]]:
    """Bit strings, one character a bit: the index's low byte first, then planes of 4, 2, 1 bits."""
    unit = 8 if bits % 2 else 4 if bits % 4 else 2 if bits % 8 else 1
    while len(codes) % (group * unit):
        codes = [*codes, codes[-1]]
    texts = []
    for start in range(0, len(codes), group):
        index = 0
        for code in codes[start : start + group]:
            index = index * levels + code
        texts.append(format(index, f"0{bits}b"))
    if bits == 16:
        return [[int(text, 2) for text in texts]]
    planes = [[int(text[-8:], 2) for text in texts]]
    end = bits - 8
    for width in (4, 2, 1):
        if (bits - 8) & width:
            stream = "".join(text[end - width : end] for text in texts)
            planes.append([int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)])
            end -= width
    return planes


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8, 10, 16, 17, 32, 64, 100, 128, 200, 256, 300, 4096, 65536])
def test_packs_as_a_bit_string_would(levels: int) -> None:
    codes = np.random.default_rng(levels).integers(0, levels, 77).astype(np.uint16)
    for layout in layouts(levels):
        planes = pack(codes, layout)
        assert [plane.tolist() for plane in planes] == naive_planes(
            codes.tolist(), levels, layout.group, layout.bits
        )
        assert sum(plane.nbytes for plane in planes) == layout.size_bytes(codes.size)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 65536), st.integers(1, 500), st.integers(0, 2**32))
def test_unpacks_what_was_packed_in_numpy_and_by_the_formula(levels: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, levels, count)
    for layout in layouts(levels):
        planes = pack(codes.astype(np.uint16), layout)
        assert np.array_equal(unpack(planes, layout, count), codes)
        book = literal(np.arange(levels, dtype=np.int32) * 3)
        rows = evaluate(looked_up(book, lambda planes=planes: planes, count, layout))  # type: ignore[misc]
        assert rows.size == layout.padded(count)
        assert np.array_equal(rows.reshape(-1)[:count], codes * 3)


def test_a_plane_is_packed_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 8, 1003).astype(np.uint8)
    whole = [pack(codes, layout) for layout in layouts(8)]
    monkeypatch.setattr("onnxcomp.numerics.encodings.packing.CHUNK", 64)
    for layout, planes in zip(layouts(8), whole, strict=True):
        for part, plane in zip(pack(codes, layout), planes, strict=True):
            assert np.array_equal(part, plane)


@pytest.mark.parametrize(
    ("levels", "bits"),
    [(2, 1), (3, 1.6), (4, 2), (5, 7 / 3), (6, 2.6), (8, 3), (9, 3.2), (10, 10 / 3), (16, 4), (64, 6)],
)
def test_level_counts_between_powers_of_two_cost_little_more_than_their_logarithm(levels: int, bits: float) -> None:
    assert bits_per_code(levels) == pytest.approx(bits)
    assert math.log2(levels) <= bits_per_code(levels) <= math.log2(levels) + 0.05
