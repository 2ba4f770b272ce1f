"""``python -m onnxcomp.cli.docs`` writes what docs hold twice: passes from their declarations, layers from their table.

docs/passes.md is written whole; in CONTRIBUTING.md and docs/architecture.md the part between two marks is. ``--check``
only compares.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from onnxcomp.cli.declaration import markdown
from onnxcomp.receipt import receipt_schema
from onnxcomp.registry import get_pass, shipped_names

ROOT = Path(__file__).parents[2]
PASSES = Path("docs", "passes.md")
LAYERS = Path("docs", "layers.toml")
WITH_LAYERS = (Path("CONTRIBUTING.md"), Path("docs", "architecture.md"))
PYTHON = Path("docs", "python.md")
SCHEMA = Path("docs", "receipt.schema.json")
STABLE = re.compile(r"(<!-- stable: .*? -->\n).*?(<!-- end of stable -->)", flags=re.DOTALL)
MARKED = re.compile(r"(<!-- layers: .*? -->\n).*?(<!-- end of layers -->)", flags=re.DOTALL)
HEAD = """# Passes

Written by `make docs` from the classes in `passes/`; edit those. `onnxcomp passes NAME` prints the same, and
`onnxcomp run NAME MODEL` takes each parameter as an option. In a recipe a parameter marked "or auto" may be
"auto": it is then chosen weight by weight, the strongest that the budget tolerates.
"""


def passes_page(current: str) -> str:
    """docs/passes.md as it must be."""
    parts = [markdown(get_pass(name)) for name in shipped_names()]
    return "\n".join([HEAD, *parts]).rstrip("\n") + "\n"


def with_layers(current: str) -> str:
    """The page with the layers between its marks."""
    table = tomllib.loads((ROOT / LAYERS).read_text(encoding="utf-8"))
    rows = []
    for parts in table["layers"]:
        notes = "; ".join(table["notes"][each] for each in parts if each in table["notes"])
        rows.append("  ".join(parts).ljust(36) + notes if notes else "  ".join(parts))
    text = "```\n" + "\n".join(rows) + "\n```\n"
    return MARKED.sub(lambda found: found[1] + text + found[2], current)


def with_stable_names(current: str) -> str:
    """The page with the public names between its marks."""
    package = importlib.import_module("onnxcomp")
    rows = [f"| `{name}` | {_first_sentence(getattr(package, name))} |" for name in package.__all__]
    text = "\n".join(["| name | what it is |", "|---|---|", *rows]) + "\n"
    return STABLE.sub(lambda found: found[1] + text + found[2], current)


def _first_sentence(thing: object) -> str:
    if isinstance(thing, str):
        return "The version of the package."
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def schema_page(current: str) -> str:
    """docs/receipt.schema.json as it must be."""
    return json.dumps(receipt_schema(), indent=1) + "\n"


PAGES: Mapping[Path, Callable[[str], str]] = {
    PASSES: passes_page,
    **dict.fromkeys(WITH_LAYERS, with_layers),
    PYTHON: with_stable_names,
    SCHEMA: schema_page,
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
