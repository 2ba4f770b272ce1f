"""``onnxcomp recipe list`` and ``recipe show NAME``: the recipes that ship with the package, to read and to copy."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.running.options import json_option


@click.group()
def command() -> None:
    """Show recipes: what a preset does, as the TOML that --recipe takes."""


@command.command("list")
@json_option
def list_presets(as_json: bool) -> None:
    """List the recipes that ship with onnxcomp."""
    from onnxcomp.cli.printing import screen
    from onnxcomp.recipe import Recipe, preset_names

    recipes = [Recipe.load(name) for name in preset_names()]
    if as_json:
        screen.show_json([{"name": each.name, "goal": each.goal, "description": each.description} for each in recipes])
        return
    listed = screen.table("recipe", "goal", "what it does", whole=("recipe",))
    for each in recipes:
        listed.add_row(*screen.cells(each.name, each.goal, each.description))
    screen.show(listed, "", "One as TOML: onnxcomp recipe show NAME. Your own: onnxcomp optimize --recipe FILE.toml.")


@command.command("show")
@click.argument("name")
def show_preset(name: str) -> None:
    """Print the recipe NAME, a preset or a TOML file, after checking it."""
    from onnxcomp.recipe import Recipe, preset_text

    Recipe.load(name)
    known = preset_text(name)
    click.echo(Path(name).read_text(encoding="utf-8") if known is None else known, nl=False)
