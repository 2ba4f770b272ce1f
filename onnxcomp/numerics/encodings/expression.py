"""Formulas over arrays: what a decoder computes, before it becomes nodes.

A ``Term`` is a literal array or an operator over terms. It knows its shape and type without being computed,
its literals are made when asked for, ``evaluate`` computes it in numpy exactly as ONNX defines the operators
on what decoders hand to them: integers not below 0 to Div and Mod, values that the new type holds to Cast.
Operators carry ONNX's names; what is an input of small integers in ONNX (a shape, an end) is an attribute here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

TAKEN_AT_ONCE = 2**15


@dataclass(frozen=True, eq=False)
class Term:
    """An array to be."""

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Literal(Term):
    """Stored data; ``make`` gives the array, of this shape and type."""

    make: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class FreeArray(Literal):
    """Stored data that training may change, known by its name in the term."""

    name: str


@dataclass(frozen=True, eq=False)
class Given(Term):
    """A tensor that is known at run time only; its shape here stands for any."""

    tensor: Any


@dataclass(frozen=True, eq=False)
class OperatorTerm(Term):
    """An operator over terms."""

    op: str
    inputs: tuple[Term, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def literal(values: Array | float | int, dtype: DTypeLike | None = None) -> Literal:
    """Data that is at hand."""
    array = np.asarray(values, dtype)
    return Literal(array.shape, array.dtype, lambda: array)


def parameter(name: str, values: Array) -> FreeArray:
    """Data that is at hand and may be changed."""
    return FreeArray(values.shape, values.dtype, lambda: values, name)


def cast(term: Term, dtype: DTypeLike) -> Term:
    """The term in another type; itself where it has it already."""
    kind = np.dtype(dtype)
    return term if term.dtype == kind else OperatorTerm(term.shape, kind, "Cast", (term,), {"to": kind})


def reshape(term: Term, shape: Sequence[int]) -> Term:
    """The term in another shape; itself where it has it already."""
    target = tuple(shape)
    return term if term.shape == target else OperatorTerm(target, term.dtype, "Reshape", (term,), {"shape": target})


def flatten(term: Term) -> Term:
    """The term with one axis."""
    return reshape(term, (term.size,))


def gather(data: Term, index: Term) -> Term:
    """data[index] along the first axis."""
    return OperatorTerm((*index.shape, *data.shape[1:]), data.dtype, "Gather", (data, index))


def binary(op: str, left: Term, right: Term) -> Term:
    """Add, Sub, Mul, or of integers Div or Mod, with broadcasting."""
    if op in ("Div", "Mod") and not np.issubdtype(left.dtype, np.integer):
        raise ValueError(f"{op} of {left.dtype}: decoders divide integers only")
    return OperatorTerm(np.broadcast_shapes(left.shape, right.shape), left.dtype, op, (left, right))


def first(term: Term, count: int) -> Term:
    """The first ``count`` rows; the term itself where it has no more."""
    if term.shape[0] == count:
        return term
    return OperatorTerm((count, *term.shape[1:]), term.dtype, "Slice", (term,), {"end": count})


def transpose(term: Term, order: Sequence[int]) -> Term:
    """The term with its axes in another order; itself where that is the same."""
    if list(order) == sorted(order):
        return term
    shape = tuple(term.shape[axis] for axis in order)
    return OperatorTerm(shape, term.dtype, "Transpose", (term,), {"axes": tuple(order)})


def concat(parts: Sequence[Term]) -> Term:
    """The parts one after another along the first axis."""
    rows = sum(part.shape[0] for part in parts)
    return OperatorTerm((rows, *parts[0].shape[1:]), parts[0].dtype, "Concat", tuple(parts))


def cumsum(term: Term) -> Term:
    """Running sums along the first axis."""
    return OperatorTerm(term.shape, term.dtype, "CumSum", (term,))


def matmul(left: Term, right: Term) -> Term:
    """The product of two matrices."""
    return OperatorTerm((left.shape[0], right.shape[1]), left.dtype, "MatMul", (left, right))


def scatter(data: Term, index: Term, updates: Term) -> Term:
    """(n,) data with ``updates`` put at ``index``."""
    return OperatorTerm(data.shape, data.dtype, "ScatterElements", (data, index, updates))


def filled(shape: Sequence[int], value: Array) -> Term:
    """A tensor with one value (0-d array) everywhere."""
    return OperatorTerm(tuple(shape), value.dtype, "ConstantOfShape", (), {"shape": tuple(shape), "value": value})


def counting(rows: int) -> Term:
    """(rows,) int32: 0, 1, 2, ..."""
    return OperatorTerm((rows,), np.dtype(np.int32), "Range", (), {"limit": rows})


def _take(data: Array, index: Array) -> Array:
    if data.ndim > 1:
        return np.take(data, index, axis=0)
    found = np.empty(index.shape, data.dtype)
    flat, places = found.reshape(-1), index.reshape(-1)
    for start in range(0, places.size, TAKEN_AT_ONCE):  # wide indices of all of them would take eight bytes each
        flat[start : start + TAKEN_AT_ONCE] = data[places[start : start + TAKEN_AT_ONCE].astype(np.intp)]
    return found


def _divided(left: Array, right: Array) -> Array:
    """Integers divided toward zero, as ONNX does; // goes to the next lower one."""
    quotient: Array = left // right
    if (left < 0).any() or (right < 0).any():
        quotient = quotient + ((left % right != 0) & ((left < 0) != (right < 0)))
    return quotient.astype(left.dtype, copy=False)


