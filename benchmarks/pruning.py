"""Zeros in scored models, beside onnxsim's pruning, in one run.

    python -m benchmarks.pruning DATA [--peer PYTHON] [--models NAME,...] [--json FILE]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as for ``benchmarks.scored``. PYTHON is
the interpreter of an environment with onnxsim 0.8 and onnxruntime; without it one is made in the scratch folder, and
where that fails, the peer's rows say so.

Every case is one recipe at a strength that is forced, whatever the budget says; calibration inputs are the only data.
Printed are the share of zeros that is in the file, its bytes, the metric and the goal that it is held to.
"""

from __future__ import annotations

import argparse
import json
import operator
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs, deployable_bytes, measured
from benchmarks.scored import score
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load

PEER = Path(__file__).with_name("pruning_peer.py")
PEER_PACKAGES = ("onnxsim==0.8.*", "onnxruntime")
PEER_METHODS = ("magnitude", "wanda", "sparsegpt")
EMBEDDINGS = "bert.embeddings.*"

PRUNED = """[[step]]
pass = "prune-weights"
sparsity = {share}
scope = "model"
exclude = {exclude}
"""
MATCHED = """[[step]]
pass = "match-outputs"
"""
NM = """[[step]]
pass = "prune-nm"
n = 2
m = 4
exclude = {exclude}
"""
CODED = """[[step]]
pass = "cluster-weights"
bits = 4

[[step]]
pass = "match-outputs"

[[step]]
pass = "store-compact"
"""


@dataclass(frozen=True)
class Case:
    """What is asked of a model. peer: the share or n:m to ask of the peer. least, most: of the metric, and bytes."""

    model: str
    what: str
    recipe: str
    peer: str
    is_enough: Callable[[float, float], bool]
    metric: float
    most_bytes: int | None = None
    exclude: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The recipe as TOML."""
        share = "0.5" if ":" in self.peer else self.peer
        return self.recipe.format(share=share, exclude=json.dumps(list(self.exclude)))


CASES = (
    Case("lenet300_mnist", "90% zero, 4 bits, stored", PRUNED + CODED, "0.9", operator.le, 2.0, 45_000),
    Case("lenet5_caffe_mnist", "90% zero, 4 bits, stored", PRUNED + CODED, "0.9", operator.le, 1.1, 60_000),
    Case("resnet8_cifar10_tf", "half zero", PRUNED + MATCHED, "0.5", operator.ge, 79.0),
    Case("efficientnet_lite0_imagenet", "half zero", PRUNED, "0.5", operator.ge, 75.0),
    Case("minilm_l6_stsb", "half of MatMul zero", PRUNED, "0.5", operator.ge, 85.5, exclude=(EMBEDDINGS,)),
    Case("minilm_l6_stsb", "MatMul 2:4", NM, "2:4", operator.ge, 84.0, exclude=(EMBEDDINGS,)),
)


@dataclass
class Row:
    """One case by one tool; ``failure`` has the last line of complaint of a tool that fails."""

    model: str
    what: str
    tool: str
    zeros: float = 0.0
    size_bytes: int = 0
    metric: str = ""
    goal: str = ""
    reached: bool | None = None
    seconds: float = 0.0
    failure: str = ""


def zeros(path: Path, exclude: tuple[str, ...]) -> float:
    """The share of zeros among the values of the weights that were to be pruned, whatever they are stored as."""
    stems = tuple(each.rstrip("*") for each in exclude)
    counts = [
        (each.size, np.count_nonzero(each.values))
        for each in weights(open_plain(load(path)))
        if not (stems and each.name.startswith(stems))
    ]
    return 1 - sum(kept for _, kept in counts) / sum(size for size, _ in counts)


def peer_python(given: str | None, work: Path) -> str | None:
    """The interpreter of the peer's environment, made where none is given; None where it cannot be."""
    if given:
        return given
    folder = work / "peer"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", *PEER_PACKAGES], capture_output=True, check=False)
    return python if done.returncode == 0 else None


def looked_at(row: Row, folder: Path, out: Path, case: Case) -> Row:
    """The row with what the file is."""
    row.zeros, row.size_bytes, row.metric = zeros(out, case.exclude), deployable_bytes(out), score(folder, out)
    return row


def ours(case: Case, folder: Path, calib: Path, work: Path) -> Row:
    """The case by this package, held to its goal."""
    recipe, out = work / "recipe.toml", work / "onnxcomp.onnx"
    recipe.write_text(f'description = "{case.what}"\n{case.text}')
    command = [
        sys.executable, "-m", "onnxcomp", "optimize", str(folder / "model.onnx"), "--recipe", str(recipe),
        "--calib-data", str(calib), "--max-drop", "1e9", "-o", str(out), "-q",
    ]  # fmt: skip
    cost = measured(command, work)
    row = Row(case.model, case.what, "onnxcomp", seconds=cost.wall_s, failure=cost.failure)
    sign = {operator.le: "<=", operator.ge: ">="}[case.is_enough]
    row.goal = f"{sign} {case.metric:g}" + (f", <= {case.most_bytes:,} B" if case.most_bytes else "")
    if not row.failure:
        looked_at(row, folder, out, case)
        row.reached = case.is_enough(float(row.metric.split()[-1]), case.metric) and (
            case.most_bytes is None or row.size_bytes <= case.most_bytes
        )
    return row


def peers(case: Case, folder: Path, calib: Path, work: Path, python: str | None) -> list[Row]:
    """The case by each of the peer's methods."""
    rows = []
    for method in PEER_METHODS:
        row, out = Row(case.model, case.what, f"onnxsim {method}"), work / f"{method}.onnx"
        rows.append(row)
        if python is None:
            row.failure = "onnxsim does not install here"
            continue
        command = [python, str(PEER), method, str(folder / "model.onnx"), str(out), str(calib), case.peer]
        cost = measured(command, work)
        row.seconds, row.failure = cost.wall_s, cost.failure
        if not row.failure:
            looked_at(row, folder, out, case)
    return rows


def table(rows: list[Row]) -> Table:
    """The rows as a table."""
    made = Table("model", "what", "tool", "zeros", "bytes", "metric", "goal", "reached", "seconds", box=None)
    for row in rows:
        if row.failure:
            made.add_row(row.model, row.what, row.tool, "fails", "", row.failure[:60])
            continue
        reached = "" if row.reached is None else "yes" if row.reached else "no"
        made.add_row(
            row.model, row.what, row.tool, f"{row.zeros:.1%}", f"{row.size_bytes:,}", row.metric, row.goal, reached,
            f"{row.seconds:.0f}",
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", help="the Python of an environment with onnxsim 0.8 and onnxruntime")
    parser.add_argument("--models", help="names, separated by commas; all of them by default")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    wanted = options.models.split(",") if options.models else None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onnxcomp-pruning-") as scratch:
        python = peer_python(options.peer, Path(scratch))
        for case in CASES:
            folder = options.data.resolve() / case.model
            if (wanted is not None and case.model not in wanted) or not folder.is_dir():
                continue
            with tempfile.TemporaryDirectory(prefix="onnxcomp-pruning-") as work:
                calib = Path(work) / "calib.npz"
                calibration_inputs(folder, calib)
                rows.append(ours(case, folder, calib, Path(work)))
                rows += peers(case, folder, calib, Path(work), python)
            if options.json:  # after each case, so that an interrupted run leaves what it has
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console(width=170).print(table(rows))


if __name__ == "__main__":
    main()
