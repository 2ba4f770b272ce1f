"""``onnxcomp compare REFERENCE MODEL``: outputs side by side on an execution provider."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp import budget
from onnxcomp.cli import ERROR
from onnxcomp.cli.running import options
from onnxcomp.cli.running.options import Words

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.compare import Comparison


@click.command()
@click.argument("reference", type=options.PATH)
@options.model_argument
@options.inputs_options
@options.input_shape_option
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
    input_shapes: dict[str, tuple[int, ...]],
    metric: str,
    outputs: tuple[tuple[str, str], ...],
    max_drop: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the outputs of MODEL with those of REFERENCE on the same inputs.

    Exit code 1 when MODEL does not run, gives other outputs, or is over the limit.
    """
    from onnxcomp.cli.printing import screen
    from onnxcomp.pipeline.reports.compare import compare
    from onnxcomp.target import Target

    if input_shapes and calib_data is not None:
        raise click.UsageError("--input-shape says what to draw, and --data gives the inputs: give one of them.")
    with screen.progress(quiet=quiet) as tell:
        found = compare(
            reference,
            model,
            calibration=calib_data,
            target=Target.of(ep, threads=threads, custom_ops=custom_ops),
            metric=metric,
            outputs=dict(outputs),
            max_drop=None if max_drop is None else budget.parse_drop(max_drop),
            input_shapes=input_shapes,
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
    from onnxcomp.cli.printing import screen

    passed = found.verdict.passed and found.verdict.verified and not found.random
    outcome = "OVER THE LIMIT" if not found.verdict.failed else "FAIL"
    if found.verdict.passed:
        outcome = "PASS" if passed else "RUNS, accuracy not judged"
    screen.show(screen.headline(f"{found.reference} -> {found.model}: {outcome}", good=passed))
    screen.show(screen.facts(_facts(found), indent=2))
    measure = "signal to noise" if found.metric == "sqnr" else found.metric
    listed = screen.table(
        "output", "taken for", measure, "95% interval", "largest error", "largest value", right=_NUMBERS
    )
    number = formats.decibels if found.metric == "sqnr" else formats.significant
    for each in found.outputs:
        interval = "" if each.interval is None else " to ".join(map(number, each.interval))
        value = "" if each.divergence is None else number(each.divergence)
        errors = (each.max_abs_error, each.max_abs_value)
        sizes = ("" if one is None else formats.significant(one) for one in errors)
        listed.add_row(*screen.cells(each.name, each.kind, value, interval, *sizes))
    if found.outputs:
        screen.show("", listed)


_NUMBERS = ("largest error", "largest value")


def _facts(found: Comparison) -> list[tuple[str, str]]:
    from onnxcomp import formats
    from onnxcomp.cli.printing.summary import labelled, shapes_words
    from onnxcomp.cli.printing.verdicts import verdict_words

    sizes = (found.reference_bytes, found.model_bytes)
    words = formats.smaller(*sizes).replace("larger", "LARGER")
    rows = [("size", f"{formats.size(sizes[0])} -> {formats.size(sizes[1])}, {words}")]
    where = f"{found.data}, which show breakage only" if found.random else found.data
    at = f" {shapes_words(found.shapes, found.shapes_from)}," if found.random and found.shapes else ""
    rows.append(("compared", f"on {where},{at} on {found.target}"))
    rows += verdict_words(found.verdict.describe(), metric=found.metric)
    return rows + labelled("note", found.notes)
