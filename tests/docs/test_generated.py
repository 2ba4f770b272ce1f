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


def test_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    files = [*(ROOT / "onnxcomp").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    source = " ".join(path.read_text(encoding="utf-8") for path in files)
    told = " ".join(re.sub(r'" *\n? *f?"', "", re.sub(r"\s+", " ", source)).split())
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    quoted = [part.strip(" .") for row in rows for span in re.findall(r"`([^`]+)`", row) for part in span.split("...")]
    assert len(quoted) > 15
    assert [each for each in quoted if each and each not in told] == []
