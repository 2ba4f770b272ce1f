"""onnxcomp passes, and docs/passes.md, say what the classes declare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxcomp.cli import docs
from onnxcomp.contract import parameters
from onnxcomp.registry import get_pass, shipped_names

from .conftest import Invoke


def test_the_list_has_every_pass_with_its_summary(invoke: Invoke) -> None:
    text = invoke("passes").stdout
    for name in shipped_names():
        assert f"{get_pass(name).summary()}" in text


@pytest.mark.parametrize("name", shipped_names())
def test_one_pass_is_shown_with_all_it_declares(invoke: Invoke, name: str) -> None:
    kind, text = get_pass(name), invoke("passes", name).stdout
    assert kind.paper in text
    for each in parameters(kind):
        assert each.help in text
        assert each.allowed in text


def test_json_has_every_parameter(invoke: Invoke) -> None:
    for entry in json.loads(invoke("passes", "--json").stdout):
        known = parameters(get_pass(entry["name"]))
        assert [each["name"] for each in entry["parameters"]] == [each.name for each in known]
        assert [each["default"] for each in entry["parameters"]] == [each.default for each in known]


def test_an_unknown_pass_is_an_error(invoke: Invoke) -> None:
    result = invoke("passes", "shrink-it")
    assert result.exit_code == 2
    assert "no such pass" in result.stderr


@pytest.mark.parametrize("page", docs.PAGES)
def test_the_check_of_the_docs_notices_a_change(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(docs.ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("decisions", "judge*"))
    for path in docs.PAGES:
        shutil.copy(docs.ROOT / path, tmp_path / path)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    run = CliRunner().invoke
    assert run(docs.command, ["--check"]).exit_code == 0
    written = (tmp_path / page).read_text()
    (tmp_path / page).write_text(written.replace("recipe", "receipt"))
    assert run(docs.command, ["--check"]).exit_code == 1
    assert run(docs.command, []).exit_code == 0
    assert run(docs.command, ["--check"]).exit_code == 0


def test_the_layers_stand_in_the_docs() -> None:
    for page in docs.WITH_LAYERS:
        text = docs.with_layers((docs.ROOT / page).read_text(encoding="utf-8"))
        assert "```\ncli" in text and text.index("\npipeline") < text.index("\nnumerics")


def test_the_docs_have_a_heading_for_every_pass() -> None:
    page = docs.passes_page("")
    for name in shipped_names():
        assert f"\n## {name}\n" in page
