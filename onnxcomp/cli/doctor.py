"""``onnxcomp doctor [MODEL]``: the machine, its ONNX Runtime, and why a model is slow on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.running import options

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.doctor.diagnosis import Diagnosis, Finding, ModelDiagnosis


@click.command()
@click.argument("model", type=options.PATH, required=False)
@options.inputs_options
@options.input_shape_option
@options.target_options
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(
    model: Path | None,
    calib_data: str | Sequences | None,
    seed: int,
    ep: str,
    threads: int,
    custom_ops: tuple[Path, ...],
    input_shapes: dict[str, tuple[int, ...]],
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what this machine does fast, what is wrong with its ONNX Runtime, and why MODEL is slow.

    Everything is measured: what 8-bit integers gain, known faults of the ONNX Runtime that is installed, and of MODEL
    what takes time, each with the command that mends it and what that gains.
    """
    from onnxcomp.cli.printing import screen
    from onnxcomp.doctor.diagnosis import diagnose
    from onnxcomp.target import Target

    target = Target.of(ep, threads=threads, custom_ops=custom_ops)
    with screen.progress(quiet=quiet) as tell:
        how: dict[str, Any] = {"target": target, "input_shapes": input_shapes, "seed": seed}
        found = diagnose(model, data=calib_data, **how, progress=tell)
    if as_json:
        screen.show_json(dataclasses.asdict(found))
    else:
        _show(found)


def _show(found: Diagnosis) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen
    from onnxcomp.doctor.diagnosis import FAULT, machine_rows

    rows = [(row[0], row[1]) for row in machine_rows(found)]
    if found.model is not None and found.faults:
        many = formats.count(len(found.faults), "known fault")
        rows = [row for row in rows if row[0] != FAULT]
        rows.append((FAULT, f"{many} of this ONNX Runtime, which `onnxcomp doctor` without a model lists"))
    screen.show(screen.facts(rows))
    if found.model is not None:
        _show_model(found.model)


def _show_model(model: ModelDiagnosis) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in model.shapes.items())
    took = formats.milliseconds(model.latency_ms)
    screen.show("", f"{model.name}: {took} a run, on one sample of {model.data} ({shapes})")
    for each in model.findings:
        _show_finding(each)
    if not model.findings:
        screen.show("", "Nothing was found that could be mended.")
    screen.show(*([""] if model.notes else []), *(f"note: {each}" for each in model.notes))


def _show_finding(finding: Finding) -> None:
    from onnxcomp.cli.printing import screen

    cost = f", {finding.share:.0%} of the time" if finding.share else ""
    lines = ["", f"{finding.name}{cost}", f"  {finding.what}."]
    if finding.command:
        gain = "" if finding.ratio is None else f"    # measured: {finding.ratio:.2f} of the latency"
        lines.append(f"  $ {finding.command}{gain}")
    if finding.advice:
        lines.append(f"  {finding.advice}.")
    screen.show(*lines)
