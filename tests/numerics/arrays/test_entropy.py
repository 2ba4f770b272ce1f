"""Bits of codes against the definition, and against what a coder really writes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from onnxcomp.numerics.arrays.entropy import code_lengths, entropy_bits


def drawn(levels: int, count: int) -> np.ndarray:
    chances = np.random.default_rng(levels).dirichlet(np.full(levels, 0.5))
    return np.random.default_rng(count).choice(levels, size=count, p=chances).astype(np.uint8)


@pytest.mark.parametrize(("levels", "count"), [(2, 100), (9, 5000), (255, 70_000)])
def test_entropy_is_the_sum_of_logarithms(levels: int, count: int) -> None:
    codes = drawn(levels, count)
    often = Counter(codes.tolist())
    plain = sum(-math.log2(often[each] / count) for each in codes.tolist())
    assert entropy_bits(codes.reshape(2, -1), levels) == pytest.approx(plain + (len(often) - 1) / 2 * math.log2(count))


def test_what_is_all_the_same_takes_nothing() -> None:
    assert entropy_bits(np.full(1000, 7, np.uint8), 9) == 0
    assert entropy_bits(np.zeros(0, np.uint8), 9) == 0


def test_lengths_are_of_a_prefix_code_and_finite() -> None:
    lengths = code_lengths(np.array([0, 0, 0, 1], np.uint8), 4)
    assert np.exp2(-lengths).sum() == pytest.approx(1)
    assert lengths[0] < lengths[1] < lengths[2] == lengths[3] < 10


@pytest.mark.parametrize(("levels", "count"), [(3, 20_000), (15, 20_000), (101, 50_000)])
def test_an_adaptive_coder_writes_about_as_much(levels: int, count: int) -> None:
    symbol_arrays = pytest.importorskip("onnxcomp.packing.coders.symbol_arrays")
    pytest.importorskip("constriction", reason="constriction is not installed: pip install 'onnxcomp[pack]'")
    codes = drawn(levels, count)
    written = len(symbol_arrays.write_symbols(codes.astype(np.int64), levels, (count,)))
    assert written == pytest.approx(entropy_bits(codes, levels) / 8, rel=0.02, abs=20)
