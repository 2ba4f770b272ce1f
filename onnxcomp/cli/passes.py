"""``onnxcomp passes [NAME]``: the passes, and what one declares."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli.running.options import json_option


@click.command()
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the passes, or show what one of them declares."""
    from onnxcomp.cli.printing import declaration, screen
    from onnxcomp.registry import get_pass, pass_names

    kinds = [get_pass(name)] if name else [get_pass(each) for each in pass_names()]
    if as_json:
        content: list[dict[str, Any]] = [declaration.content(kind) for kind in kinds]
        screen.show_json(content[0] if name else content)
    elif name:
        declaration.show(kinds[0])
    else:
        declaration.show_list(kinds)
