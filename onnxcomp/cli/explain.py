"""``onnxcomp explain RECEIPT WEIGHT``: why a weight got what it got."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.running import options

if TYPE_CHECKING:
    from onnxcomp.report.explanation import Explanation


@click.command()
@click.argument("receipt", type=options.PATH)
@click.argument("weight")
@options.json_option
def command(receipt: Path, weight: str, as_json: bool) -> None:
    """Say in words what WEIGHT got in a run, why, and what it could have become at what price."""
    from onnxcomp.cli.printing import screen
    from onnxcomp.report import reading
    from onnxcomp.report.explanation import explain

    with reading(receipt) as account:
        found = explain(account, weight)
    if as_json:
        screen.show_json(found.as_json())
    else:
        _show(found)


def _show(found: Explanation) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    screen.show(found.name, *(f"  {each}" for each in found.reasons))
    if found.events:
        steps = screen.table("step", "decision", "what", whole=("step",))
        for each in found.events:
            steps.add_row(*screen.cells(each.step, each.decision, each.what))
        screen.show("", steps)
    if not found.offers:
        return
    headings = ("it could have become", "bytes, about", "error", "divergence", "")
    listed = screen.table(*headings, right=headings[1:4], whole=headings[:1])
    for offer, word in found.offers:
        other = offer.alternative
        causes = "" if other.divergence is None else formats.significant(other.divergence)
        figures = (f"{other.size_bytes:,}", formats.significant(other.error), causes)
        listed.add_row(*screen.cells(offer.label, *figures, word))
    screen.show("", listed)
