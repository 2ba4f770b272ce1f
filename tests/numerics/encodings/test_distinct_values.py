"""Distinct values and codes are those of numpy.unique, by bits."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.distinct_values import Finder, bits_of_values, codes_of, counts_of, distinct


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("count", [1, 2, 16, 200, 256, 1500, 5000, 40000])
def test_finds_what_unique_finds(dtype: type, count: int) -> None:
    rng = np.random.default_rng(count)
    pool = rng.integers(0, np.iinfo(dtype).max, count, dtype=dtype, endpoint=True)
    flat = pool[rng.integers(0, count, 300_000)]
    book, codes, counts = np.unique(flat, return_inverse=True, return_counts=True)
    found = distinct(flat, 2**16)
    if found is None:
        assert count > 2**13  # more than half of the sample was new
        found = book
    assert np.array_equal(found, book)
    assert np.array_equal(codes_of(flat, book), codes)
    assert np.array_equal(counts_of(codes_of(flat, book), book.size), counts)


def test_values_that_the_sample_missed_are_found_or_end_the_search() -> None:
    flat = np.zeros(2_000_000, np.uint32)
    flat[[3, 1_500_001]] = 7, 9
    found = distinct(flat, 10)
    assert found is not None and found.tolist() == [0, 7, 9]
    assert distinct(flat, 2) is None


def test_columns_of_their_own_values_are_told_from_few_values_by_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a weight on a grid for each of 768 channels has them: 144 is 3 x 48, and each 144th value is in one of 16."""
    columns = np.arange(768, dtype=np.uint32) * 255
    flat = (columns + np.random.default_rng(0).integers(0, 255, (3072, 768), np.uint32)).reshape(-1)
    monkeypatch.setattr("onnxcomp.numerics.encodings.distinct_values.Finder", None)  # what all values are looked up in
    assert distinct(flat, 2**16) is None


def test_bits_tell_zeros_and_nans_apart() -> None:
    values = np.array([0.0, -0.0, np.nan, np.nan], np.float32)
    values.view(np.uint32)[3] ^= 1
    assert np.unique(bits_of_values(values)).size == 4


def test_without_a_table_the_finder_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.numerics.encodings.distinct_values.TRIES", 0)
    book = np.array([3, 8, 2**31], np.uint32)
    assert Finder(book).places(np.array([8, 2**31, 3, 2**32 - 1], np.uint32)).tolist() == [1, 2, 0, 2]
