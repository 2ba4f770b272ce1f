"""What an encoding is: parameters from which codes become values, values = term(codes), to the bit.

It keeps parameters only (levels, scales, axis, block) and says in one place, ``term``, what codes stand for: numpy
evaluates that term, stored weights are nodes made from it, gradients go back through it. The codes follow from
the values: ``encode`` finds them and gives None as soon as one value is not the exact decode of a code, so an
encoding that a later pass made untrue can never be written.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from onnxcomp.numerics.encodings.distinct_values import same_bits
from onnxcomp.numerics.encodings.expression import Array, Term, cast, evaluate, literal, parameter

ENCODINGS: dict[str, type[Encoding]] = {}  # by kind; a class enters it by being defined


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding(ABC):
    """Parameters from which codes become values of type ``dtype`` (a float type's name).

    A new encoding is one class with a ``kind``, ``level_count``, ``term`` and ``nearest``: that it is stored,
    estimated, written to metadata and trained follows from these. A class with a kind that lacks one of them,
    or that is without a kind although it lacks none, is a TypeError where it is defined.

    kind: its name in metadata. values_are_free: the codes are the values themselves, so there are no levels.
    """

    kind: ClassVar[str]
    values_are_free: ClassVar[bool] = False
    dtype: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        missing = [name for name in sorted(Encoding.__abstractmethods__) if _is_abstract(getattr(cls, name))]
        kind = vars(cls).get("kind")
        if (kind is None) != bool(missing):
            lacks = " and ".join(missing) or "a kind of its own"
            raise TypeError(f"{cls.__name__}: an encoding must be whole, but it lacks {lacks}")
        if kind in ENCODINGS:
            raise TypeError(f"{cls.__name__}: the kind must be new, but {ENCODINGS[kind].__name__} is {kind!r}, too")
        if kind is not None:
            ENCODINGS[kind] = cls

    @property
    @abstractmethod
    def level_count(self) -> int:
        """How many different codes there are."""

    @abstractmethod
    def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
        """The values of ``shape`` that the codes stand for; the codes enter once, in any shape that reads so.

        Arrays of the encoding that may be trained are in it as parameters, each by its field's name (``_array``).
        """

    @abstractmethod
    def nearest(self, values: Array) -> Array:
        """The codes whose decode lies nearest to the values."""

    @property
    def label(self) -> str:
        """What it is called where a stored weight is told of."""
        return self.kind

    def decode(self, codes: Array, shape: tuple[int, ...]) -> Array:
        """The values of ``shape`` that the codes stand for."""
        return evaluate(self.term(literal(codes), shape))

    def trainable(self, codes: Array, shape: tuple[int, ...]) -> Term:
        """The values with these codes, as a term of all that may be trained: see ``gradient.parameters``."""
        return self.term(literal(codes), shape)

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        """The encoding with other values of what may be trained, by name, rounded to the types it keeps them in.

        ValueError where it has no such array, or one of another shape.
        """
        changed: dict[str, Any] = {}
        for name, values in arrays.items():
            own = getattr(self, name, None)
            if not isinstance(own, np.ndarray) or not is_float(own.dtype) or own.shape != np.shape(values):
                has = f"{own.dtype} {own.shape}" if isinstance(own, np.ndarray) else "no such array"
                raise ValueError(f"{self.kind}: {name} cannot become {np.shape(values)}: it has {has}")
            changed[name] = np.asarray(values).astype(own.dtype)
        return replace(self, **changed)

    def trimmed(self, used: Array) -> tuple[Array, Encoding]:
        """(k,) ascending codes, all ``used`` ones among them, and the encoding in which these are 0, 1, .. k - 1."""
        return np.arange(self.level_count), self

    def _array(self, name: str, dtype: DTypeLike | None = None) -> Term:
        """The field's array as a term, in another type: a parameter where it is of a float type."""
        values = np.asarray(getattr(self, name))
        term = parameter(name, values) if is_float(values.dtype) else literal(values)
        return term if dtype is None else cast(term, dtype)

    def encode(self, values: Array) -> Array | None:
        """The codes whose decode equals the values bit for bit, or None where there are none."""
        if str(values.dtype) != self.dtype or not self.fits(values.shape):
            return None
        codes = self.nearest(values)
        return codes if same_bits(self.decode(codes, values.shape), np.asarray(values)) else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the parameters can describe a weight of this shape."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The encoding as plain JSON values; arrays as base64 of their little-endian bytes."""
        content: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = _array_to_dict(value)
            content[field.name] = value.to_dict() if isinstance(value, Encoding) else value
        return content


def encoding_kind(name: str) -> type[Encoding]:
    """The class of that kind; KeyError where there is none."""
    return ENCODINGS[name]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a float type, bfloat16 included."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def _is_abstract(member: Any) -> bool:
    return bool(getattr(member, "__isabstractmethod__", False))


def _array_to_dict(array: Array) -> dict[str, Any]:
    little = np.ascontiguousarray(array)
    if little.dtype.byteorder == ">":
        little = little.astype(little.dtype.newbyteorder("<"))
    content = base64.b64encode(little.tobytes()).decode()
    return {"dtype": str(little.dtype), "shape": list(little.shape), "data": content}


