"""Whatever storage is proposed decodes to the array, bit for bit, and estimates are near the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics.encodings.distinct_values import same_bits
from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    MaskEncoding,
    RescaledEncoding,
    VectorEncoding,
    encoding_from_dict,
)  # fmt: skip
from onnxcomp.numerics.encodings.expression import Array, Literal, OperatorTerm, Term, evaluate
from onnxcomp.numerics.encodings.sparse_decoder import entries_of
from onnxcomp.numerics.encodings.storage_options import estimate_bytes, estimate_coded_bytes, storages
from onnxcomp.numerics.encodings.table_decoder import Memo

RNG = np.random.default_rng(7)
SHAPE = (24, 3, 5, 5)
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def literals(term: Term, seen: set[int]) -> Iterator[Literal]:
    if id(term) in seen:
        return
    seen.add(id(term))
    if isinstance(term, Literal):
        yield term
    elif isinstance(term, OperatorTerm):
        for each in term.inputs:
            yield from literals(each, seen)


def ways(values: Array, encoding: Encoding | None = None, opset: int = 17) -> dict[str, int]:
    """Name -> bytes of the stored data of each way, every one held to the bit, before and after dropping the memo."""
    memo = Memo()
    found = {}
    for each in storages(lambda: values, encoding, opset=opset, memo=memo):
        memo.drop()
        assert each.term.shape == values.shape and each.term.dtype == values.dtype, each.name
        assert same_bits(evaluate(each.term), values), each.name
        found[each.name] = sum(part.nbytes for part in literals(each.term, set()))
    return found


def grid(levels: int, dtype: type, scale: Array | None, **form: int) -> tuple[Array, GridEncoding]:
    zero = np.full((), levels // 2) if scale is None else RNG.integers(0, levels, scale.shape)
    compute = None if scale is None else scale.astype(np.float64 if dtype is np.float64 else np.float32)
    encoding = GridEncoding(dtype=np.dtype(dtype).name, levels=levels, zero_point=zero, scale=compute, **form)
    return encoding.decode(RNG.integers(0, levels, SHAPE).astype(np.uint8), SHAPE), encoding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 3, 7, 16, 33, 200, 256])
@pytest.mark.parametrize("form", [{}, {"axis": 0}, {"axis": 0, "block_size": 6}, {"axis": 2}])
def test_grids(dtype: type, levels: int, form: dict[str, int]) -> None:
    shapes = {0: (24, 1, 1, 1), 2: (1, 1, 5, 1)}
    shape = (4, 1, 3, 1, 1) if "block_size" in form else shapes[form["axis"]] if form else ()
    scale = RNG.uniform(0.01, 1, shape)
    values, encoding = grid(levels, dtype, np.asarray(scale), **form)
    found = ways(values, encoding)
    exact = encoding.encode(values) is not None  # in 16 bits two codes may round to one value
    assert exact == any(name.startswith("grid") for name in found)
    assert exact or dtype in (np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [4, 16, 200])
@pytest.mark.parametrize("form", [{}, {"axis": 0}, {"axis": 0, "block_size": 6}])
def test_grids_with_one_more_factor(dtype: type, levels: int, form: dict[str, int]) -> None:
    shape = (4, 1, 3, 1, 1) if "block_size" in form else (24, 1, 1, 1) if form else ()
    compute = np.dtype(np.float64 if dtype is np.float64 else np.float32)
    codes = RNG.integers(0, levels, SHAPE).astype(np.uint8)
    _, inner = grid(levels, compute.type, np.asarray(RNG.uniform(0.01, 1, shape)), **form)
    factor = RNG.uniform(0.5, 2, (1, SHAPE[1], 1, 1)).astype(compute)
    encoding = RescaledEncoding(dtype=np.dtype(dtype).name, inner=inner, factor=factor)
    values = encoding.decode(codes, SHAPE)
    assert same_bits(values, (inner.decode(codes, SHAPE) * factor).astype(dtype))
    exact = encoding.encode(values) is not None  # in 16 bits two codes may round to one value
    assert exact == any(name.startswith("grid") for name in ways(values, encoding))
    assert exact or dtype in (np.float16, ml_dtypes.bfloat16)
    again = encoding_from_dict(encoding.to_dict())
    assert same_bits(again.decode(codes, SHAPE), values)
    assert not encoding.fits((SHAPE[0], SHAPE[1] + 1, *SHAPE[2:]))


def test_grids_without_a_scale_and_with_negative_scales_keep_the_sign_of_zero() -> None:
    values, encoding = grid(5, np.float32, None)
    assert ways(values, encoding)
    encoding = GridEncoding(dtype="float32", levels=5, zero_point=np.array(2), scale=np.float32(-0.5).reshape(()))
    values = encoding.decode(RNG.integers(0, 5, SHAPE).astype(np.uint8), SHAPE)
    assert np.signbit(values[values == 0]).all()
    assert any(name.startswith("grid") for name in ways(values, encoding))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_codebooks_with_levels_that_are_not_in_use(dtype: type, scaled: bool) -> None:
    compute = np.float64 if dtype is np.float64 else np.float32
    book = np.linspace(-1, 1, 40).astype(compute if scaled else dtype)
    scale = RNG.uniform(0.5, 2, (24, 1, 1, 1)).astype(compute) if scaled else None
    encoding = CodebookEncoding(dtype=np.dtype(dtype).name, codebook=book, scale=scale, axis=0 if scaled else None)
    codes = RNG.choice([3, 7, 11, 30], SHAPE).astype(np.uint8)
    found = ways(encoding.decode(codes, SHAPE), encoding)
    assert any(name == "codebook, 2 bits" for name in found)


@pytest.mark.parametrize(("axis", "width"), [(0, 4), (1, 3), (3, 5)])
@pytest.mark.parametrize("size", [12, 300])
def test_vector_codebooks(axis: int, width: int, size: int) -> None:
    book = RNG.normal(size=(size, width)).astype(np.float32)
    encoding = VectorEncoding(dtype="float32", codebook=book, axis=axis)
    moved = np.array(SHAPE)[[*range(axis), *range(axis + 1, 4), axis]]
    codes = RNG.integers(0, size, (*moved[:-1], moved[-1] // width))
    assert any(name.startswith("vectors") for name in ways(encoding.decode(codes, SHAPE), encoding))


def test_an_encoding_that_is_no_longer_true_is_not_used() -> None:
    values, encoding = grid(16, np.float32, np.array(0.1))
    changed = values.copy()
    changed.flat[5] = 0.123456
    assert not any(name.startswith("grid") for name in ways(changed, encoding))


@pytest.mark.parametrize("dtype", [*DTYPES, np.int64, np.int32, np.int8, np.uint16, np.bool_])
@pytest.mark.parametrize("count", [2, 3, 9, 255, 700])
def test_distinct_values(dtype: type, count: int) -> None:
    values = RNG.integers(0, count, (24, 30, 5, 5)).astype(dtype)
    assert any(name.startswith("distinct") for name in ways(values)) or np.unique(values).size > 256


def test_negative_zeros_and_nans_keep_their_bits() -> None:
    values = np.zeros(1000, np.float32)
    values[::3], values[::5] = -0.0, np.nan
    values.view(np.uint32)[::7] = 0x7FC00001  # another NaN
    assert any(name.startswith("distinct") for name in ways(values))


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 17])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("levels", [0, 3, 16])
def test_zeros(opset: int, share: float, levels: int) -> None:
    values = RNG.normal(size=levels)[RNG.integers(0, levels, 5000)] if levels else RNG.normal(size=5000)
    values[RNG.random(5000) < share] = 0
    assert levels == 0 or ways(values.astype(np.float32), opset=opset)
    ways(values.astype(np.float32), MaskEncoding(dtype="float32"), opset=opset)


def test_the_first_and_last_element_may_be_exceptions() -> None:
    for places in ([0], [999], [0, 999], [0, 1, 2], []):
        values = np.zeros(1000, np.float32)
        values[places] = RNG.normal(size=len(places))
        ways(values)


def test_entries_bridge_long_distances_with_fillers() -> None:
    mask = np.zeros(50, bool)
    mask[[0, 3, 20, 21]] = True
    entries = entries_of(mask, 7)
    assert entries.positions.tolist() == [0, 3, 10, 17, 20, 21]
    assert entries.steps.tolist() == [0, 3, 7, 7, 3, 1]


def test_a_rare_tail_is_cheaper_as_exceptions() -> None:
    codes = np.clip(np.rint(RNG.normal(size=40000) * 4), -31, 31)
    found = ways((codes / 32).astype(np.float32))
    dense = min(size for name, size in found.items() if "exceptions" not in name and "mask" not in name)
    assert min(found.values()) < 0.9 * dense


@pytest.mark.parametrize(("dtype", "kind"), [(np.float64, "float32"), (np.float32, "float16"), (np.int64, "int16")])
def test_a_narrower_type_that_loses_nothing(dtype: type, kind: str) -> None:
    values = (RNG.normal(size=SHAPE) * 1000).astype(kind).astype(dtype)
    assert kind in ways(values)


def test_float16_is_not_used_where_one_value_overflows_or_underflows() -> None:
    for odd in (1e6, 1e-9, np.float32(1) + np.float32(2**-20)):
        values = RNG.normal(size=SHAPE).astype(np.float16).astype(np.float32)
        values.flat[7] = odd
        assert "float16" not in ways(values)


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_repeated_slices(axis: int, dtype: type) -> None:
    shape = [24, 7, 2, 30]
    shape[axis] = 4
    slices = (RNG.normal(size=shape) * 1000).astype(dtype)
    values = np.take(slices, RNG.permutation(np.repeat(np.arange(4), 6)), axis)
    assert f"4 of 24 slices of axis {axis}" in ways(values)
    changed = values.copy()
    changed[(5, 5, 1, 5)] += 1
    assert f"5 of 24 slices of axis {axis}" in ways(changed)


def test_nothing_is_proposed_for_what_has_no_structure() -> None:
    assert ways(RNG.normal(size=SHAPE).astype(np.float32)) == {}
    assert ways(np.zeros((0, 3), np.float32)) == {}


def estimate_of(make: Callable[[], tuple[Array, Encoding]], zeros: float = 0.0) -> tuple[int, int]:
    values, encoding = make()
    return estimate_bytes(values.shape, values.dtype, encoding, zeros=zeros), min(ways(values, encoding).values())


@pytest.mark.parametrize("levels", [2, 3, 10, 16, 100, 256])
def test_estimates_are_within_a_few_percent_of_the_stored_data(levels: int) -> None:
    def make() -> tuple[Array, Encoding]:
        book = np.sort(RNG.normal(size=levels)).astype(np.float32)
        encoding = CodebookEncoding(dtype="float32", codebook=book)
        return encoding.decode(RNG.integers(0, levels, (200, 300)).astype(np.uint8), (200, 300)), encoding

    estimate, real = estimate_of(make)
    assert real <= estimate <= 1.03 * real + 200


def test_estimates_count_scales_and_zeros() -> None:
    scale = np.geomspace(0.1, 1.0, 200, dtype=np.float32)[:, None]
    encoding = CodebookEncoding(dtype="float32", codebook=np.zeros(16, np.float32), scale=scale, axis=0)
    short = replace(encoding, scale=scale.astype(np.float16).astype(np.float32))
    plain = CodebookEncoding(dtype="float32", codebook=np.zeros(16, np.float32))
    with_scale = estimate_bytes((200, 300), np.float32, encoding)
    assert with_scale >= estimate_bytes((200, 300), np.float32, plain) + 800
    assert with_scale == estimate_bytes((200, 300), np.float32, short) + 400
    assert estimate_bytes((200, 300), np.float32, encoding, zeros=0.9) < 0.5 * with_scale
    assert estimate_bytes((200, 300), np.float32, None) == 240000
    assert estimate_bytes((200, 300), np.float32, MaskEncoding(dtype="float32"), zeros=0.9) < 0.2 * 240000
    assert estimate_bytes((2, 3), np.float32, encoding) <= 24


def test_coded_codes_that_are_all_the_same_take_a_byte() -> None:
    """Their entropy is none, and sizes are held against each other as ratios."""
    encoding = GridEncoding(dtype="float32", scale=np.float32(0.1), levels=16, zero_point=np.int8(0))
    assert estimate_coded_bytes((6, 4), np.float32, encoding, np.zeros((6, 4), np.int8)) == 1
