"""What a cgroup grants, in files of either version; what this machine says of itself."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from onnxcomp.doctor.machine import Machine, cpu_quota, memory_limit, this_machine, threads_in_words
from onnxcomp.target import PROCESSORS


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "what\n"}, None),
        ({}, None),
    ],
)
def test_a_cgroup_grants_cores(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "1073741824\n"}, 2**30),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "536870912\n"}, 2**29),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_a_cgroup_limits_memory(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert memory_limit(write(tmp_path, files)) == limit


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = this_machine()
    assert found.versions["onnxruntime"] == onnxruntime.__version__ and found.kind in PROCESSORS
    assert 1 <= found.usable_cores <= found.cores and found.processor
    assert "CPUExecutionProvider" in found.providers and found.highest_opset >= 21
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert len(found.runtimes) >= 1 and "OMP_NUM_THREADS=3" in threads_in_words(found)


def test_a_quota_other_than_the_cores_is_said() -> None:
    def machine(quota: float | None) -> Machine:
        plain = this_machine()
        return type(plain)(**{**vars(plain), "cpu_quota": quota, "usable_cores": 2, "cores": 4, "thread_variables": {}})

    assert threads_in_words(machine(None)) == threads_in_words(machine(2.0)) == "2 of 4 cores"
    assert threads_in_words(machine(1.5)) == "2 of 4 cores; a cgroup grants 1.5 cores' time"
