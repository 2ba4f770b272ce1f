"""``onnxcomp check RECEIPT`` or ``check MODEL REFERENCE``: a gate, one line and an exit code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp import budget
from onnxcomp.cli import ERROR
from onnxcomp.cli.running import options
from onnxcomp.cli.running.options import Words

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.check import Check


@click.command()
@click.argument("subjects", type=options.PATH, nargs=-1, required=True, metavar="RECEIPT...|MODEL [REFERENCE]")
@options.inputs_options
@options.input_shape_option
@click.option("--max-drop", type=Words("drop", budget.parse_drop), metavar="X",
              help="How much worse the model may be: 0.01 (the metric's unit) or 1% (relative). "
                   "[default: the receipt's limit, else the metric's]")  # fmt: skip
@options.metric_option
@options.reading_option
@click.option("--reference", "original", type=options.PATH, metavar="ORIGINAL",
              help="The original of a receipt, where it is not where the receipt says.")  # fmt: skip
@click.option("--ep", metavar="NAME", help="Execution provider. [default: the receipt's, else cpu]")
@click.option("--custom-ops", type=options.LIBRARY, multiple=True, metavar="LIBRARY",
              help="Shared library with the model's custom operators. May be repeated.")  # fmt: skip
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
@click.pass_context
def command(ctx: click.Context, /, subjects: tuple[Path, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Say in one line whether a model may stand for its original; exit code 0 if so, 1 if not.

    With a RECEIPT, or a MODEL whose receipt lies beside it: the files are as recorded, the model loads, the verdict
    was within the budget and no goal was missed; with --data the outputs are compared again. With MODEL and REFERENCE:
    their outputs are compared on --data. Several receipts: a line for each, and all of them must hold.
    """
    from onnxcomp.cli.printing import screen
    from onnxcomp.cli.printing.verdicts import gate_line

    by_receipt = len(subjects) == 1 or all(each.suffix == ".json" for each in subjects)
    if not by_receipt and len(subjects) > 2:
        raise click.UsageError("give receipts (.json), or one model and its reference")
    pairs = [(each, None) for each in subjects] if by_receipt else [(subjects[0], subjects[1])]
    found = []
    for subject, reference in pairs:
        with screen.progress(quiet=quiet) as tell:
            found.append(_found(subject, reference, tell, **given))
        if not quiet and not as_json:
            screen.show(gate_line(found[-1]))
    if as_json:
        shown = [{"passed": each.passed, **dataclasses.asdict(each)} for each in found]
        screen.show_json(shown if len(subjects) > 1 and by_receipt else shown[0])
    if not all(each.passed for each in found):
        ctx.exit(ERROR)


def _found(
    subject: Path,
    reference: Path | None,
    tell: Any,
    *,
    calib_data: str | Sequences | None,
    input_shapes: dict[str, tuple[int, ...]],
    max_drop: str | None,
    metric: str,
    outputs: tuple[tuple[str, str], ...],
    original: Path | None,
    ep: str | None,
    custom_ops: tuple[Path, ...],
    seed: int,
) -> Check:
    from onnxcomp.pipeline.reports.check import check_models, check_receipt, receipt_of
    from onnxcomp.target import Target

    drop = None if max_drop is None else budget.parse_drop(max_drop)
    shared: dict[str, Any] = {"calibration": calib_data, "max_drop": drop, "seed": seed, "progress": tell}
    if input_shapes and (calib_data is not None or reference is None):
        raise click.UsageError("--input-shape says what to draw for two models without --data.")
    if reference is None:
        if metric != "auto" or outputs:
            raise click.UsageError("--metric and --output have no effect beside a receipt, which names its own.")
        if drop is not None and calib_data is None:
            raise click.UsageError("--max-drop of a receipt is held against a new measurement: give --data.")
        return check_receipt(receipt_of(subject), reference=original, ep=ep, custom_ops=custom_ops, **shared)
    if original is not None:
        raise click.UsageError("--reference belongs to a receipt; here the second argument is the reference.")
    target = Target.of(ep or "cpu", custom_ops=custom_ops)
    named: dict[str, Any] = {"target": target, "metric": metric, "outputs": dict(outputs)}
    return check_models(subject, reference, input_shapes=input_shapes, **named, **shared)
