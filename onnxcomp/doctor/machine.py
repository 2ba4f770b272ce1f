"""What a machine has and what of it this process may use."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

from onnxcomp.parallel import cores
from onnxcomp.runtime import available_providers, installed_release
from onnxcomp.target import processor, supported
from onnxcomp.target.machine import processor_name
from onnxcomp.target.processors import processor_features

PACKAGES = (
    "onnxcomp", "onnx", "onnx-graphsurgeon", "numpy", "scipy", "scikit-learn", "ml_dtypes", "torch", "constriction",
    "zstandard", "pyrage", "distributed",
)  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
RUNTIME = re.compile(r"ort-nightly|onnxruntime(-\w+)*")
CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 2**60  # a cgroup of version 1 has a number about so large where there is no limit


@dataclass(frozen=True)
class Machine:
    """A machine, as this process sees it.

    processor: its name. kind: what its integer arithmetic is taken for (``--target-cpu``). saturates: whether sums of
    two 8-bit products do not fit where it adds them. features: what it has for integers, then instruction sets that
    numpy finds. cores: of the machine; usable_cores: as affinity and cgroups leave them. cpu_quota: cores' worth of
    time that a cgroup grants, None for no limit. memory_bytes: as far as a cgroup leaves it. thread_variables: those of
    the environment that are set. runtimes: the packages of ONNX Runtime that are installed; two of them overwrite each
    other.
    """

    system: str
    processor: str
    kind: str
    saturates: bool
    features: tuple[str, ...]
    cores: int
    usable_cores: int
    cpu_quota: float | None
    memory_bytes: int
    memory_free_bytes: int
    thread_variables: dict[str, str]
    versions: dict[str, str]
    runtimes: tuple[str, ...]
    providers: tuple[str, ...]
    highest_opset: int
    highest_ir: int


def this_machine() -> Machine:
    """The machine that this runs on."""
    chosen = processor()
    memory = psutil.virtual_memory()
    opset, ir = supported()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        kind=chosen.name,
        saturates=chosen.saturates,
        features=(*sorted(processor_features()), *_features()),
        cores=psutil.cpu_count() or 1,
        usable_cores=cores(),
        cpu_quota=cpu_quota(CGROUPS),
        memory_bytes=min(memory.total, memory_limit(CGROUPS) or memory.total),
        memory_free_bytes=memory.available,
        thread_variables={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        versions={"python": platform.python_version(), "onnxruntime": installed_release(), **_versions()},
        runtimes=_runtimes(),
        providers=available_providers(),
        highest_opset=opset,
        highest_ir=ir,
    )


def cpu_quota(root: Path) -> float | None:
    """Cores' worth of processor time that the cgroup below ``root`` grants, of either version; None for no limit."""
    whole = _words(root / "cpu.max")
    if not whole:
        whole = [*_words(root / "cpu" / "cpu.cfs_quota_us"), *_words(root / "cpu" / "cpu.cfs_period_us")]
    if len(whole) != 2 or not all(re.fullmatch(r"\d+", each) for each in whole) or not int(whole[1]):
        return None  # "max", or -1
    return int(whole[0]) / int(whole[1])


def memory_limit(root: Path) -> int | None:
    """Bytes that the cgroup below ``root`` may take, of either version; None for no limit."""
    stated = _words(root / "memory.max") or _words(root / "memory" / "memory.limit_in_bytes")
    if len(stated) != 1 or not stated[0].isdigit() or int(stated[0]) >= NO_LIMIT_BYTES:
        return None
    return int(stated[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _features() -> tuple[str, ...]:
    found = np.show_config(mode="dicts")
    simd = {} if found is None else found.get("SIMD Extensions", {})
    return (*simd.get("baseline", ()), *simd.get("found", ()))


def _versions() -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _runtimes() -> tuple[str, ...]:
    names = {str(each.metadata["Name"]).lower().replace("_", "-") for each in metadata.distributions()}
    return tuple(sorted(each for each in names if RUNTIME.fullmatch(each) and _has_core(each)))


def _has_core(name: str) -> bool:
    """Whether a package brings ONNX Runtime itself, and no extension of it."""
    files = metadata.files(name) or ()
    return any(str(each).endswith("onnxruntime/capi/_pybind_state.py") for each in files)


def threads_in_words(machine: Machine) -> str:
    """``2 of 2 cores; a cgroup grants 1.5``."""
    words = f"{machine.usable_cores} of {machine.cores} cores"
    if machine.cpu_quota is not None and not math.isclose(machine.cpu_quota, machine.usable_cores):
        words += f"; a cgroup grants {machine.cpu_quota:.3g} cores' time"
    named = ", ".join(f"{name}={value}" for name, value in machine.thread_variables.items())
    return f"{words}; set are {named}" if named else words
