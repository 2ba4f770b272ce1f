"""``python -m onnxcomp.cli.docs`` writes what docs hold twice: passes from their declarations, layers from their table,
a recipe's keys and the presets from the code that reads them.

docs/passes.md is written whole; in the other pages the part between two marks is. ``--check`` only compares.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from onnxcomp.cli.printing.declaration import cell, example, markdown
from onnxcomp.contract import Pass
from onnxcomp.receipt import receipt_schema
from onnxcomp.recipe import Recipe, preset_names
from onnxcomp.recipe.reading import EVERY, KINDS, MEANINGS
from onnxcomp.recipe.recipe import RECIPE_KEYS
from onnxcomp.registry import get_pass, shipped_names

ROOT = Path(__file__).parents[2]
PASSES = Path("docs", "passes.md")
MEASURED = Path("docs", "measured.toml")
RECIPES = Path("docs", "recipes.md")
PIPELINES = Path("docs", "pipelines.md")
EXAMPLES = Path("docs", "integrations")
EXAMPLE = re.compile(r"(<!-- file: (\S+), .*? -->\n).*?(<!-- end of file -->)", flags=re.DOTALL)
LANGUAGES = {".yml": "yaml", ".yaml": "yaml", ".py": "python", ".json": "json", "": "dockerfile"}
LAYERS = Path("docs", "layers.toml")
WITH_LAYERS = (Path("CONTRIBUTING.md"), Path("docs", "architecture.md"))
PYTHON = Path("docs", "python.md")
SCHEMA = Path("docs", "receipt.schema.json")
HEAD = """# Passes

Written by `make docs` from the classes in `passes/`; edit those. `onnxcomp passes NAME` prints the same, and
`onnxcomp run NAME MODEL` takes each parameter as an option. In a recipe a parameter marked "or auto" may be
"auto": it is then chosen weight by weight, the strongest that the budget tolerates. Words are explained in the
[glossary](glossary.md), recipes in [recipes.md](recipes.md).
"""


def passes_page(current: str) -> str:
    """docs/passes.md as it must be."""
    measured = tomllib.loads((ROOT / MEASURED).read_text(encoding="utf-8"))
    unknown = sorted(set(measured) - set(shipped_names()))
    if unknown:
        raise click.ClickException(f"{MEASURED}: no such pass: {', '.join(unknown)}")
    parts = [_part(get_pass(name), measured.get(name)) for name in shipped_names()]
    return "\n".join([HEAD, *parts]).rstrip("\n") + "\n"


def _part(kind: type[Pass], measured: Mapping[str, Any] | None) -> str:
    """A pass's declaration, with an example and what it was measured to do."""
    text = f"{markdown(kind)}\n{example(kind)}"
    return text if measured is None else f"{text}\nMeasured: {measured['said']} [Tables]({measured['page']}).\n"


def with_layers(current: str) -> str:
    """The page with the layers between its marks."""
    table = tomllib.loads((ROOT / LAYERS).read_text(encoding="utf-8"))
    rows = []
    for parts in table["layers"]:
        notes = "; ".join(table["notes"][each] for each in parts if each in table["notes"])
        rows.append("  ".join(parts).ljust(36) + notes if notes else "  ".join(parts))
    return between("layers", "```\n" + "\n".join(rows) + "\n```\n", current)


def with_stable_names(current: str) -> str:
    """The page with the public names between its marks."""
    package = importlib.import_module("onnxcomp")
    rows = [f"| `{name}` | {_first_sentence(getattr(package, name))} |" for name in package.__all__]
    text = "\n".join(["| name | what it is |", "|---|---|", *rows]) + "\n"
    return between("stable", text, current)


def _first_sentence(thing: object) -> str:
    if isinstance(thing, str):
        return "The version of the package."
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def schema_page(current: str) -> str:
    """docs/receipt.schema.json as it must be."""
    return json.dumps(receipt_schema(), indent=1) + "\n"


def with_recipe_keys(current: str) -> str:
    """The page with the presets, and every key of a recipe, between its marks."""
    presets = [Recipe.load(name) for name in preset_names()]
    rows = [(f"`{each.name}`", each.goal, each.description) for each in presets]
    page = between("presets", _table(("recipe", "goal", "what it does"), rows), current)
    steps: list[tuple[str, str, str]] = []
    for kind, (_, own) in KINDS.items():
        keys = (kind, *(own or ()), *EVERY)
        steps += [(f"`{kind}`" if key == kind else "", f"`{key}`", MEANINGS[key]) for key in keys if key not in EVERY]
    steps += [("any", f"`{key}`", MEANINGS[key]) for key in EVERY]
    top = [(f"`{key}`", MEANINGS[key]) for key in sorted(RECIPE_KEYS)]
    tables = [_table(("key", "meaning"), top), _table(("kind of step", "key", "meaning"), steps)]
    return between("keys", "\n".join(tables), page)


def with_examples(current: str) -> str:
    """The page with the example files that it names."""

    def shown(found: re.Match[str]) -> str:
        path = ROOT / EXAMPLES / found[2]
        return f"{found[1]}```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```\n{found[3]}"

    return EXAMPLE.sub(shown, current)


def between(name: str, text: str, current: str) -> str:
    """The page with ``text`` between the marks of that name."""
    marked = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", flags=re.DOTALL)
    return marked.sub(lambda found: found[1] + text + found[2], current)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([cell(each) for each in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGES: Mapping[Path, Callable[[str], str]] = {
    PASSES: passes_page,
    RECIPES: with_recipe_keys,
    PIPELINES: with_examples,
    PYTHON: with_stable_names,
    SCHEMA: schema_page,
    **dict.fromkeys(WITH_LAYERS, with_layers),
}


@click.command()
@click.option("--check", is_flag=True, help="Compare only; exit 1 when a page is out of date.")
def command(check: bool) -> None:
    """Write the generated parts of the docs."""
    for path, render in PAGES.items():
        page = ROOT / path
        current = page.read_text(encoding="utf-8") if page.is_file() else ""
        text = render(current)
        if not check:
            page.write_text(text, encoding="utf-8")
        elif current != text:
            raise click.ClickException(f"{path} is out of date: run `make docs`")


if __name__ == "__main__":
    command()
