"""A JSON Schema (draft 2020-12) of what ``onnxcomp.typed`` reads: dataclasses, lists, tuples, dicts, plain types.

    @dataclass                          {"type": "object", "required": ["name"], "additionalProperties": false,
    class Entry:                   ->    "properties": {"name": {"type": "string"}, "bits": {"type": "integer"}}}
        name: str
        bits: int = 8

Descriptions are those of the docstrings: the first paragraph, and ``field: what it is`` wherever that stands in it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
Schema = dict[str, Any]


def schema_of(kind: Any) -> Schema:
    """The schema of a dataclass, with those of the dataclasses that it holds under ``$defs``."""
    found: dict[str, Schema] = {}
    reference = _schema(kind, found)
    own = found.pop(kind.__name__)
    assert reference == {"$ref": f"#/$defs/{kind.__name__}"}
    return {"$schema": DIALECT, "title": kind.__name__, **own, "$defs": dict(sorted(found.items()))}


def schema_of_types(*kinds: type) -> Schema:
    """The schema of a value of one of these plain types."""
    names = [PLAIN[kind] for kind in kinds]
    return {"type": names[0] if len(names) == 1 else names}


def _schema(kind: Any, found: dict[str, Schema]) -> Schema:
    """The schema of a type; dataclasses are put into ``found`` and referred to."""
    if dataclasses.is_dataclass(kind):
        name = typing.cast("type", kind).__name__
        if name not in found:
            found[name] = {}  # before its fields, which may lead back to it
            found[name] |= _dataclass(kind, found)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union([_schema(each, found) for each in arguments])
    if origin is tuple:
        items = [_schema(each, found) for each in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], found)}
    if origin is dict:
        values = _schema(arguments[1], found)
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if kind is Any:
        return {}
    return schema_of_types(kind)


def _union(parts: list[Schema]) -> Schema:
    """Plain types together as one list of types."""
    if all(list(each) == ["type"] for each in parts):
        return {"type": [each["type"] for each in parts]}
    return {"anyOf": parts}


def _dataclass(kind: Any, found: dict[str, Schema]) -> Schema:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    text = inspect.cleandoc(kind.__doc__ or "")
    words = field_words(text, [each.name for each in fields])
    properties = {}
    for each in fields:
        properties[each.name] = _schema(hints[each.name], found)
        if each.name in words:
            properties[each.name] |= {"description": words[each.name]}
    nothing = dataclasses.MISSING
    required = [each.name for each in fields if each.default is nothing and each.default_factory is nothing]
    first = " ".join(text.partition("\n\n")[0].split())
    return {
        "description": first,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def field_words(text: str, names: list[str]) -> dict[str, str]:
    """What a docstring says of fields: ``a, b: words.`` -> the words for each of them."""
    name = "|".join(map(re.escape, names))
    heading = re.compile(rf"(?:^|(?<=\s))((?:{name})(?:, (?:{name}))*):\s")
    parts = heading.split(" ".join(text.split()))
    found: dict[str, str] = {}
    for listed, words in zip(parts[1::2], parts[2::2], strict=True):
        found |= dict.fromkeys(listed.split(", "), words.strip())
    return found
