"""The schema of receipts takes what `Receipt.read` takes and refuses what it refuses; the published one is current."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import onnxcomp
from onnxcomp.errors import RecipeError
from onnxcomp.json_schema import field_words, schema_of
from onnxcomp.receipt import FORMAT, Receipt, receipt_schema
from tests.cli.conftest import small_model
from tests.test_receipt import receipt

PUBLISHED = Path(__file__).parent.parent / "docs" / "receipt.schema.json"
SCHEMA = receipt_schema()
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


@dataclass
class Leaf:
    """A leaf. size: of it,
    in bytes. name, other: words."""

    name: str
    other: str | None = None
    size: int = 3


@dataclass
class Tree:
    """A tree.

    leaves: those on it.
    """

    leaves: list[Leaf]
    span: tuple[float, float] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def test_a_schema_by_hand() -> None:
    number = {"type": "number"}
    pair = {"type": "array", "prefixItems": [number, number], "minItems": 2, "maxItems": 2}
    assert schema_of(Tree) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tree",
        "description": "A tree.",
        "type": "object",
        "properties": {
            "leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}, "description": "those on it."},
            "span": {"anyOf": [pair, {"type": "null"}]},
            "notes": {"type": "object"},
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "required": ["leaves"],
        "additionalProperties": False,
        "$defs": {
            "Leaf": {
                "description": "A leaf. size: of it, in bytes. name, other: words.",
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "words."},
                    "other": {"type": ["string", "null"], "description": "words."},
                    "size": {"type": "integer", "description": "of it, in bytes."},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    }


def test_words_of_a_field_end_where_the_next_begin() -> None:
    assert field_words("What. a: one: two. b, c: three", ["a", "b", "c", "d"]) == {
        "a": "one: two.",
        "b": "three",
        "c": "three",
    }


def test_the_published_schema_is_current_and_says_its_format() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == f"urn:onnxcomp:receipt:{FORMAT}"


def test_real_receipts_are_valid() -> None:
    samples = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    for made in (
        onnxcomp.optimize(small_model(), recipe="lossless"),
        onnxcomp.run("cluster-weights", small_model(), samples, parameters={"bits": "auto"}, measure=False),
        onnxcomp.run("prune-weights", small_model(), samples, max_drop=1e-6, target_size="2x", measure=False),
    ):
        CHECKER.validate(json.loads(made.receipt.to_json()))


def content() -> dict[str, Any]:
    """The receipt that has one of everything, as JSON holds it."""
    return json.loads(receipt().to_json())  # type: ignore[no-any-return]


def gone(*path: Any) -> Callable[[Any], None]:
    return lambda read: inner(read, path[:-1]).pop(path[-1])


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def edit(read: Any) -> None:
        inner(read, path[:-1])[path[-1]] = value

    return edit


def inner(read: Any, path: Any) -> Any:
    for key in path:
        read = read[key]
    return read


WRONG = [
    gone("recipe"), gone("result", "bytes"), gone("steps", 0, "decision"), put("1", "seed"), put(-1, "seed"),
    put(2, "format"), put({}, "steps"), put(None, "notes"), put([1], "notes"), put(1, "unknown"),
    put("x", "steps", 0, "bytes_after"), put([0.1], "steps", 0, "interval"), put("many", "data", "samples"),
    put(None, "metric", "limit"), put([], "applied", 0, "parameters"), put(3, "applied", 0, "exclude"),
    put({"w": 1}, "applied", 0, "choice"),
]  # fmt: skip
RIGHT = [
    lambda read: None, gone("steps"), gone("training"), put(["net.onnx"], "files"), put(None, "verdict", "passed"),
    put(None, "steps", 0, "interval"), put({"w": {"bits": 4}}, "applied", 0, "choice"), put(3, "measured", "anything"),
]  # fmt: skip


@pytest.mark.parametrize("edit", RIGHT)
def test_what_can_be_read_is_valid(edit: Callable[[Any], None], tmp_path: Path) -> None:
    read = copy.deepcopy(content())
    edit(read)
    CHECKER.validate(read)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(read))
    Receipt.read(path)


@pytest.mark.parametrize("edit", WRONG)
def test_what_cannot_be_read_is_not_valid(edit: Callable[[Any], None], tmp_path: Path) -> None:
    read = copy.deepcopy(content())
    edit(read)
    assert not CHECKER.is_valid(read)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(read))
    with pytest.raises(RecipeError):
        Receipt.read(path)
