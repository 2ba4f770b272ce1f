"""``onnxcomp bench MODEL [OTHER]``: latency, load time and memory, as ratios in one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.running import options

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.pipeline.reports.bench import Bench, MeasuredCost
    from onnxcomp.runtime import MachinePeaks

SHOWN = 8  # operators of a model


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
    from onnxcomp.cli.printing import screen
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

    if key not in found.ratios:
        return ""
    ratio, noise = found.ratios[key], {"latency_ms": formats.NOISE}.get(key, 0.0)
    if key == "load_s":
        noise = max(formats.LOAD_NOISE, *(each.load_noise for each in found.models))
    return f"{ratio:.2f}" + (f", {formats.faster(ratio, noise)}" if noise else "")


def _show(found: Bench) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen
    from onnxcomp.cli.printing.summary import shapes_words

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
    for each in found.models:
        _show_operators(each, found.peaks)


def _show_operators(cost: MeasuredCost, peaks: MachinePeaks | None) -> None:
    """Where the time goes, and how near that is to the machine's limit."""
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    headings = ("operator", "nodes", "time", "MACs", "bytes", "share of the peak", "bound by")
    listed = screen.table(f"{cost.name}: {headings[0]}", *headings[1:], right=headings[1:6])
    for each in cost.operators[:SHOWN]:
        macs = "" if not each.macs else formats.significant(each.macs)
        peak = "" if each.share_of_peak is None else f"{each.share_of_peak:.0%}"
        cells = (f"{each.share_of_time:.0%}", macs, formats.size(each.size_bytes), peak, each.bound)
        listed.add_row(*screen.cells(each.operator, f"{each.nodes:,}", *cells))
    more = len(cost.operators) - SHOWN
    screen.show("", listed, *([f"... and {more} more operators (--json has all)"] if more > 0 else []))
    if peaks is not None and cost.operators:
        rate = (peaks.float32_macs / 1e9, peaks.int8_macs / 1e9, peaks.bytes_moved[-1][1] / 1e9)
        screen.show(
            "The peak was measured here: {:.0f} GMAC/s in float32, {:.0f} in int8, {:.0f} GB/s of memory.".format(*rate)
        )
