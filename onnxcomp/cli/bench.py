"""``onnxcomp bench MODEL [OTHER]``: latency, load time and memory, as ratios in one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.bench import Bench


@click.command()
@options.model_argument
@click.argument("other", type=options.PATH, required=False)
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Timed runs of each model.")
@options.inputs_options
@options.input_shape_option
@options.target_options
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(
    model: Path,
    other: Path | None,
    runs: int,
    calib_data: str | Sequences | None,
    seed: int,
    ep: str,
    threads: int,
    custom_ops: tuple[Path, ...],
    input_shapes: dict[str, tuple[int, ...]],
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure latency, load time and load memory of MODEL, or of MODEL and OTHER in turns."""
    from onnxcomp.cli import screen
    from onnxcomp.pipeline.reports.bench import bench
    from onnxcomp.target import Target

    target = Target.of(ep, threads=threads, custom_ops=custom_ops)
    with screen.progress(quiet=quiet) as tell:
        how: dict[str, Any] = {"target": target, "runs": runs, "input_shapes": input_shapes, "seed": seed}
        found = bench(model, other, calibration=calib_data, **how, progress=tell)
    if as_json:
        screen.show_json(dataclasses.asdict(found))
    else:
        _show(found)


def _ratio(found: Bench, key: str) -> str:
    """A ratio, and what it comes to where that is time: ``1.57, 1.57x SLOWER``."""
    from onnxcomp import formats
    from onnxcomp.cli.summary import LOAD_NOISE

    if key not in found.ratios:
        return ""
    ratio, noise = found.ratios[key], {"latency_ms": formats.NOISE}.get(key, 0.0)
    if key == "load_s":
        noise = max(LOAD_NOISE, *(each.load_noise for each in found.models))
    return f"{ratio:.2f}" + (f", {formats.faster(ratio, noise)}" if noise else "")


def _show(found: Bench) -> None:
    from onnxcomp import formats
    from onnxcomp.cli import screen
    from onnxcomp.cli.summary import shapes_words

    names = [each.name for each in found.models]
    headings = ("", *names, *(["ratio"] if found.ratios else []))
    listed = screen.table(*headings, right=(*names, "ratio"))
    rows = [
        ("size", "size_bytes", [formats.size(each.size_bytes) for each in found.models]),
        ("latency, median", "latency_ms", [formats.milliseconds(each.latency_ms) for each in found.models]),
        ("latency, best", "", [formats.milliseconds(each.best_latency_ms) for each in found.models]),
        ("load time", "load_s", [formats.milliseconds(1e3 * each.load_s) for each in found.models]),
        ("load memory", "load_peak_bytes", [formats.size(each.load_peak_bytes) for each in found.models]),
    ]
    for name, key, words in rows:
        ratio = [_ratio(found, key)] if found.ratios else []
        listed.add_row(*screen.cells(name, *words, *ratio))
    how = f"{found.runs} runs{' in turns' if found.ratios else ''} on {found.target}"
    conditions = [formats.count(found.threads, "thread"), shapes_words(found.shapes, found.shapes_from)]
    screen.show(listed, "", ", ".join([how, *conditions, f"on one sample of {found.data}"]))
