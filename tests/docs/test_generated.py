"""What `make docs` writes is about all that there is: every key of a recipe, every value that one may have."""

from __future__ import annotations

import re

import pytest

from onnxcomp.recipe.reading import EVERY, KINDS, MEANINGS
from onnxcomp.recipe.recipe import GOALS, RECIPE_KEYS
from onnxcomp.recipe.step import VERIFY, WHEN
from tests.docs.blocks import ROOT


def test_every_key_of_a_recipe_has_a_meaning_and_no_other() -> None:
    keys = {key for kind, (_, own) in KINDS.items() for key in (kind, *(own or ()))} | {*EVERY, *RECIPE_KEYS}
    assert set(MEANINGS) == keys


@pytest.mark.parametrize(("key", "values"), [("goal", GOALS), ("verify", VERIFY), ("when", WHEN)])
def test_the_meaning_of_a_key_names_its_values(key: str, values: tuple[str, ...]) -> None:
    assert set(re.findall(r'"(\w+)"', MEANINGS[key])) == set(values)


def test_every_pass_has_an_example() -> None:
    page = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    for part in page.split("\n## ")[1:]:
        name = part.splitlines()[0]
        assert f"onnxcomp run {name} model.onnx" in part
