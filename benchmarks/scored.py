"""onnxcomp and ONNX Runtime's quantizers over scored models, side by side in one run.

    python -m benchmarks.scored DATA [--recipe small] [--models NAME,...] [--json FILE]

It wants the packages of the extra "bench": pip install -e '.[bench]'.

DATA holds one folder a model with ``model.onnx`` and ``score.py`` (``score.py MODEL`` prints the metric,
``score.py --calib FILE`` writes calibration inputs). Every model gets the same command line. Printed for
each: deployable bytes, ratio, metric, load time and latency as ratios of the original's (medians of
alternating runs in one process, one thread), and seconds and peak memory of the optimization. "latency" is that of a
model that runs alone: of two runs in turn the second counts; "cold" follows a run of another model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs, deployable_bytes, measured, peer_command
from onnxcomp.runtime import measure_latency, measure_load

PEERS = ("dynamic", "static", "nbits")
LATENCY_RUNS = 30
LATENCY_S = 4.0  # at least, for all models together


@dataclass
class Row:
    """One model by one tool; a tool that fails has its last line of complaint in ``failure``."""

    model: str
    tool: str
    size_bytes: int = 0
    ratio: float = 0.0
    metric: str = ""
    load_ratio: float = 0.0
    latency_ratio: float = 0.0
    cold_latency_ratio: float = 0.0
    seconds: float = 0.0
    peak_mb: float = 0.0
    failure: str = ""


def score(folder: Path, model: Path) -> str:
    """The metric that the model's own scorer prints, as "name value"."""
    command = [sys.executable, str(folder / "score.py"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[:2]) if done.returncode == 0 else "does not run"


def tools(recipe: str, model: Path, calib: Path, work: Path) -> dict[str, tuple[Path, list[str]]]:
    """Output file and command line of each tool."""
    ours = work / "onnxcomp.onnx"
    command = [
        sys.executable, "-m", "onnxcomp", "optimize", str(model), "--recipe", recipe,
        "--calib-data", str(calib), "-o", str(ours), "-q",
    ]  # fmt: skip
    found = {f"onnxcomp {recipe}": (ours, command)}
    for peer in PEERS:
        out = work / f"{peer}.onnx"
        found[f"ORT {peer}"] = (out, peer_command(sys.executable, peer, model, out, calib))
    return found


def measure(folder: Path, recipe: str, work: Path) -> list[Row]:
    """All tools on one model; latency and load of everything that loads, alternated."""
    model, calib = folder / "model.onnx", work / "calib.npz"
    calibration_inputs(folder, calib)
    rows = [Row(folder.name, "original", deployable_bytes(model), 1.0, score(folder, model))]
    made = {"original": model}
    for tool, (out, command) in tools(recipe, model, calib, work).items():
        row = Row(folder.name, tool)
        cost = measured(command, work)
        row.seconds, row.peak_mb, row.failure = cost.wall_s, cost.peak_mb, cost.failure
        rows.append(row)
        if row.failure:
            continue
        row.size_bytes = deployable_bytes(out)
        row.ratio = row.size_bytes / rows[0].size_bytes
        row.metric = score(folder, out)
        if row.metric == "does not run":
            row.failure = "the result does not run"
            continue
        made[tool] = out
    one = {name: array[:1] for name, array in np.load(calib).items()}
    took, cold = (measure_latency(made, one, runs=LATENCY_RUNS, seconds=LATENCY_S, warm=warm) for warm in (True, False))
    loads = {tool: measure_load(path).seconds for tool, path in made.items()}
    for row in rows:
        if row.tool in made:
            row.latency_ratio = took[row.tool].median_ms / took["original"].median_ms
            row.cold_latency_ratio = cold[row.tool].median_ms / cold["original"].median_ms
            row.load_ratio = loads[row.tool] / loads["original"]
    return rows


def table(rows: list[Row]) -> Table:
    """The rows as a table."""
    made = Table(
        "model", "tool", "bytes", "ratio", "metric", "load", "latency", "cold", "seconds", "peak MB", box=None
    )
    for row in rows:
        if row.failure:
            made.add_row(row.model, row.tool, "fails", "", row.failure[:60])
            continue
        made.add_row(
            row.model, row.tool, f"{row.size_bytes:,}", f"{row.ratio:.3f}", row.metric, f"{row.load_ratio:.2f}",
            f"{row.latency_ratio:.2f}", f"{row.cold_latency_ratio:.2f}", f"{row.seconds:.0f}", f"{row.peak_mb:.0f}",
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--models", help="names, separated by commas; all of them by default")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    wanted = options.models.split(",") if options.models else None
    folders = [each.parent for each in sorted(options.data.resolve().glob("*/score.py"))]
    rows: list[Row] = []
    for folder in folders:
        if wanted is None or folder.name in wanted:
            with tempfile.TemporaryDirectory(prefix="onnxcomp-scored-") as work:
                rows.extend(measure(folder, options.recipe, Path(work)))
            if options.json:  # after each model, so that an interrupted run leaves what it has
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console(width=170).print(table(rows))


if __name__ == "__main__":
    main()
