"""What a run costs as models grow: processor seconds, memory, scratch files; beside what one would use instead.

    python -m benchmarks.cost [--models t1,t10,c1,...] [--recipes lossless,default,run:PASS] [--calibration data,none]
        [--jobs 1,2] [--data DIR] [--against REV] [--json FILE] [--compare FILE] [--tolerance 0.25] [--time-limit 1800]

The synthetic models of benchmarks/synthetic.py are made once, below build/cost; DIR adds models with scorers (a folder
each, as for benchmarks/scored.py). Every run is a process of its own, one at a time, and counts all that it starts.
``run:PASS`` in the place of a recipe is ``onnxcomp run PASS``. --jobs: for ``onnxcomp optimize --jobs``. --against does
each job with another revision too, in turn, in an environment with the same versions of all else. --compare holds every
figure against that of a file that --json wrote, and ends with exit code 1 where one is larger by more than
--tolerance (a result's bytes: by more than 2%). Figures of another machine, or another load, are no comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import revisions, synthetic
from benchmarks.processes import MB, Cost, calibration_inputs, deployable_bytes, measured, peer_command

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "cost"
PEERS = {"dynamic": "sympy", "static": "sympy", "nbits": "onnx_ir", "onnxslim": "onnxslim"}  # and what each needs
ALL = ("t1", "t10", "c1", "c10", "g500", "g5000", "w3000")
LIBRARIES_MB = 75.0  # what the process holds before it has read a model
TOLERANCE = 0.25
BYTES_TOLERANCE = 0.02
FLOORS = {"cpu_s": 2.0, "peak_mb": 20.0, "tree_mb": 20.0, "scratch_mb": 5.0, "output_bytes": 0.0}
"""The figures that are compared, and the difference below which each says nothing."""

Key = tuple[str, str, bool, int | None]


@dataclass(frozen=True)
class Source:
    """A model to run on. size: what the growth of its family goes by, parameters or, for graphs of nodes, nodes."""

    name: str
    model: Path
    calib: Path
    family: str = ""
    size: int = 0


@dataclass(frozen=True)
class Job:
    """One tool on one model: "onnxcomp RECIPE" or the name of a peer."""

    source: Source
    tool: str
    with_data: bool
    jobs: int | None = None

    def command(self, python: str, out: Path) -> list[str]:
        """The command line, for an environment's Python."""
        if self.tool in PEERS:
            return peer_command(python, self.tool, self.source.model, out, self.source.calib)
        recipe = self.tool.removeprefix("onnxcomp ")
        way = ["run", recipe[4:]] if recipe.startswith("run:") else ["optimize", "--recipe", recipe]
        command = [python, "-P", "-m", "onnxcomp", *way, str(self.source.model), "-o", str(out), "-q"]
        command += ["--calib-data", str(self.source.calib)] if self.with_data else []
        return command + (["--jobs", str(self.jobs)] if self.jobs is not None else [])


@dataclass
class Row:
    """What a job cost and came to. revision: "" for this one."""

    model: str
    tool: str
    with_data: bool
    jobs: int | None
    revision: str
    family: str
    size: int
    input_bytes: int
    output_bytes: int = 0
    divergence: float | None = None
    passed: bool | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def key(self) -> Key:
        """What job it was."""
        return self.model, self.tool, self.with_data, self.jobs

    @property
    def title(self) -> str:
        """The same in words."""
        data = "" if self.tool in PEERS or self.with_data else ", no data"
        return f"{self.model} {self.tool}{data}{'' if self.jobs is None else f', {self.jobs} jobs'}"

    @property
    def state(self) -> str:
        """What came of it."""
        if self.cost.stopped:
            return "stopped"
        if self.cost.failure:
            return f"fails: {self.cost.failure[-60:]}"
        return "not verified" if self.passed is False else ""

    def figure(self, name: str) -> float:
        """One of the figures that are compared."""
        return float(self.output_bytes if name == "output_bytes" else getattr(self.cost, name))


def run(job: Job, python: str, revision: str, limit_s: float) -> Row:
    """Do a job and read its receipt."""
    source = job.source
    inputs = deployable_bytes(source.model)
    row = Row(source.name, job.tool, job.with_data, job.jobs, revision, source.family, source.size, inputs)
    with TemporaryDirectory(prefix="onnxcomp-cost-", dir=CACHE) as folder:
        out = Path(folder) / "out.onnx"
        row.cost = measured(job.command(python, out), Path(folder), limit_s=limit_s)
        receipt = out.with_name("out.receipt.json")
        if out.exists() and not row.state:
            row.output_bytes = deployable_bytes(out)
        if receipt.exists():
            verdict = json.loads(receipt.read_text())["verdict"]
            row.divergence, row.passed = verdict.get("divergence"), verdict.get("passed")
    return row


# --- what is run ---


