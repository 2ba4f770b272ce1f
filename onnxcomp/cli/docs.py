"""``python -m onnxcomp.cli.docs`` writes docs/passes.md from the declarations; ``--check`` only compares."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.declaration import markdown
from onnxcomp.registry import get_pass, shipped_names

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"
HEAD = """# Passes

Written by `make docs` from the classes in `passes/`; edit those. `onnxcomp passes NAME` prints the same, and
`onnxcomp run NAME MODEL` takes each parameter as an option. In a recipe a parameter marked "or auto" may be
"auto": it is then chosen weight by weight, the strongest that the budget bears.
"""


def page() -> str:
    """docs/passes.md as it must be."""
    parts = [markdown(get_pass(name)) for name in shipped_names()]
    return "\n".join([HEAD, *parts]).rstrip("\n") + "\n"


@click.command()
@click.option("--check", is_flag=True, help="Compare only; exit 1 when docs/passes.md is out of date.")
def command(check: bool) -> None:
    """Write docs/passes.md."""
    text = page()
    current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif current != text:
        raise click.ClickException(f"{PAGE.name} is out of date: run `make docs`")


if __name__ == "__main__":
    command()
