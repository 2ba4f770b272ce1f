"""What machine this is, for whoever reads a receipt: figures of time are of it alone."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from onnxcomp.target.processors import processor

CPUINFO = Path("/proc/cpuinfo")
MODEL_NAME = "model name"  # the line of cpuinfo that says what people call the processor


def machine() -> dict[str, Any]:
    """The processor by its maker's name, what it is taken for, its cores, the memory in bytes and the system."""
    return {
        "processor": processor_name(),
        "taken_for": processor().name,
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """By its maker's name, as far as the system tells it."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == MODEL_NAME:
                return value.strip()
    return platform.processor() or platform.machine()