def synthetic_source(name: str) -> Source:
    """A model of benchmarks/synthetic.py, made where it is not yet: one of another state of that file is another."""
    maker = Path(synthetic.__file__).read_bytes()
    folder = CACHE / f"models-{revisions.short_hash(maker)}" / name
    if not (folder / "model.onnx").exists():
        synthetic.write(name, folder)
    made = synthetic.SYNTHETIC[name]
    return Source(name, folder / "model.onnx", folder / "calib.npz", made.family, synthetic.size_of(name))


def scored_source(folder: Path) -> Source:
    """A model with a scorer, and its calibration inputs."""
    calib = CACHE / "scored" / f"{folder.name}.npz"
    if not calib.exists():
        calib.parent.mkdir(parents=True, exist_ok=True)
        calibration_inputs(folder, calib)
    return Source(folder.name, folder / "model.onnx", calib)


def sources(options: argparse.Namespace) -> Iterator[Source]:
    """The models that are asked for."""
    for name in options.models:
        yield synthetic_source(name)
    for scorer in sorted(options.data.resolve().glob("*/score.py")) if options.data else []:
        yield scored_source(scorer.parent)


def jobs_of(source: Source, options: argparse.Namespace) -> Iterator[Job]:
    """What is done with a model; peers know neither recipes nor jobs."""
    for recipe in options.recipes:
        for data in options.calibration:
            for count in options.jobs:
                yield Job(source, f"onnxcomp {recipe}", data == "data", count)
    for peer in options.peers:
        yield Job(source, peer, with_data=peer == "static")


# --- what it comes to ---


def growth(rows: Sequence[Row]) -> list[tuple[Row, Row, dict[str, float | None]]]:
    """For neighbours in a family, by one tool: the power of the size with which each figure grows, None where a figure
    is too small to tell. Memory counts above what the libraries take."""
    found = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.family and not row.state and not row.revision:
            groups.setdefault((row.family, *row.key[1:]), []).append(row)
    for group in groups.values():
        group.sort(key=lambda each: each.size)
        found += [(one, two, _exponents(one, two)) for one, two in itertools.pairwise(group)]
    return found


def _exponents(one: Row, two: Row) -> dict[str, float | None]:
    base = {"peak_mb": LIBRARIES_MB, "tree_mb": LIBRARIES_MB}
    exponents: dict[str, float | None] = {}
    for name in ("cpu_s", "peak_mb", "scratch_mb"):
        small, large = (each.figure(name) - base.get(name, 0.0) for each in (one, two))
        told = small > 0 and large > 0 and two.size > one.size
        exponents[name] = math.log(large / small) / math.log(two.size / one.size) if told else None
    return exponents


def ratios(now: Row, before: Row) -> dict[str, float]:
    """Each figure over what it was; 1 where the difference says nothing."""
    found = {}
    for name, floor in FLOORS.items():
        new, old = now.figure(name), before.figure(name)
        found[name] = 1.0 if abs(new - old) <= floor or not old else new / old
    return found


def regressions(now: Row, before: Row, tolerance: float) -> list[str]:
    """What became worse, in words. Of jobs that did not come to their end no figures are compared."""
    if before.state:
        return []
    if now.state:
        return [f"{now.title}: {now.state}, which it was not"]
    limits = dict.fromkeys(FLOORS, 1 + tolerance) | {"output_bytes": 1 + BYTES_TOLERANCE}
    return [
        f"{now.title}: {name} {before.figure(name):,.4g} -> {now.figure(name):,.4g} ({ratio:.2f})"
        for name, ratio in ratios(now, before).items()
        if ratio > limits[name]
    ]


# --- tables and files ---


def table_of(rows: Sequence[Row]) -> Table:
    """All rows."""
    made = Table("model", "MB", "tool", "data", "jobs", "rev", "CPU s", "wall s", "peak MB", "private", "tree",
                 "scratch", "x model", "output bytes", "divergence", "", box=None)  # fmt: skip
    for row in rows:
        cost, data = row.cost, "" if row.tool in PEERS else "yes" if row.with_data else "no"
        made.add_row(
            row.model, f"{row.input_bytes / MB:.3g}", row.tool, data, str(row.jobs or ""), row.revision,
            f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.peak_mb:.0f}", f"{cost.private_mb:.0f}",
            f"{cost.tree_mb:.0f}", f"{cost.scratch_mb:.1f}", f"{cost.scratch_mb * MB / row.input_bytes:.1f}",
            f"{row.output_bytes:,}" if row.output_bytes else "",
            "" if row.divergence is None else f"{row.divergence:.3g}", row.state,
        )  # fmt: skip
    return made


def growth_table(rows: Sequence[Row]) -> Table:
    """The exponents."""
    made = Table("grows with the size to the power of", "to", "CPU", "memory", "scratch", box=None)
    for one, two, exponents in growth(rows):
        made.add_row(one.title, two.model, *("" if each is None else f"{each:.2f}" for each in exponents.values()))
    return made


