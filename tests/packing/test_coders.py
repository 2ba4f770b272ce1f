"""The coders of arrays, against the naive reader of docs/container.md and against what entropy says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.classes import ClassScheme, scheme_of
from onnxcomp.packing.coders.general import read_bytes, write_bytes
from onnxcomp.packing.coders.logarithms import SQUASHED_MOST, STEPS
from onnxcomp.packing.coders.mixed_symbols import mean_magnitude, write_mixed
from onnxcomp.packing.coders.range_coder import SymbolWriter
from onnxcomp.packing.coders.symbol_arrays import ArrayView, read_symbols, write_symbols
from onnxcomp.packing.varints import numbers
from tests.packing import reference_reader


def entropy_bytes(symbols: np.ndarray) -> float:
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / symbols.size
    return float(-(shares * np.log2(shares)).sum() * symbols.size / 8)


def smooth(shape: tuple[int, ...], levels: int, seed: int) -> np.ndarray:
    """Symbols that are like their neighbours along the last axes, with columns of their own strength."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    values = (values + np.roll(values, 1, -1) + np.roll(values, 1, -2)) * rng.gamma(1, 1, shape[1:])
    return np.clip(np.rint(values * levels / 8 + levels // 2), 0, levels - 1).astype(np.int64).reshape(-1)


def mixed(symbols: np.ndarray, shape: tuple[int, int, int, int], levels: int, has_zero: bool) -> bytes:
    """Symbols packed in the context of their surroundings, whatever is smaller."""
    scheme = scheme_of(np.bincount(symbols, minlength=levels))
    scheme = ClassScheme(levels, scheme.center, has_zero, scheme.widths)
    mean = mean_magnitude(scheme.classes[symbols], scheme)
    writer = SymbolWriter()
    write_mixed(writer, symbols, shape, scheme, mean)
    widths = scheme.widths[:-1]
    head = numbers(1, 2 * has_zero, scheme.center, mean, len(widths), *widths, *shape[1:])
    return head + writer.content()


@pytest.mark.parametrize(
    ("shape", "levels", "has_zero"),
    [
        ((9, 7, 3, 3), 15, True),
        ((6, 5, 2, 4), 40, False),
        ((30, 1, 1, 24), 3, True),
        ((4, 2, 1, 1), 2, False),
        ((3, 300, 1, 1), 9, True),
    ],
)
def test_mixed_symbols_are_what_the_documented_format_says(
    shape: tuple[int, int, int, int], levels: int, has_zero: bool
) -> None:
    symbols = smooth(shape, levels, 1)
    packed = mixed(symbols, shape, levels, has_zero)
    np.testing.assert_array_equal(read_symbols(packed, symbols.size, levels, shape), symbols)
    assert reference_reader.read_symbols(packed, symbols.size, levels) == symbols.tolist()


def test_long_steps_learn_from_some_bits_as_the_documented_format_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.packing.coders.mixing.LEARNT_FROM", 100)
    monkeypatch.setattr(reference_reader, "LEARNT_FROM", 100)
    shape = (9, 12, 3, 3)
    symbols = smooth(shape, 15, 2)
    assert reference_reader.read_symbols(mixed(symbols, shape, 15, True), symbols.size, 15) == symbols.tolist()


def test_counted_symbols_are_what_the_documented_format_says() -> None:
    rng = np.random.default_rng(2)
    symbols = np.clip(np.rint(rng.normal(20, 4, 900)), 0, 39).astype(np.int64)
    packed = write_symbols(symbols, 40, (1, 1, 900))
    assert packed[0] == 0
    assert reference_reader.read_symbols(packed, symbols.size, 40) == symbols.tolist()


@pytest.mark.parametrize("dims", [(20, 30, 3, 3), (30, 20, 9), (180, 30), (5400,), (2, 2700), (2700, 2), (7,), ()])
@pytest.mark.parametrize("levels", [2, 17, 300])
def test_symbols_of_any_shape_come_back(dims: tuple[int, ...], levels: int) -> None:
    symbols = np.random.default_rng(3).binomial(levels - 1, 0.3, math.prod(dims)).astype(np.int64)
    packed = write_symbols(symbols, levels, dims)
    np.testing.assert_array_equal(read_symbols(packed, symbols.size, levels, dims), symbols)


def test_independent_symbols_take_their_entropy() -> None:
    rng = np.random.default_rng(4)
    for levels in (2, 16, 200):
        symbols = rng.choice(levels, 60_000, p=rng.dirichlet(np.full(levels, 2.0)))
        assert len(write_symbols(symbols, levels, (200, 300))) <= 1.012 * entropy_bytes(symbols)


def test_dead_columns_cost_next_to_nothing() -> None:
    rng = np.random.default_rng(5)
    live = rng.random(400) < 0.4
    symbols = np.where(live, rng.integers(0, 16, (300, 400)), 8).reshape(-1)
    expected = 300 * live.sum() * 4 / 8
    assert len(write_symbols(symbols, 16, (300, 400))) <= 1.06 * expected


def test_neighbours_in_kernels_are_used() -> None:
    symbols = smooth((64, 16, 5, 5), 16, 6)
    assert len(write_symbols(symbols, 16, (64, 16, 5, 5))) <= 0.93 * entropy_bytes(symbols)


def test_an_image_behind_a_dense_layer_is_found() -> None:
    symbols = smooth((200, 2, 12, 12), 16, 7)
    flat = len(write_symbols(symbols, 16, (200, 288)))
    assert flat <= 1.02 * len(write_symbols(symbols, 16, (200, 2, 12, 12)))


def test_swapped_views_come_back() -> None:
    symbols = np.arange(24)
    view = ArrayView(True, (3, 2, 2, 2))
    np.testing.assert_array_equal(view.back(view.forth(symbols, (2, 3, 2, 2)), (2, 3, 2, 2)), symbols)


def test_no_entry_of_a_table_hangs_on_the_last_bit_of_a_logarithm() -> None:
    """Whole numbers that another processor's library could round the other way would make its files unreadable."""
    logs = [STEPS * math.log2(1 + each / 4096) for each in range(4096)]
    chances = [2**16 / (1 + 2.0 ** (-each / STEPS)) for each in range(-SQUASHED_MOST, SQUASHED_MOST + 1)]
    for exact in (*logs, *chances):
        distance = abs(exact - math.floor(exact) - 0.5)
        assert distance > 1e-7


@pytest.mark.parametrize(
    "content",
    [b"", b"a", b"abc" * 400, bytes(range(256)) * 3, bytes(100_000), np.random.default_rng(8).bytes(80_000)],
    ids=len,
)
def test_bytes_of_any_kind_come_back(content: bytes) -> None:
    packed = write_bytes(content)
    assert len(packed) <= len(content) + 1
    assert read_bytes(packed, len(content)) == content


def test_bytes_that_are_longer_than_they_say_are_refused() -> None:
    packed = write_bytes(np.random.default_rng(9).bytes(1000) * 2000)
    with pytest.raises(PackError):
        read_bytes(packed, 100)
