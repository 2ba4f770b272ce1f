"""``onnxcomp report RECEIPT``: the page that ``--report`` writes, later."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.running import options

ENDING = ".receipt.json"


@click.command()
@click.argument("receipt", type=options.PATH)
@click.option("-o", "--out", "output", type=options.PATH, metavar="FILE.html",
              help="File to write. [default: RECEIPT with .html for .receipt.json]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(receipt: Path, output: Path | None, force: bool, quiet: bool) -> None:
    """Write the receipt of a run as one HTML page that needs no network and no other file."""
    from onnxcomp import report
    from onnxcomp.cli.printing import screen

    page = output or receipt.with_name(f"{receipt.name.removesuffix(ENDING).removesuffix('.json')}.html")
    report.write(receipt, page, force=force)
    if not quiet:
        screen.show(screen.facts([("written", str(page))]))
