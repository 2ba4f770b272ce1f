"""docs/python.md: its examples run, in the order in which they stand, and it lists what is public."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcomp
from onnxcomp.pipeline.costs import Costs
from tests.cli.conftest import small_model

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
EXAMPLE = re.compile(r"^```python(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_its_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("constriction", reason="packing is an extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # each load that is timed takes a process of its own
    monkeypatch.setattr(importlib.import_module("onnxcomp.pipeline.api"), "compare_costs", lambda *_: Costs())
    Path("net.onnx").write_bytes(small_model().SerializeToString())
    np.savez("samples.npz", x=np.random.default_rng(1).standard_normal((256, 16)).astype(np.float32))
    known: dict[str, Any] = {}
    level = logging.getLogger("onnxcomp").level
    examples = EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(examples) > 10
    for file, code in examples:
        if file:
            Path(file).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, f"{PAGE.name}: {code[:40]}", "exec"), known)
    logging.getLogger("onnxcomp").setLevel(level)
    assert known["again"].receipt.result["sha256"] == known["receipt"].result["sha256"]
    assert Path("again.onnx").read_bytes() == Path("net.small.onnx").read_bytes()
    assert known["compared"].passed and known["outputs"]["y"].shape == (1, 10)


def test_it_lists_the_public_names_and_no_others() -> None:
    stable = PAGE.read_text(encoding="utf-8").partition("<!-- stable")[2]
    assert re.findall(r"^\| `(\w+)` \|", stable, re.MULTILINE) == onnxcomp.__all__


def test_public_names_are_there_and_say_what_they_are() -> None:
    for name in onnxcomp.__all__:
        thing = getattr(onnxcomp, name)
        assert isinstance(thing, str) or (thing.__doc__ or "").strip(), name
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", onnxcomp.__version__)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        onnxcomp.nothing_of_that_name  # noqa: B018  (asking is what is tested)
