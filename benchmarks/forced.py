"""Recipes at strengths that are forced, whatever the budget says, on scored models; what comes of them beside goals."""

from __future__ import annotations

import argparse
import importlib.util
import json
import operator
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs, deployable_bytes, measured
from benchmarks.scored import score
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import load

SIGNS = {operator.le: "<=", operator.ge: ">="}


@dataclass(frozen=True)
class Case:
    """What is asked of a model: of the metric, of the bytes and of the latency relative to the original's (None:
    nothing). unlabelled: the archive of DATA with pictures ``x`` to train on, as the scorer's ``prep`` takes them.
    options: further ones of the command.
    """

    model: str
    what: str
    recipe: str
    is_enough: Callable[[float, float], bool]
    metric: float
    latency: float | None = None
    most_bytes: int | None = None
    unlabelled: str | None = None
    options: tuple[str, ...] = ()

    @property
    def goal(self) -> str:
        """In words."""
        parts = [f"{SIGNS[self.is_enough]} {self.metric:g}"]
        parts += [f"latency <= {self.latency:g}"] if self.latency is not None else []
        parts += [f"bytes <= {self.most_bytes:,}"] if self.most_bytes is not None else []
        return ", ".join(parts)


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
    cpu_s: float = 0.0
    failure: str = ""


def macs(path: Path) -> int:
    """Of one run of a model; dimensions that it leaves open count as 1."""
    return sum(each.count for each in count_macs(open_graph(load(path))).values() if each is not None)


def training_inputs(folder: Path, unlabelled: Path, path: Path) -> None:
    """Write pictures without labels as the model of a folder wants them, by its scorer's own functions."""
    spec = importlib.util.spec_from_file_location(folder.name, folder / "score.py")
    assert spec is not None
    assert spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    (name,) = scorer.calib()
    np.savez(path, **{name: scorer.prep(np.load(unlabelled)["x"])})


def run(case: Case, data: Path, work: Path) -> Row:
    """The case, held to its goals."""
    folder, recipe, out = data / case.model, work / "recipe.toml", work / "made.onnx"
    calib = work / f"{case.model}.npz"
    if not calib.exists():
        calibration_inputs(folder, calib)
    recipe.write_text(f'description = "{case.what}"\n{case.recipe}')
    command = [
        sys.executable, "-m", "onnxcomp", "optimize", str(folder / "model.onnx"), "--recipe", str(recipe),
        "--calib-data", str(calib), "--max-drop", "none", "-o", str(out), "--force", "-q", *case.options,
    ]  # fmt: skip
    if case.unlabelled is not None:
        training = work / f"{case.model}_training.npz"
        if not training.exists():
            training_inputs(folder, data / f"{case.unlabelled}.npz", training)
        command += ["--train-data", str(training)]
    cost = measured(command, work)
    row = Row(case.model, case.what, case.goal, seconds=cost.wall_s, cpu_s=cost.cpu_s, failure=cost.failure)
    if row.failure:
        return row
    receipt = json.loads(out.with_suffix(".receipt.json").read_text())
    row.macs, row.size_bytes = macs(out) / macs(folder / "model.onnx"), deployable_bytes(out)
    row.latency, row.metric = receipt["measured"]["latency_ms_ratio"], score(folder, out)
    is_fast = case.latency is None or row.latency <= case.latency
    is_small = case.most_bytes is None or row.size_bytes <= case.most_bytes
    row.reached = is_fast and is_small and case.is_enough(float(row.metric.split()[-1]), case.metric)
    return row


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table."""
    columns = ("model", "what", "MACs", "bytes", "latency", "metric", "goal", "reached", "seconds", "CPU s")
    made = Table(*columns, box=None)
    for row in rows:
        if row.failure:
            made.add_row(row.model, row.what, "fails", "", "", row.failure[:60])
            continue
        made.add_row(
            row.model, row.what, f"{row.macs:.2f}", f"{row.size_bytes:,}", f"{row.latency:.2f}", row.metric, row.goal,
            "yes" if row.reached else "no", f"{row.seconds:.0f}", f"{row.cpu_s:.0f}",
        )  # fmt: skip
    return made


def main(cases: Sequence[Case], description: str) -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", help="names, separated by commas; all of them by default")
    parser.add_argument("--cases", help="numbers of the cases, from 1, separated by commas; all of them by default")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    models = None if given.models is None else set(given.models.split(","))
    numbers = None if given.cases is None else {int(each) for each in given.cases.split(",")}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases, 1):
            if (models is None or case.model in models) and (numbers is None or number in numbers):
                rows.append(run(case, given.data, Path(scratch)))
                Console(stderr=True).print(f"{case.model}: {case.what}")
    Console(width=180).print(table(rows))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
