"""Sessions in a process of their own: a large model's memory is given back, and can be measured.

``python -P -m onnxcomp.runtime.isolated JOB`` runs the job written in folder JOB: it opens the model, runs
the numbered feeds it finds, writes the outputs beside them and ``report.json``. The parent reads the
outputs one batch at a time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and float8 with np.dtype by name)
import numpy as np

from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.model_source import ModelSource, Referring
from onnxcomp.runtime.measure import Latency, clock_for, in_turns
from onnxcomp.runtime.session import CPU, Feeds, Session, Value
from onnxcomp.tensors import write_array

ENOUGH_S = 1.0


@dataclass(frozen=True)
class Load:
    """What opening a model costs: seconds, and bytes above what the process held before.

    Seconds are of the processor where one thread of the CPU does it all, as for latencies, else of the wall clock.
    spread_s: from the shortest to the median of several: what disturbs a load makes it longer.
    """

    seconds: float
    peak_bytes: int
    spread_s: float = 0.0

    @property
    def noise(self) -> float:
        """The spread as a share of the time."""
        return self.spread_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class IsolatedRun:
    """Outputs of a model that ran elsewhere, kept in ``folder``; ``peak_bytes`` counts the whole run."""

    folder: Path
    batch_count: int
    load: Load
    peak_bytes: int

    def outputs(self) -> Iterator[dict[str, Value]]:
        """The outputs of each batch in order, read from the folder one at a time."""
        return (read_values(self.folder / f"out{i}") for i in range(self.batch_count))


def run_isolated(
    model: ModelSource,
    batches: Iterable[Feeds],
    *,
    folder: Path,
    names: Iterable[str] | None = None,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    custom_ops: Iterable[Path] = (),
    frugal: bool = False,
) -> IsolatedRun:
    """Run ``model`` over ``batches`` in a child process; feeds and outputs pass through ``folder``. frugal: see
    ``Session``.

    Raises TargetError (does not load) or VerificationError (does not run, or the process died).
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, feeds in enumerate(batches, 1):
        write_values(folder / f"in{count - 1}", feeds)
    job = {
        **_as_files(model, folder, provider),
        "names": None if names is None else list(names),
        "batch_count": count,
        "session": {
            "provider": provider,
            "provider_options": dict(provider_options or {}),
            "threads": threads,
            "frugal": frugal,
        },
        "custom_ops": [str(path.resolve()) for path in custom_ops],
    }
    report = _in_child(folder, job)
    load = Load(report["load_s"], report["load_peak_bytes"])
    return IsolatedRun(folder, count, load, report["peak_bytes"])


def measure_apart(
    model: ModelSource,
    feeds: Feeds,
    *,
    runs: int = 20,
    seconds: float = 0.0,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    custom_ops: Iterable[Path] = (),
) -> tuple[Load, Latency]:
    """What opening and running a model takes, in a process of its own that holds nothing else.

    Raises TargetError (does not load) or VerificationError (does not run, or the process died).
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as name:
        folder = Path(name)
        write_values(folder / "in0", feeds)
        job = {
            **_as_files(model, folder, provider),
            "session": {"provider": provider, "provider_options": dict(provider_options or {}), "threads": threads},
            "custom_ops": [str(path.resolve()) for path in custom_ops],
            "timed": {"runs": runs, "seconds": seconds},
        }
        report = _in_child(folder, job)
    return Load(report["load_s"], report["load_peak_bytes"]), Latency(**report["latency"])


def measure_load(
    model: ModelSource,
    *,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    custom_ops: Sequence[Path] = (),
    runs: int = 3,
) -> Load:
    """What ``measure_loads`` measures of one model."""
    options: dict[str, Any] = {"provider": provider, "provider_options": provider_options, "threads": threads}
    return measure_loads({"": model}, **options, custom_ops=custom_ops, runs=runs)[""]


def measure_loads(
    models: Mapping[str, ModelSource],
    *,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    custom_ops: Sequence[Path] = (),
    runs: int = 3,
) -> dict[str, Load]:
    """The fewest seconds to create a session and the peak memory it took, in turns, each time in a fresh process; no
    further turn where they have taken over a second each, which tells enough. What disturbs a load makes it longer."""
    options: dict[str, Any] = {"provider": provider, "provider_options": provider_options, "threads": threads}
    loads: dict[str, list[Load]] = {name: [] for name in models}
    for _ in range(runs):
        for name, model in models.items():
            with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
                run = run_isolated(model, [], folder=Path(folder), **options, custom_ops=custom_ops)
            loads[name].append(run.load)
        if sum(each.seconds for own in loads.values() for each in own) > ENOUGH_S * len(models):
            break
    return {name: _shortest(own) for name, own in loads.items()}


def _shortest(loads: Sequence[Load]) -> Load:
    seconds = [load.seconds for load in loads]
    peak = int(np.median([load.peak_bytes for load in loads]))
    return Load(min(seconds), peak, float(np.median(seconds)) - min(seconds))


def write_values(folder: Path, values: Mapping[str, Value]) -> None:
    """Keep named values in ``folder``: one raw file an array, and an index that says what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0

    def kept(value: Value) -> Any:
        nonlocal count
        if isinstance(value, np.ndarray) and value.dtype != object:
            count += 1
            with (folder / str(count)).open("wb") as file:
                write_array(file, np.ascontiguousarray(value))
            return {"file": str(count), "dtype": value.dtype.name, "shape": value.shape}
        if isinstance(value, np.ndarray):
            return {"strings": value.ravel().tolist(), "shape": value.shape}
        if isinstance(value, list):
            return [kept(item) for item in value]
        if isinstance(value, dict):
            return {"pairs": [[key, kept(item)] for key, item in value.items()]}
        return {"scalar": value.item() if isinstance(value, np.generic) else value}

    (folder / "index.json").write_text(json.dumps({name: kept(value) for name, value in values.items()}))


