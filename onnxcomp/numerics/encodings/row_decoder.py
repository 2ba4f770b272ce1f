"""Look rows up first, decode them after: for tables too large to be decoded beforehand.

    Gather(decode(codes), ids)   ->   decode(Gather(codes, ids))

That is the same to the bit, since a decoder of 8-bit codes works element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from onnxcomp.numerics.encodings.code_path import cut
from onnxcomp.numerics.encodings.coded_view import Symbols, distinct_symbols, encoded_symbols
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.encodings.expression import Array, OperatorTerm, Term, binary, cast, gather, literal, reshape
from onnxcomp.numerics.encodings.packing import BitLayout, pack
from onnxcomp.numerics.encodings.sparse_decoder import fitting_layouts
from onnxcomp.numerics.encodings.table_decoder import INDEX, Memo, looked_up

BYTES = BitLayout(256, 1, 8)
ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})


def row_storages(read: Callable[[], Array], encoding: Encoding | None, *, memo: Memo) -> Iterator[tuple[str, Term]]:
    """(name, term) for the ways to store a table that ``rows_at`` can look up before decoding."""
    symbols = encoded_symbols(read, encoding, memo) if encoding is not None else None
    if symbols is None:
        symbols = distinct_symbols(read, memo)
    if symbols is None or not symbols.is_scalar or not 2 <= symbols.levels <= 256:
        return
    book = literal(np.arange(256, dtype=np.uint8))
    for layout in (*fitting_layouts(symbols.levels, symbols.count), BYTES):
        planes = memo(partial(_packed, symbols, layout))
        codes = cut(looked_up(book, planes, symbols.count, layout, symbols.shape), symbols.shape)
        if layout is BYTES:
            codes = _stored_codes(codes)
        name = f"{symbols.name}, {layout.bits_per_code:.3g} bits, rows looked up before"
        yield name, symbols.finish(gather(symbols.book, cast(codes, INDEX)))


def _packed(symbols: Symbols, layout: BitLayout) -> list[Array]:
    return pack(symbols.codes(), layout)


def _stored_codes(looked: Term) -> Term:
    """The bytes themselves, where a lookup in 0, 1, 2, ... would give just them."""
    assert isinstance(looked, OperatorTerm)
    index = looked.inputs[1]
    assert isinstance(index, OperatorTerm)
    return index.inputs[0]


def rows_at(term: Term, rows: int, ids: Term) -> Term | None:
    """term[ids] with the lookup moved to the stored codes; None where the term is not made element by element."""
    if not term.shape or term.shape[0] != rows:
        return None
    if isinstance(term, OperatorTerm) and term.op == "Cast":
        inner = rows_at(term.inputs[0], rows, ids)
        return None if inner is None else cast(inner, term.dtype)
    if isinstance(term, OperatorTerm) and term.op in ELEMENTWISE:
        left = rows_at(term.inputs[0], rows, ids)
        right = _operand(term.inputs[1], term, rows, ids)
        return None if left is None or right is None else binary(term.op, left, right)
    if isinstance(term, OperatorTerm) and term.op == "Gather" and term.inputs[1].shape == term.shape:
        index = rows_at(term.inputs[1], rows, ids)
        return None if index is None else gather(term.inputs[0], index)
    return gather(term, ids)


def _operand(term: Term, whole: Term, rows: int, ids: Term) -> Term | None:
    """What stands against the rows: its own rows, or a part that is the same for all."""
    if len(term.shape) < len(whole.shape):
        return term
    if term.shape[0] == rows:
        return rows_at(term, rows, ids)
    return reshape(term, term.shape[1:]) if term.shape[0] == 1 else None
