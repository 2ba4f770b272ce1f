"""Channels and heads cut out of scored models, in one run.

    python -m benchmarks.cutting DATA [--models NAME,...] [--json FILE]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as for ``benchmarks.scored``.

Every case is one recipe at a strength that is forced, whatever the budget says; calibration inputs are the only data.
Printed are the share of the MACs that is left, the bytes, the latency beside the original's and the metric, each with
the goal that it is held to.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs, deployable_bytes, measured
from benchmarks.scored import score
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import load

PREPARED = "".join(
    f'[[step]]\npass = "{name}"\n\n' for name in ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")
)
CHANNELS = '[[step]]\npass = "prune-channels"\n{how}\n\n'
HEADS = '[[step]]\npass = "prune-heads"\n{how}\n\n'


@dataclass(frozen=True)
class Case:
    """What is asked of a model: of the metric, and of the latency relative to the original's (None: nothing)."""

    model: str
    what: str
    recipe: str
    is_enough: Callable[[float, float], bool]
    metric: float
    latency: float | None = None


CASES = (
    Case("lenet300_mnist", "half of the hidden units", CHANNELS.format(how="ratio = 0.5"), operator.le, 2.6),
    Case("lenet5_caffe_mnist", "half of the MACs", CHANNELS.format(how="macs = 0.5"), operator.le, 1.2, 0.65),
    Case(
        "resnet8_cifar10_tf",
        "a quarter of the MACs",
        CHANNELS.format(how="macs = 0.75\nmultiple = 8"),
        operator.ge,
        76.0,
        0.85,
    ),
    Case(
        "minilm_l6_stsb",
        "a quarter of heads and hidden units",
        HEADS.format(how="ratio = 0.25") + CHANNELS.format(how="ratio = 0.25\nmultiple = 16"),
        operator.ge,
        82.0,
        0.85,
    ),
)


@dataclass
class Row:
    """One case; ``failure`` has the last line of complaint where it fails."""

    model: str
    what: str
    goal: str
    macs: float = 0.0
    size_bytes: int = 0
    latency: float = 0.0
    metric: str = ""
    reached: bool | None = None
    seconds: float = 0.0
    failure: str = ""


def macs(path: Path) -> int:
    """Of one run of a model; dimensions that it leaves open count as 1."""
    return sum(each.count for each in count_macs(open_graph(load(path))).values() if each is not None)


def run(case: Case, folder: Path, calib: Path, work: Path) -> Row:
    """The case, held to its goals."""
    recipe, out = work / "recipe.toml", work / "cut.onnx"
    recipe.write_text(f'description = "{case.what}"\n{PREPARED}{case.recipe}')
    command = [
        sys.executable, "-m", "onnxcomp", "optimize", str(folder / "model.onnx"), "--recipe", str(recipe),
        "--calib-data", str(calib), "--max-drop", "1e9", "-o", str(out), "--force", "-q",
    ]  # fmt: skip
    cost = measured(command, work)
    sign = {operator.le: "<=", operator.ge: ">="}[case.is_enough]
    goal = f"{sign} {case.metric:g}" + (f", latency <= {case.latency:g}" if case.latency else "")
    row = Row(case.model, case.what, goal, seconds=cost.wall_s, failure=cost.failure)
    if row.failure:
        return row
    receipt = json.loads(out.with_suffix(".receipt.json").read_text())
    row.macs, row.size_bytes = macs(out) / macs(folder / "model.onnx"), deployable_bytes(out)
    row.latency, row.metric = receipt["measured"]["latency_ms_ratio"], score(folder, out)
    is_fast = case.latency is None or row.latency <= case.latency
    row.reached = is_fast and case.is_enough(float(row.metric.split()[-1]), case.metric)
    return row


def table(rows: list[Row]) -> Table:
    """The rows as a table."""
    made = Table("model", "cut", "MACs", "bytes", "latency", "metric", "goal", "reached", "seconds", box=None)
    for row in rows:
        if row.failure:
            made.add_row(row.model, row.what, "fails", "", "", row.failure[:60])
            continue
        made.add_row(
            row.model, row.what, f"{row.macs:.2f}", f"{row.size_bytes:,}", f"{row.latency:.2f}", row.metric, row.goal,
            "yes" if row.reached else "no", f"{row.seconds:.0f}",
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", help="names, separated by commas; all of them by default")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    wanted = None if given.models is None else set(given.models.split(","))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            if wanted is None or case.model in wanted:
                folder, work = given.data / case.model, Path(scratch)
                calib = work / f"{case.model}.npz"
                calibration_inputs(folder, calib)
                rows.append(run(case, folder, calib, work))
                Console(stderr=True).print(f"{case.model}: {case.what}")
    Console(width=160).print(table(rows))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
