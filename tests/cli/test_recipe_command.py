"""onnxcomp recipe: presets to read and to copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcomp.recipe import Recipe, preset_names

from .conftest import Invoke


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_is_the_recipe(invoke: Invoke, tmp_path: Path, name: str) -> None:
    shown = tmp_path / "mine.toml"
    shown.write_text(invoke("recipe", "show", name).stdout)
    assert Recipe.load(shown).steps == Recipe.load(name).steps


def test_every_preset_is_listed_with_what_it_is_for(invoke: Invoke) -> None:
    listed = json.loads(invoke("recipe", "list", "--json").stdout)
    assert [each["name"] for each in listed] == preset_names()
    text = invoke("recipe", "list").stdout
    assert all(each["description"] in text for each in listed)


def test_a_file_is_checked_before_it_is_shown(invoke: Invoke, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[[step]]\npass = "drop-unused"\nstrength = 3\n')
    result = invoke("recipe", "show", mine)
    assert result.exit_code == 1 and "unknown key strength" in result.stderr and not result.stdout
