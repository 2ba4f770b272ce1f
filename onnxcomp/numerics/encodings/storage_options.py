"""The ways to store one array: what each decodes to is the array, bit for bit.

``storages`` proposes formulas over stored data; who writes them weighs their real bytes. ``estimate_bytes``
tells beforehand, without any data, what an encoding will take, ``estimate_coded_bytes`` what codes take packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from onnxcomp.numerics.arrays.entropy import entropy_bits
from onnxcomp.numerics.encodings.code_path import PathStep, code_path, cut
from onnxcomp.numerics.encodings.coded_view import MAX_DISTINCT, Symbols, distinct_symbols, encoded_symbols
from onnxcomp.numerics.encodings.distinct_values import same_bits
from onnxcomp.numerics.encodings.encoding import Encoding, RescaledEncoding
from onnxcomp.numerics.encodings.expression import Array, Literal, Term, binary, cast, evaluate, filled, literal
from onnxcomp.numerics.encodings.packing import BitLayout, bits_per_code, pack
from onnxcomp.numerics.encodings.repeated_slices import repeated_slices
from onnxcomp.numerics.encodings.sparse_decoder import best_width, excepted, fitting_layouts, masked, sparse_values
from onnxcomp.numerics.encodings.table_decoder import Memo, looked_up

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NARROWER: dict[np.dtype[Any], tuple[DTypeLike, ...]] = {
    np.dtype(np.float64): (np.float16, np.float32),
    np.dtype(np.float32): (np.float16, BFLOAT16),
    np.dtype(np.int64): (np.uint8, np.int8, np.uint16, np.int16, np.int32),
    np.dtype(np.int32): (np.uint8, np.int8, np.uint16, np.int16),
}
NUMBERS_FROM = 65  # levels from which a grid's codes may as well be stored as 8-bit numbers
FILL_OPSET = 9  # ConstantOfShape, and Scatter for what is sparse
BFLOAT16_OPSET = 13
CHUNK = 2**20
BESIDE_NARROW = 2**13  # distinct values beside a narrower type: 14 and more bits gain little and take more to decode
# Of nodes and small constants in front of a weight, names shortened, for estimates:
DECODER_BYTES = 60
GROUP_BYTES = 60  # more where several codes are one number
PLANE_BYTES = 90  # and for each plane of bits beside the first
SPARSE_BYTES = 220
SCALE_BYTES = 50


@dataclass(frozen=True, eq=False)
class Storage:
    """One way: its name for the receipt and the formula."""

    name: str
    term: Term


def storages(read: Callable[[], Array], encoding: Encoding | None, *, opset: int, memo: Memo) -> Iterator[Storage]:
    """The ways to store the array that ``read`` gives; plain is not among them.

    memo: drop it after weighing and after writing; the formulas' data is made again when it is asked for.
    """
    values = read()
    if values.size == 0:
        return
    if opset >= FILL_OPSET and _is_constant(values):
        yield Storage("one value", filled(values.shape, values.reshape(-1)[0]))
        return
    narrow = list(_narrow(read, opset))
    yield from narrow
    for name, term in repeated_slices(read, memo):
        yield Storage(name, term)
    symbols = encoded_symbols(read, encoding, memo) if encoding is not None else None
    if symbols is not None:
        yield from _of_symbols(symbols, opset, memo)
    if symbols is None or not symbols.is_plain:
        found = distinct_symbols(read, memo, BESIDE_NARROW if narrow else MAX_DISTINCT)
        if found is not None:
            yield from _of_symbols(found, opset, memo)
    if symbols is None and opset >= FILL_OPSET:
        for name, term in sparse_values(read, memo):
            yield Storage(name, cut(term, values.shape))


def estimate_bytes(shape: tuple[int, ...], dtype: DTypeLike, encoding: Encoding | None, *, zeros: float = 0.0) -> int:
    """About how many bytes ``storages`` will need, without looking at data.

    zeros: the share of values that are exactly zero, for what pruning gains.
    """
    kind, count = np.dtype(dtype), math.prod(shape)
    if encoding is not None and not encoding.fits(shape):
        encoding = None
    plain_bits = kind.itemsize * 8
    if isinstance(encoding, RescaledEncoding):
        inner = estimate_bytes(shape, dtype, encoding.inner, zeros=zeros)
        # Whole, although factors that float16 holds are stored in half of that.
        return min(inner + encoding.factor.nbytes + SCALE_BYTES, count * kind.itemsize)
    if encoding is None or encoding.values_are_free:
        bits = min([plain_bits, 1 + (1 - zeros) * plain_bits, best_width(1 - zeros, plain_bits)[1]])
        return math.ceil(count * bits / 8)
    path = code_path(encoding, shape)
    codes = math.prod(path.codes_shape)
    size = _packed_bytes(encoding.level_count, codes)
    if zeros and path.is_scalar:
        size = min(size, _sparse_bytes(encoding.level_count, codes, zeros))
    size += DECODER_BYTES + sum(map(_operand_bytes, path.steps))
    return min(size, count * kind.itemsize)


def estimate_coded_bytes(shape: tuple[int, ...], dtype: DTypeLike, encoding: Encoding | None, codes: Array) -> int:
    """About how many bytes an entropy coder makes of the codes, with the arrays that they meet: one at least, that they
    are there at all, which is what codes that are all the same take.

    codes: of the encoding, integers; where there are none, values count as they are.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if encoding is None or encoding.values_are_free or not encoding.fits(shape):
        return size
    if isinstance(encoding, RescaledEncoding):
        return min(estimate_coded_bytes(shape, dtype, encoding.inner, codes) + encoding.factor.nbytes, size)
    operands = sum(map(_operand_bytes, code_path(encoding, shape).steps))
    return min(max(1, math.ceil(entropy_bits(codes, encoding.level_count) / 8) + operands), size)


