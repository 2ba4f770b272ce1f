"""Dataclasses from what JSON holds, each field held to its annotation."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def typed(kind: Any, content: Any, where: str) -> Any:
    """What the JSON value ``content`` is as a ``kind``: a dataclass, list, tuple, dict, plain type or union of them.

    where: what the value is called. Raises ValueError, with that name, for a value of another type, and for keys
    that a dataclass does not have or lacks. Whole numbers serve as floats; true and false are no numbers.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, content, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return _union(arguments, content, where)
    if origin is tuple:
        items = _held(list, content, where)
        if len(items) != len(arguments):
            raise ValueError(f"{where} has {len(items)} entries, {len(arguments)} are right")
        return tuple(typed(each, item, where) for each, item in zip(arguments, items, strict=True))
    if origin is list:
        items = _held(list, content, where)
        return [typed(arguments[0], item, f"{where} {number}") for number, item in enumerate(items, 1)]
    if origin is dict:
        entries = _held(dict, content, where)
        return {key: typed(arguments[1], value, f"{where} {key}") for key, value in entries.items()}
    return content if kind is Any else _held(kind, content, where)


def _dataclass(kind: Any, content: Any, where: str) -> Any:
    entries = _held(dict, content, where)
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = sorted(entries.keys() - fields.keys())
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}, which it should not")
    nothing = dataclasses.MISSING
    missing = [
        name
        for name, each in fields.items()
        if name not in entries and each.default is nothing and each.default_factory is nothing
    ]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}")
    return kind(**{key: typed(hints[key], value, f"{where} {key}") for key, value in entries.items()})


def _union(kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    if content is None and type(None) in kinds:
        return None
    return typed(next(each for each in kinds if each is not type(None)), content, where)


def _held(kind: type, content: Any, where: str) -> Any:
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(content, allowed) or (isinstance(content, bool) and kind is not bool):
        raise ValueError(f"{where} is {_shown(content)} and should be {kind.__name__}")
    return content


def _shown(content: Any) -> str:
    return type(content).__name__ if isinstance(content, list | dict) else repr(content)[:40]