def ratio_table(pairs: Sequence[tuple[Row, Row]], title: str) -> Table:
    """Each figure over that of another run, and the geometric mean over all jobs."""
    made = Table(title, *FLOORS, box=None)
    found = [(now, ratios(now, before)) for now, before in pairs if not (now.state or before.state)]
    for now, each in found:
        made.add_row(now.title, *(f"{value:.2f}" for value in each.values()))
    if found:
        means = [math.exp(np.mean([math.log(each[name]) for _, each in found])) for name in FLOORS]
        made.add_row("geometric mean", *(f"{value:.2f}" for value in means), style="bold")
    return made


def machine() -> dict[str, Any]:
    """Where and when figures were taken."""
    versions = {name: revisions.version(name) for name in ("onnxcomp", "onnx", "onnxruntime", "numpy")}
    return {
        "platform": platform.platform(), "cores": os.cpu_count(), "memory_mb": psutil.virtual_memory().total // MB,
        "load": os.getloadavg()[0], "revision": revisions.described("HEAD"), "versions": versions,
    }  # fmt: skip


def write(path: Path, rows: Sequence[Row], where: dict[str, Any]) -> None:
    """Keep the rows."""
    path.write_text(json.dumps({"machine": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def read(path: Path) -> dict[Key, Row]:
    """The rows of this revision that a file holds."""
    known = {each.name for each in fields(Row)}
    rows = [
        Row(**{name: value for name, value in each.items() if name in known} | {"cost": Cost(**each["cost"])})
        for each in json.loads(path.read_text())["rows"]
    ]
    return {row.key: row for row in rows if not row.revision}


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").splitlines()[0])
    installed = [name for name, needs in PEERS.items() if find_spec(needs)]

    def listed(text: str) -> list[str]:
        return [each for each in text.split(",") if each]

    parser.add_argument("--models", type=listed, default=list(ALL), help=f"of {', '.join(synthetic.SYNTHETIC)}")
    parser.add_argument("--recipes", type=listed, default=["lossless", "default"])
    parser.add_argument("--calibration", type=listed, default=["data"], help="data, none or data,none")
    parser.add_argument("--jobs", type=lambda text: [int(each) for each in listed(text)], default=[None])
    parser.add_argument("--peers", type=listed, default=installed, help=f"of {', '.join(PEERS)}; those installed")
    parser.add_argument("--data", type=Path, help="a folder of models with scorers, run too")
    parser.add_argument("--against", metavar="REV", help="a revision to do the same with, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="hold the figures against those of a file")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="how much a figure may grow (%(default)s)")
    parser.add_argument("--time-limit", type=float, default=1800.0, metavar="SECONDS", help="of one job (%(default)s)")
    options = parser.parse_args(arguments)
    for name, known in (("models", synthetic.SYNTHETIC), ("peers", PEERS), ("calibration", ("data", "none"))):
        unknown = sorted(set(getattr(options, name)) - set(known))
        if unknown:
            parser.error(f"--{name}: must be of {', '.join(known)}, got {', '.join(unknown)}")
    return options


def main() -> int:
    """Run, print, compare."""
    options = parsed()
    CACHE.mkdir(parents=True, exist_ok=True)
    where, rows, console = machine(), [], Console(width=200)
    pythons = {"": sys.executable}
    if options.against:
        pythons[revisions.described(options.against)] = revisions.environment(options.against, CACHE)
    for source in sources(options):
        for job in jobs_of(source, options):
            for revision, python in pythons.items():
                if revision and job.tool in PEERS:
                    continue
                rows.append(run(job, python, revision, options.time_limit))
                row = rows[-1]
                console.print(f"{row.title} {revision}: {row.cost.cpu_s:.1f} CPU s {row.state}", highlight=False)
                if options.json:  # after each, so that an interrupted run leaves what it has
                    write(options.json, rows, where)
    console.print(table_of(rows), "", growth_table(rows), "")
    own = {row.key: row for row in rows if not row.revision}
    if options.against:
        pairs = [(own[row.key], row) for row in rows if row.revision]
        console.print(ratio_table(pairs, f"relative to {options.against}"))
    return 0 if options.compare is None else compared(own, options.compare, options.tolerance, console)


def compared(own: dict[Key, Row], file: Path, tolerance: float, console: Console) -> int:
    """Print how a file's figures have changed; 1 where one is worse."""
    known = read(file)
    pairs = [(row, known[key]) for key, row in own.items() if key in known]
    worse = [line for now, before in pairs for line in regressions(now, before, tolerance)]
    console.print(ratio_table(pairs, f"relative to {file}"))
    console.print("\n".join([f"{len(pairs)} jobs compared, {len(worse)} figures worse", *worse]), highlight=False)
    return int(bool(worse))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {(error.stderr or '').strip()}")
