"""Receipts that were tampered with are refused in one line that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.errors import RecipeError
from onnxcomp.receipt import Application, Entry, Receipt, StepReport, Tried

Edit = Callable[[dict[str, Any]], object]


def receipt() -> Receipt:
    """One of everything that a receipt can hold."""
    tried = [Tried("fuse-pad", "kept", 10, 0.5, 0.1)]
    entry = [Entry("w", "changed", {"bits": 4})]
    step = StepReport(
        "fuse-pad", "kept", {}, 20, 10, 0.5, divergence=1, interval=(0.5, float("inf")),
        node_errors={"w": float("inf")}, tried=tried, changed=entry, skipped=entry, taken_back=entry,
    )  # fmt: skip
    return Receipt(
        recipe="small",
        seed=0,
        target="CPUExecutionProvider",
        versions={"onnx": "1"},
        source={"bytes": 20, "sha256": "ab"},
        data={"random": False, "samples": 8, "verification_samples": 4},
        metric={"name": "divergence", "limit": 0.03},
        result={"bytes": 10, "opset": 17, "ir_version": 8},
        steps=[step],
        applied=[Application("fuse-pad", {"x": 1}, None, ["a"], ["b"], True, True, True)],
        verdict={"passed": True, "samples": 4, "divergence": float("nan")},
        measured={"seconds": 1.0},
        notes=["a note"],
    )


def test_a_receipt_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(receipt().to_json())
    assert Receipt.read(path).to_json() == receipt().to_json()
    assert Receipt.read(path).steps[0].interval == (0.5, float("inf"))


def first(part: str, **changes: Any) -> Edit:
    return lambda content: content[part][0].update(changes)


def renamed(content: Any, include: Any) -> None:
    """Write an application as it once was, with names for a choice."""
    del content["applied"][0]["choice"]
    content["applied"][0]["include"] = include


@pytest.mark.parametrize(("include", "choice"), [(None, None), (["a", "b"], {"a": {}, "b": {}})])
def test_names_of_an_older_receipt_are_sites_at_the_own_fields(tmp_path: Path, include: Any, choice: Any) -> None:
    content = json.loads(receipt().to_json())
    renamed(content, include)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(content))
    assert Receipt.read(path).applied[0].choice == choice


TAMPERED: dict[str, Edit] = {
    "rewrite": first("applied", rewrite=3),
    "rewrite null": first("applied", rewrite=None),
    "parameters": first("applied", parameters=None),
    "choice": first("applied", choice=5),
    "choice W": first("applied", choice={"W": 5}),
    "include": lambda content: renamed(content, 5),
    "include 1": lambda content: renamed(content, [5]),
    "include beside a choice": first("applied", include=["a"]),
    "restore": first("applied", restore=5),
    "exclude": first("applied", exclude=5),
    "beside": first("applied", beside="yes"),
    "applied": lambda content: content.update(applied=5),
    "applied 1": lambda content: content.update(applied=[5]),
    "seed": lambda content: content.update(seed="a"),
    "seed true": lambda content: content.update(seed=True),
    "seed is -1": lambda content: content.update(seed=-1),
    "seed is nan": lambda content: content.update(seed=float("nan")),
    "target": lambda content: content.update(target=None),
    "source": lambda content: content.update(source=None),
    "source.bytes": lambda content: content.update(source={}),
    "metric.name": lambda content: content.update(metric={}),
    "metric.limit": lambda content: content["metric"].update(limit="a"),
    "verdict": lambda content: content.update(verdict=None),
    "steps": lambda content: content.update(steps=None),
    "result": lambda content: content.update(result=None),
    "notes": lambda content: content.update(notes=None),
    "zzz": first("steps", zzz=1),
    "node_errors": first("steps", node_errors={"w": "abc"}),
    "interval": first("steps", interval="abc"),
    "interval 2": first("steps", interval=[1.0, "b"]),
    "recipe": lambda content: content.pop("recipe"),
    "format 2": lambda content: content.update(format=2),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_wrong_is_named(tmp_path: Path, what: str) -> None:
    content = json.loads(receipt().to_json())
    TAMPERED[what](content)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=what.split()[0]) as caught:
        Receipt.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "hello", "[" * 100_000, '{"format": 1}'])
def test_what_is_no_receipt_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"receipt\.json: not a receipt"):
        Receipt.read(path)
