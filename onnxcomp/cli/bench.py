"""``onnxcomp bench MODEL [OTHER]``: latency, load time and memory, as ratios in one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli import options

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.bench import Bench


@click.command()
@options.model_argument
@click.argument("other", type=options.PATH, required=False)
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Timed runs of each model.")
@options.data_options
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
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure latency, load time and load memory of MODEL, or of MODEL and OTHER in turns."""
    from onnxcomp.cli import screen
    from onnxcomp.pipeline.reports.bench import bench
    from onnxcomp.target import Target

    target = Target.of(ep, threads=threads, custom_ops=custom_ops)
    with screen.progress(quiet=quiet) as tell:
        found = bench(model, other, calibration=calib_data, target=target, runs=runs, seed=seed, progress=tell)
    if as_json:
        screen.show_json(dataclasses.asdict(found))
    else:
        _show(found)


def _show(found: Bench) -> None:
    from onnxcomp import formats
    from onnxcomp.cli import screen

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
        ratio = [f"{found.ratios[key]:.2f}" if key in found.ratios else ""] if found.ratios else []
        listed.add_row(*screen.cells(name, *words, *ratio))
    how = f"{found.runs} runs{' in turns' if found.ratios else ''} on {found.target}"
    screen.show(listed, "", f"{how}, {formats.count(found.threads, 'thread')}, on one sample of {found.data}")