def read_values(folder: Path) -> dict[str, Value]:
    """What ``write_values`` kept; arrays are memory-mapped, copied only when written to."""

    def read(entry: Any) -> Value:
        if isinstance(entry, list):
            return [read(item) for item in entry]
        if "file" in entry:
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            if not np.prod(shape):
                return np.zeros(shape, dtype)
            raw = np.memmap(folder / entry["file"], np.uint8, "c")
            return np.asarray(raw).view(dtype).reshape(shape)
        if "strings" in entry:
            return np.array(entry["strings"], object).reshape(entry["shape"])
        return {key: read(item) for key, item in entry["pairs"]} if "pairs" in entry else entry["scalar"]

    return {name: read(entry) for name, entry in json.loads((folder / "index.json").read_text()).items()}


def peak_memory_bytes() -> int:
    """The most memory this process has held resident.

    VmHWM where there is one: on Linux ``ru_maxrss`` starts at the parent's size after an exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil  # late: it is wanted here only

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _as_files(model: ModelSource, folder: Path, provider: str) -> dict[str, str]:
    """What of a job says where the model is: its file, and the folder from which data that it refers to is found."""
    found = model.in_one_place() if isinstance(model, Referring) and provider != CPU else model
    data = {"data_folder": str(found.data_folder)} if isinstance(found, Referring) else {}
    found = found.model if isinstance(found, Referring) else found
    if isinstance(found, bytes):
        path = folder / "model.onnx"
        path.write_bytes(found)
        found = path
    return {"model": str(found.resolve()), **data}


def _model_of(job: Mapping[str, Any]) -> ModelSource:
    path = Path(job["model"])
    return Referring(path, Path(job["data_folder"]), lambda: path) if "data_folder" in job else path


def _in_child(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps(job))
    package_parent = str(Path(__file__).resolve().parents[2])
    found = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "onnxcomp.runtime.isolated", str(folder)],
        env={**os.environ, "PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "report.json"
    if done.returncode or not report.is_file():
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise VerificationError(f"the process that ran the model died: {reason}")
    answer: dict[str, Any] = json.loads(report.read_text())
    if "error" in answer:
        raise (TargetError if answer["kind"] == "TargetError" else VerificationError)(answer["error"])
    return answer


def _work(folder: Path) -> dict[str, Any]:
    job = json.loads((folder / "job.json").read_text())
    before = peak_memory_bytes()
    clock = clock_for(job["session"]["provider"], job["session"]["threads"])
    started = clock()
    session = Session(_model_of(job), custom_ops=[Path(p) for p in job["custom_ops"]], **job["session"])
    load_s, load_peak_bytes = clock() - started, peak_memory_bytes() - before
    if "timed" in job:
        took = in_turns({"": session}, read_values(folder / "in0"), clock=clock, **job["timed"])[""]
        return {"load_s": load_s, "load_peak_bytes": load_peak_bytes, "latency": dataclasses.asdict(took)}
    for i in range(job["batch_count"]):
        write_values(folder / f"out{i}", session.run(read_values(folder / f"in{i}"), job["names"]))
    return {"load_s": load_s, "load_peak_bytes": load_peak_bytes, "peak_bytes": peak_memory_bytes() - before}


def main() -> None:
    """Do the job in the folder named on the command line and leave ``report.json`` there."""
    folder = Path(sys.argv[1])
    try:
        report = _work(folder)
    except (TargetError, VerificationError) as error:
        report = {"error": str(error), "kind": type(error).__name__}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
