"""The way of the codes through an encoding's term: what a code stands for by itself, and what its place adds.

    term(codes) = finish(book[codes])

Operators whose other operand is one number depend on the code alone and go in the book; from the first one on
whose operand differs from place to place, they are the finish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.encodings.expression import (
    Array,
    FreeArray,
    Given,
    Literal,
    OperatorTerm,
    Shape,
    Term,
    binary,
    cast,
    evaluate,
    first,
    flatten,
    gather,
    literal,
    reshape,
)  # fmt: skip

SHORT_BYTES = 100  # what an operator or two take: constants up to this size are stored as they are


@dataclass(frozen=True, eq=False)
class PathStep:
    """One operator on the way; ``which`` of its inputs carries the codes."""

    node: OperatorTerm
    which: int

    @property
    def op(self) -> str:
        return self.node.op

    @property
    def operand(self) -> Term | None:
        """What the codes meet here, if anything."""
        return self.node.inputs[1 - self.which] if len(self.node.inputs) == 2 else None

    @property
    def has_integers(self) -> bool:
        """Whether the operand is integers that are cast."""
        return _cast_integers(self.operand) is not None

    @property
    def is_lookup(self) -> bool:
        return self.op == "Gather" and self.which == 1

    @property
    def is_elementwise(self) -> bool:
        return self.op in ("Add", "Sub", "Mul") and self.which == 0

    @property
    def is_the_same_everywhere(self) -> bool:
        """Whether what it makes of a code does not depend on the code's place."""
        alone = self.is_elementwise and self.operand is not None and self.operand.size == 1
        return self.op == "Cast" or self.is_lookup or alone

    def number(self) -> Array:
        """(): the operand that is the same everywhere."""
        assert self.operand is not None
        return evaluate(self.operand).reshape(())

    def of_levels(self, levels: Term) -> Term:
        """The step on one element for each code instead of one for each place."""
        if self.op == "Cast":
            return cast(levels, self.node.dtype)
        if self.is_lookup:
            return gather(self.node.inputs[0], levels)
        return binary(self.op, levels, literal(self.number()))

    def of_places(self, term: Term) -> Term:
        """The step on a term of the shape that it had, its operand as it is stored."""
        inputs = [term if at == self.which else _stored(each) for at, each in enumerate(self.node.inputs)]
        return replace(self.node, inputs=tuple(inputs))


@dataclass(frozen=True, eq=False)
class CodePath:
    """The steps from codes of the shape ``codes_shape`` to the values; the first ``folded`` of them are the book's."""

    codes_shape: Shape
    steps: tuple[PathStep, ...]
    folded: int

    @property
    def book_steps(self) -> list[PathStep]:
        """Those that make the book; an offset of zero and shapes do not matter there."""
        return [each for each in self.steps[: self.folded] if each.op != "Reshape" and not _takes_nothing(each)]

    @property
    def is_computed(self) -> bool:
        """Whether the codes are numbers that the values are computed from, not places in a stored book."""
        return not any(each.is_lookup for each in self.steps)

    @property
    def is_scalar(self) -> bool:
        """Whether a code stands for one value, not for a row of them."""
        return not any(each.is_lookup and len(each.node.inputs[0].shape) > 1 for each in self.steps)

    def book(self, codes: Term) -> Term:
        """(n, ...) what each of (n,) codes stands for before the finish."""
        for step in self.book_steps:
            codes = step.of_levels(codes)
        return codes

    def finish(self, rows: Term, *, start: int | None = None) -> Term:
        """The weight from looked-up rows: (at least as many as codes, ...) in any shape that reads so.

        start: the number of steps that are in the rows already, where it is not those of the book.
        """
        done = self.folded if start is None else start
        term = cut(rows, self.steps[done - 1].node.shape if done else self.codes_shape)
        for step in self.steps[done:]:
            if not _is_factor_of_one(step):
                term = step.of_places(term)
        return term

    @property
    def changes_values(self) -> bool:
        """Whether the finish does more than to give the values their places."""
        return any(each.op not in ("Reshape", "Transpose") for each in self.steps[self.folded :])

    def numbering(self) -> tuple[int, int]:
        """How many steps turn codes into numbers that the values are multiples of, and the offset taken from codes."""
        casts = next(at for at, step in enumerate(self.steps, 1) if step.op == "Cast")
        following = self.steps[casts] if casts < len(self.steps) else None
        taken = following is not None and following.op == "Sub" and following.is_the_same_everywhere
        if following is None or not taken or not following.has_integers:
            return casts, 0
        return casts + 1, int(following.number())


def code_path(encoding: Encoding, shape: Shape) -> CodePath:
    """The way of codes through the encoding's term for a weight of this shape."""
    codes = Given((), np.dtype(np.uint8), None)
    steps = _steps(encoding.term(codes, shape), codes)
    if steps is None:
        raise ValueError(f"{encoding.kind}: the term does not depend on the codes")
    own: Shape = ()
    while steps and steps[0].op == "Reshape":
        own = steps.pop(0).node.shape
    folded = 0
    while folded < len(steps) and (steps[folded].op == "Reshape" or steps[folded].is_the_same_everywhere):
        folded += 1
    return CodePath(own, tuple(steps), folded)


def _steps(term: Term, codes: Term) -> list[PathStep] | None:
    """The operators between the codes and the term, None where it does not depend on them."""
    if term is codes:
        return []
    if not isinstance(term, OperatorTerm):
        return None
    ways = [(which, way) for which, each in enumerate(term.inputs) if (way := _steps(each, codes)) is not None]
    if len(ways) > 1:
        raise ValueError(f"codes enter a {term.op} on two ways, so there is no book of what they stand for")
    return [*ways[0][1], PathStep(term, ways[0][0])] if ways else None


def _takes_nothing(step: PathStep) -> bool:
    return step.op == "Sub" and step.is_the_same_everywhere and step.number() == 0


def _is_factor_of_one(step: PathStep) -> bool:
    """Whether it stands for a scale that the encoding does not have."""
    plain = isinstance(step.operand, Literal) and not isinstance(step.operand, FreeArray)
    return step.op == "Mul" and plain and step.is_the_same_everywhere and step.number() == 1


def cut(term: Term, shape: Shape) -> Term:
    """The first elements of a padded term, in the shape."""
    size = math.prod(shape)
    return reshape(term if term.size == size else first(flatten(term), size), shape)


# --- operands as they are stored -------------------------------------------------------------------------


def _stored(operand: Term) -> Term:
    """The operand from the narrowest stored type that loses nothing."""
    integers = _cast_integers(operand)
    if integers is None:
        return narrowed(evaluate(operand))
    return cast(literal(integers.astype(_narrowest(integers))), operand.dtype)


def _cast_integers(operand: Term | None) -> Array | None:
    """The integers that the operand is a Cast of, None where it is none."""
    if isinstance(operand, OperatorTerm) and operand.op == "Cast" and operand.inputs[0].dtype.kind in "iu":
        return evaluate(operand.inputs[0])
    return None


def _narrowest(integers: Array) -> np.dtype[Any]:
    low, high = integers.min(initial=0), integers.max(initial=0)
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    return next(
        (np.dtype(kind) for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max),
        np.dtype(np.int64),
    )


def narrowed(values: Array) -> Term:
    """The values, stored as float16 where nothing is lost and the cast is paid for."""
    if values.dtype.kind == "f" and values.nbytes > SHORT_BYTES:
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if half.astype(values.dtype).tobytes() == values.tobytes():
            return cast(literal(half), values.dtype)
    return literal(values)
