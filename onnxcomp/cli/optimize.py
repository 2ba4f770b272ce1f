"""``onnxcomp optimize MODEL``: a recipe within a budget, or a receipt again."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from onnxcomp.cli.running import options

FOLLOWED = frozenset(
    {
        "model",
        "replay",
        "output",
        "force",
        "report",
        "calib_data",
        "custom_ops",
        "as_json",
        "quiet",
        "verbose",
        "reference",
        "train_data",
        "checkpoints",
    }
)


@click.command()
@options.model_argument
@click.option("--recipe", default="default", show_default=True, metavar="NAME|FILE",
              help="A preset (default, small, fast, packed, lossless, deep-compression, tiny) or a TOML file.")
@options.output_options
@options.data_options
@options.input_shape_option
@options.training_options
@options.target_options
@options.budget_options
@options.limit_options
@options.worker_options
@click.option("--replay", type=options.PATH, metavar="RECEIPT",
              help="Make a receipt's result again, byte for byte, with no measuring.")  # fmt: skip
@options.json_option
@options.noise_options
def command(recipe: str, **given: Any) -> None:
    """Make MODEL smaller or faster within an accuracy budget.

    Every step is verified against the original on the execution provider; what breaks the budget is taken
    back. The input is never changed. Writes OUT and OUT's receipt (.receipt.json).
    """
    from onnxcomp.cli.running import job

    if given["replay"] is not None:
        _refuse_what_no_replay_follows(click.get_current_context())
    job.run(job.Request(recipe=recipe, **given))


def _refuse_what_no_replay_follows(ctx: click.Context) -> None:
    """Raise UsageError for options that say how to optimize: a receipt says it all."""
    for each in ctx.command.params:
        name = each.name or ""
        if name not in FOLLOWED and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{each.opts[0]} has no effect beside --replay: the receipt says how it was done")
