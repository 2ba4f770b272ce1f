"""Fields of a pass as data: range, help and strengths, declared once with ``parameter``."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")

NOUNS = {int: "an integer", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Parameter:
    """One field of a pass as data: what the options, the recipe's schema, the docs and the tests are made from."""

    name: str
    type: type
    default: Any
    help: str
    optional: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    strengths: tuple[Any, ...] | None = None

    @property
    def allowed(self) -> str:
        """The allowed values in words, as an error message and the docs print them."""
        words = self._allowed_words()
        return f"{words}, or unset" if self.optional else words

    def _allowed_words(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.type is bool:
            return "true or false"
        noun = NOUNS[self.type]
        if self.low is None and self.high is None:
            return noun
        if self.high is None:
            return f"{noun} of at least {self.low}"
        return f"{noun} from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        """Whether the value is of the field's type and within its range."""
        if value is None:
            return self.optional
        if self.choices is not None:
            return isinstance(value, str) and value in self.choices
        if self.type is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            fits = type(value) is self.type
        return fits and (self.type in (bool, str) or self._in_range(value))

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def parameter(
    default: T,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    strengths: Sequence[Any] | None = None,
) -> T:
    """Declare a field of a pass once: default, range and help.

    strengths: for the one field that says how hard the pass compresses: the values to choose from when a
        recipe asks for "auto", mildest first. Each site then gets the strongest that the budget tolerates.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "choices": tuple(choices) if choices else None,
        "strengths": tuple(strengths) if strengths else None,
    }
    value: T = field(default=default, metadata=metadata)
    return value


@functools.cache
def parameters(of: type[Any]) -> tuple[Parameter, ...]:
    """The fields of a pass as data, in the order of their declaration."""
    hints = typing.get_type_hints(of)
    found = []
    for each in fields(of):
        kind, optional = _plain_type(hints[each.name])
        default = each.default if each.default is not MISSING else None
        found.append(Parameter(name=each.name, type=kind, default=default, optional=optional, **each.metadata))
    return tuple(found)


def _plain_type(hint: Any) -> tuple[type, bool]:
    """``int | None`` -> (int, True); ``Literal["a", "b"]`` -> (str, False)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [each for each in typing.get_args(hint) if each is not type(None)]
        return _plain_type(inner[0])[0], True
    if typing.get_origin(hint) is Literal:
        return str, False
    return typing.cast(type, hint), False