def _scatter(data: Array, index: Array, updates: Array) -> Array:
    result = np.array(data)
    result[index] = updates
    return result


OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda left, right: left + right,
    "Sub": lambda left, right: left - right,
    "Mul": lambda left, right: left * right,
    "Div": _divided,
    "Mod": lambda left, right: left % right,  # the sign is the divisor's, as it is without fmod
    "MatMul": lambda left, right: left @ right,
    "Gather": _take,
    "Cast": lambda data, to: data.astype(to),
    "Reshape": lambda data, shape: data.reshape(shape),
    "Slice": lambda data, end: data[:end],
    "Transpose": np.transpose,
    "Concat": lambda *parts: np.concatenate(parts),
    "CumSum": lambda data: np.cumsum(data, axis=0, dtype=data.dtype),
    "ScatterElements": _scatter,
    "ConstantOfShape": lambda shape, value: np.full(shape, value, value.dtype),
    "Range": lambda limit: np.arange(limit, dtype=np.int32),
}

IN_PLACE: dict[str, Callable[..., Array]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
MAKE_NEW = frozenset({*IN_PLACE, "Cast", "Gather"})  # operators whose result is never a view of what they are given

SUM_BLOCK = 256


def summed_by_products(term: Term) -> Term:
    """``cumsum`` of (n,) int32 without CumSum: sums inside blocks by a triangular matrix, then those of the blocks.

    Computed in float64, which is exact below 2^53.
    """
    count = term.size
    rows = -(-count // SUM_BLOCK)
    padded = term
    if count % SUM_BLOCK:
        padded = concat([term, filled((rows * SUM_BLOCK - count,), np.zeros((), term.dtype))])
    blocks = cast(reshape(padded, (rows, SUM_BLOCK)), np.float64)
    sums = cast(matmul(blocks, cast(_upper_triangle(), np.float64)), term.dtype)
    if rows > 1:
        totals = cast(matmul(blocks, filled((SUM_BLOCK, 1), np.ones((), np.float64))), term.dtype)
        before = binary("Sub", summed_by_products(flatten(totals)), flatten(totals))
        sums = binary("Add", sums, reshape(before, (rows, 1)))
    return first(flatten(sums), count)


def _upper_triangle() -> Term:
    """(256, 256) int32: 1 where the column is no less than the row, as (256 + column - row) div 256."""
    column = counting(SUM_BLOCK)
    distance = binary("Sub", column, reshape(column, (SUM_BLOCK, 1)))
    return binary("Div", binary("Add", distance, literal(SUM_BLOCK, np.int32)), literal(SUM_BLOCK, np.int32))


def evaluate(term: Term, arrays: Mapping[str, Array] | None = None) -> Array:
    """Compute the term; parts that are used twice are computed once, others are dropped as soon as used.

    arrays: parameters that have other values than their own, by name.
    """
    uses: dict[int, int] = {}
    _count_uses(term, uses)
    return _evaluate(term, uses, {}, arrays or {})


def _count_uses(term: Term, uses: dict[int, int]) -> None:
    uses[id(term)] = uses.get(id(term), 0) + 1
    if uses[id(term)] == 1 and isinstance(term, OperatorTerm):
        for each in term.inputs:
            _count_uses(each, uses)


def _evaluate(term: Term, uses: dict[int, int], held: dict[int, Array], arrays: Mapping[str, Array]) -> Array:
    if id(term) in held:
        return held[id(term)]
    if isinstance(term, OperatorTerm):
        inputs = [_evaluate(each, uses, held, arrays) for each in term.inputs]
        result = computed(term, inputs, in_place=_may_overwrite(term, inputs, uses))
    else:
        result = value_of(term, arrays)
    if uses[id(term)] > 1:
        held[id(term)] = result
    return result


def value_of(leaf: Term, arrays: Mapping[str, Array]) -> Array:
    """The array of a term without inputs."""
    if isinstance(leaf, FreeArray) and leaf.name in arrays:
        return arrays[leaf.name]
    if isinstance(leaf, Literal):
        return leaf.make()
    assert isinstance(leaf, Given)
    return np.asarray(leaf.tensor)


def computed(term: OperatorTerm, inputs: Sequence[Array], *, in_place: bool = False) -> Array:
    """What the operator makes of its inputs; ``in_place``: in the memory of the first."""
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow to infinity is what is meant
        if in_place:
            return IN_PLACE[term.op](*inputs, out=inputs[0])
        return np.asarray(OPERATORS[term.op](*inputs, **term.attrs))


def _may_overwrite(term: OperatorTerm, inputs: Sequence[Array], uses: Mapping[int, int]) -> bool:
    """Whether the first input is an array of its own that nothing else needs and that holds the result as it is."""
    if term.op not in IN_PLACE:
        return False
    left, right = inputs
    maker = term.inputs[0]
    is_new = isinstance(maker, OperatorTerm) and maker.op in MAKE_NEW and uses[id(maker)] == 1
    return is_new and left.dtype == right.dtype and left.shape == term.shape
