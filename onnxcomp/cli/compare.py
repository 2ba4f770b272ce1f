"""``onnxcomp compare REFERENCE MODEL``: outputs side by side on an execution provider."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp import budget
from onnxcomp.cli import ERROR, options
from onnxcomp.cli.options import Words

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.compare import Comparison


@click.command()
@click.argument("reference", type=options.PATH)
@options.model_argument
@options.data_options
@options.target_options
@options.metric_option
@options.reading_option
@click.option("--max-drop", type=Words("drop", budget.parse_drop), metavar="X",
              help="How much worse MODEL may be: 0.01 (the metric's unit) or 1% (relative).")  # fmt: skip
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
@click.pass_context
def command(
    ctx: click.Context,
    reference: Path,
    model: Path,
    calib_data: str | Sequences | None,
    seed: int,
    ep: str,
    threads: int,
    custom_ops: tuple[Path, ...],
    metric: str,
    outputs: tuple[tuple[str, str], ...],
    max_drop: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the outputs of MODEL with those of REFERENCE on the same inputs.

    Exit code 1 when MODEL does not run, gives other outputs, or is over the limit.
    """
    from onnxcomp.cli import screen
    from onnxcomp.pipeline.reports.compare import compare
    from onnxcomp.target import Target

    with screen.progress(quiet=quiet) as tell:
        found = compare(
            reference,
            model,
            calibration=calib_data,
            target=Target.of(ep, threads=threads, custom_ops=custom_ops),
            metric=metric,
            outputs=dict(outputs),
            max_drop=None if max_drop is None else budget.parse_drop(max_drop),
            seed=seed,
            progress=tell,
        )
    if as_json:
        content = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        listed = [dataclasses.asdict(each) for each in found.outputs]
        screen.show_json({**content, "verdict": found.verdict.describe(), "outputs": listed})
    elif not quiet:
        _show(found)
    if not found.verdict.passed:
        ctx.exit(ERROR)


def _show(found: Comparison) -> None:
    from onnxcomp import formats
    from onnxcomp.cli import screen

    listed = screen.table(
        "output", "taken for", found.metric, "95% interval", "largest error", "largest value", right=_NUMBERS
    )
    for each in found.outputs:
        interval = "" if each.interval is None else " to ".join(map(formats.significant, each.interval))
        numbers = (each.divergence, each.max_abs_error, each.max_abs_value)
        value, error, peak = ("" if number is None else formats.significant(number) for number in numbers)
        listed.add_row(*screen.cells(each.name, each.kind, value, interval, error, peak))
    if found.outputs:
        screen.show(listed, "")
    screen.show(screen.facts(_facts(found)))


_NUMBERS = ("largest error", "largest value")


def _facts(found: Comparison) -> list[tuple[str, str]]:
    from onnxcomp import formats
    from onnxcomp.cli.verdicts import verdict_words

    sizes = (found.reference_bytes, found.model_bytes)
    rows = [("size", f"{sizes[0]:,} -> {sizes[1]:,} bytes, {formats.smaller(*sizes)}")]
    where = "random inputs, which show breakage only" if found.random else found.data
    rows.append(("compared", f"on {where}, on {found.target}"))
    rows += verdict_words(found.verdict.describe(), metric=found.metric)
    rows += [("note", each) for each in found.notes]
    return rows
