"""``onnxcomp optimize MODEL``: a recipe within a budget, or a receipt again."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import options


@click.command()
@options.model_argument
@click.option("--recipe", default="default", show_default=True, metavar="NAME|FILE",
              help="A preset (default, small, fast, lossless) or a TOML file.")  # fmt: skip
@options.output_options
@options.data_options
@options.target_options
@options.budget_options
@options.limit_options
@click.option("--replay", type=options.PATH, metavar="RECEIPT",
              help="Make a receipt's result again, byte for byte, with no measuring.")  # fmt: skip
@options.json_option
@options.noise_options
def command(recipe: str, **given: Any) -> None:
    """Make MODEL smaller or faster within an accuracy budget.

    Every step is verified against the original on the execution provider; what breaks the budget is taken
    back. The input is never changed. Writes OUT and OUT's receipt (.receipt.json).
    """
    from onnxcomp.cli import job

    job.run(job.Request(recipe=recipe, **given))
