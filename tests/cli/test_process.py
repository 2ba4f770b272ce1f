"""The command as a process: signals, pipes, limits, terminals."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .conftest import files_in

COMMAND = [sys.executable, "-m", "onnxcomp"]
ROOT = Path(__file__).parents[2]
STALLING = """
import pathlib, time
import numpy as np

def feeds():
    yield {"x": np.zeros((4, 16), np.float32)}
    pathlib.Path("stalled").touch()
    time.sleep(60)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start_and_stall(model_file: Path, out: Path, scratch: Path) -> subprocess.Popen[str]:
    """Start an optimization whose calibration data never ends, and wait until it hangs there."""
    (out.parent / "stalling.py").write_text(STALLING)
    scratch.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "optimize", str(model_file), "--recipe", "lossless", "--calib-data", "stalling:feeds",
         "-o", str(out / "o.onnx"), "--report", str(out / "o.html")],
        cwd=out.parent, env=environment(TMPDIR=str(scratch)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background job ignores SIGINT, and what it starts does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
    )  # fmt: skip
    for _ in range(600):
        if (out.parent / "stalled").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_leaves_nothing(
    model_file: Path, out: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = start_and_stall(model_file, out, tmp_path / "scratch")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert files_in(out) == set()
    assert files_in(tmp_path / "scratch") <= {".ses"}  # importing ONNX Runtime writes that one
    assert files_in(model_file.parent) == {"net.onnx"}


def test_whoever_stops_reading_gets_no_traceback(model_file: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "inspect", "-v", str(model_file)], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_a_file_that_cannot_be_written_is_one_line(model_file: Path, out: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "expand", str(model_file), "-o", str(out / "o.onnx")],
        env=environment(), text=True, capture_output=True, check=False, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "o.onnx" in done.stderr
    assert files_in(out) == set()


def on_terminal(columns: int, *args: str) -> str:
    """What a command shows on a terminal so wide."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args], env=environment(COLUMNS=str(columns), TERM="xterm"), stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    process.wait(timeout=60)
    os.close(master)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@pytest.mark.parametrize("command", ["inspect", "optimize"])
def test_names_in_a_file_are_no_commands_to_the_terminal(command: str, model_file: Path, out: Path) -> None:
    import onnx

    model = onnx.load(model_file)
    for node in model.graph.node:
        node.name = HOSTILE + node.op_type
    model.graph.initializer[0].name = model.graph.node[0].input[1] = f"W{HOSTILE}"
    model.graph.initializer[0].doc_string = HOSTILE
    path = model_file.parent / "hostile.onnx"
    path.write_bytes(model.SerializeToString())
    arguments = ["--recipe", "lossless", "-v", "-o", str(out / "o.onnx")] if command == "optimize" else []
    shown = on_terminal(200, command, str(path), *arguments)
    assert r"\x1b]0;owned\x07\x1b[2J\x9b31m" in shown
    for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07"):
        assert sequence not in shown


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_every_name_whole_or_folded(model_file: Path, columns: int) -> None:
    import re

    text = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(columns, "inspect", str(model_file)))
    lines = text.replace("\r", "").splitlines()
    assert max(map(len, lines)) <= columns
    assert "W1" in text


def test_a_relative_path_works_from_any_folder(model_file: Path) -> None:
    np.savez(model_file.parent / "c.npz", x=np.zeros((80, 16), np.float32))
    done = subprocess.run(
        [*COMMAND, "compare", "net.onnx", "net.onnx", "--calib-data", "c.npz"],
        cwd=model_file.parent, env=environment(), text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