def fixed_bytes(shape: tuple[int, ...], encoding: Encoding | None) -> int:
    """What of ``estimate_bytes`` is the same for a weight of more channels: its nodes, and a book shared by all."""
    if encoding is None or encoding.values_are_free or not encoding.fits(shape):
        return 0
    if isinstance(encoding, RescaledEncoding):
        return fixed_bytes(shape, encoding.inner) + encoding.factor.nbytes + SCALE_BYTES
    steps = code_path(encoding, shape).steps
    met = [each for each in steps if each.operand is not None]
    return DECODER_BYTES + sum(_operand_bytes(each) if each.is_lookup else SCALE_BYTES for each in met)


def _operand_bytes(step: PathStep) -> int:
    """About what the array takes that codes meet at this step: one number is part of the decoder."""
    if step.operand is None:
        return 0
    values = evaluate(step.operand)
    if step.is_lookup:
        return values.nbytes
    if values.size == 1:
        return 0
    if step.has_integers:
        return values.size + SCALE_BYTES if np.ptp(values) else 0
    return values.nbytes // (2 if _survives(values, np.dtype(np.float16)) else 1) + SCALE_BYTES


def _packed_bytes(levels: int, count: int) -> int:
    """About what packed codes and the nodes that take them apart need."""
    return min(
        layout.size_bytes(count) + GROUP_BYTES * (layout.group > 1) + PLANE_BYTES * (len(layout.widths) - 1)
        for layout in fitting_layouts(max(2, levels), count)
    )


def _sparse_bytes(levels: int, count: int, zeros: float) -> int:
    """The same where zeros are told by a mask or by the distances between the other values."""
    kept = math.ceil((1 - zeros) * count)
    by_mask = math.ceil(count / 8) + _packed_bytes(levels - 1, kept)
    by_distance = math.ceil(count * best_width(1 - zeros, bits_per_code(levels))[1] / 8)
    return min(by_mask, by_distance) + SPARSE_BYTES


def _is_constant(values: Array) -> bool:
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = flat.view(f"u{flat.dtype.itemsize}")
    return bool((bits[:64] == bits[0]).all() and (bits == bits[0]).all())


def _narrow(read: Callable[[], Array], opset: int) -> Iterator[Storage]:
    """The first smaller type of the same kind that holds every value."""
    values = read()
    for each in NARROWER.get(values.dtype, ()):
        kind = np.dtype(each)
        if (kind != BFLOAT16 or opset >= BFLOAT16_OPSET) and _survives(values, kind):
            yield Storage(kind.name, cast(Literal(values.shape, kind, partial(_in_type, read, kind)), values.dtype))
            return


def _in_type(read: Callable[[], Array], kind: np.dtype[Any]) -> Array:
    return read().astype(kind)


def _survives(values: Array, kind: np.dtype[Any]) -> bool:
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = np.ascontiguousarray(flat[start : start + CHUNK])
        with np.errstate(over="ignore", invalid="ignore"):
            if not same_bits(part.astype(kind).astype(part.dtype), part):
                return False
    return True


def _of_symbols(symbols: Symbols, opset: int, memo: Memo) -> Iterator[Storage]:
    if symbols.levels < 2:
        if opset >= FILL_OPSET and symbols.is_scalar:
            yield Storage(symbols.name, symbols.finish(filled((symbols.count,), symbols.book_values()[0])))
        return
    if symbols.numbers is not None and symbols.levels >= NUMBERS_FROM:
        yield _as_numbers(symbols)
    for layout in fitting_layouts(symbols.levels, symbols.count):
        planes = memo(partial(_packed, symbols.codes, layout))
        rows = looked_up(symbols.book, planes, symbols.count, layout, symbols.shape)
        yield Storage(f"{symbols.name}, {layout.bits_per_code:.3g} bits", symbols.finish(rows))
    if opset >= FILL_OPSET and symbols.is_scalar:
        for name, term in (*masked(symbols, memo), *excepted(symbols, memo)):
            yield Storage(f"{symbols.name}, {name}", symbols.finish(term))


def _packed(codes: Callable[[], Array], layout: BitLayout) -> list[Array]:
    return pack(codes(), layout)


def _as_numbers(symbols: Symbols) -> Storage:
    """A grid's codes as 8-bit integers that are cast and scaled."""
    assert symbols.numbers is not None
    signed = symbols.offset <= 128 and symbols.levels - 1 - symbols.offset <= 127 and symbols.offset > 0
    kind = np.dtype(np.int8 if signed else np.uint8)
    taken = symbols.offset if signed else 0

    def stored() -> Array:
        return (symbols.codes().astype(np.int16) - taken).astype(kind).reshape(symbols.shape)

    values = cast(Literal(symbols.shape, kind, stored), symbols.compute)
    if taken != symbols.offset:
        values = binary("Sub", values, literal(symbols.offset, symbols.compute))
    return Storage("grid, 8 bits", symbols.numbers(values))
