"""What a command costs as a whole process: seconds, processor seconds, memory, scratch files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
GOAL_MISSED = 3  # onnxcomp's exit code where it made a result that missed a goal
SAMPLE_S = 0.1
MB = 10**6


@dataclass
class Cost:
    """Of one command and all that it started.

    cpu_s: user and system time, of the children too. peak_mb: the most that the process itself held; tree_mb: with its
    children, by samples; private_mb: the same without mapped files, children left out. scratch_mb: the most that lay in
    its TMPDIR, by samples; what is only a link to a file elsewhere takes no room and is not counted. failure: the last
    line that it printed, where it failed; stopped: it took longer than it may.
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mb: float = 0.0
    tree_mb: float = 0.0
    private_mb: float = 0.0
    scratch_mb: float = 0.0
    failure: str = ""
    stopped: bool = False


def measured(command: Sequence[str], work: Path, *, limit_s: float | None = None) -> Cost:
    """Run a command in a folder, with a TMPDIR of its own below it; ended, with all its children, after ``limit_s``.

    work: ONNX Runtime's tools leave files of their own where they run.
    """
    with tempfile.TemporaryDirectory(dir=work, prefix="scratch-") as scratch, tempfile.TemporaryFile() as output:
        started = time.monotonic()
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=work, env={**os.environ, "TMPDIR": scratch},
            start_new_session=True,
        )  # fmt: skip
        with _Samples(child.pid, Path(scratch)) as samples:
            timer = None if limit_s is None else threading.Timer(limit_s, samples.stop)
            if timer is not None:
                timer.start()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if timer is not None:
                timer.cancel()
        cost = samples.cost
        cost.wall_s = time.monotonic() - started
        cost.cpu_s = usage.ru_utime + usage.ru_stime + samples.lost_cpu_s
        if not cost.stopped and child.returncode not in (0, GOAL_MISSED):
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            cost.failure = lines[-1] if lines else f"exit code {child.returncode}"
    return cost


@dataclass
class _Samples:
    """Looks at a process and its folder now and then, while the context is open; ``stop`` ends it and its children.

    lost_cpu_s: of children that were ended with it, which its own count leaves out.
    """

    pid: int
    scratch: Path
    cost: Cost = field(default_factory=Cost)
    lost_cpu_s: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Samples:
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._watcher.join()

    def stop(self) -> None:
        """End the process and all that it started."""
        try:
            for child in psutil.Process(self.pid).children(recursive=True):
                spent = child.cpu_times()
                self.lost_cpu_s += spent.user + spent.system
            self.cost.stopped = True
            os.killpg(self.pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):  # it has just come to its end
            pass

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                self._look()
            if self._ended.wait(SAMPLE_S):
                return

    def _look(self) -> None:
        cost = self.cost
        cost.scratch_mb = max(cost.scratch_mb, own_bytes(self.scratch) / MB)
        process = psutil.Process(self.pid)
        memory = process.memory_info()
        cost.peak_mb = max(cost.peak_mb, _high_water(self.pid) / MB, memory.rss / MB)
        cost.private_mb = max(cost.private_mb, (memory.rss - getattr(memory, "shared", 0)) / MB)
        children = sum(each.memory_info().rss for each in process.children(recursive=True))
        cost.tree_mb = max(cost.tree_mb, (memory.rss + children) / MB)


def own_bytes(folder: Path) -> int:
    """Bytes of the files below a folder, each counted once, without those that have a name elsewhere too."""
    files: dict[int, tuple[int, int, int]] = {}  # by inode: bytes, links, links seen
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            seen = files.get(found.st_ino, (0, 0, 0))[2]
            files[found.st_ino] = found.st_size, found.st_nlink, seen + 1
    return sum(size for size, links, seen in files.values() if seen >= links)


def _high_water(pid: int) -> int:
    """The most that the process held resident, where the system tells it of others (VmHWM), else 0."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def deployable_bytes(model: Path) -> int:
    """The model file and the data files beside it that are named after it."""
    beside = model.parent.glob(f"{model.name}.*data")
    return model.stat().st_size + sum(each.stat().st_size for each in beside)


def calibration_inputs(folder: Path, path: Path) -> None:
    """Have the scorer of a model's folder write its calibration inputs."""
    subprocess.run([sys.executable, str(folder / "score.py"), "--calib", str(path)], check=True)


def peer_command(python: str, peer: str, model: Path, out: Path, calib: Path) -> list[str]:
    """The command that runs one of the tools of benchmarks/peer.py."""
    return [python, str(HERE / "peer.py"), peer, str(model), str(out), str(calib)]
