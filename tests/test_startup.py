"""`onnxcomp --help` answers without importing what is slow to import: judged by modules, not the clock."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "sklearn", "torch", "ml_dtypes"}
HELP = """
from onnxcomp.cli import main
try:
    main(["--help"])
except SystemExit as ended:
    assert not ended.code, ended.code
"""


def loaded_by(code: str, *, folder: Path) -> set[str]:
    """Run code in a fresh interpreter and give the top-level names of all modules that it loaded."""
    report = folder / "modules.json"
    last = f"\nimport json, sys\nopen({str(report)!r}, 'w').write(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code + last]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(report.read_text())}


def test_the_package_itself_imports_nothing_heavy(tmp_path: Path) -> None:
    assert not loaded_by("import onnxcomp", folder=tmp_path) & HEAVY


def test_listing_the_passes_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "from onnxcomp.registry import pass_names\npass_names()"
    loaded = loaded_by(code, folder=tmp_path)
    assert not loaded & HEAVY


@pytest.mark.skipif(importlib.util.find_spec("onnxcomp.cli") is None, reason="there is no command line")
def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert not loaded_by(HELP, folder=tmp_path) & HEAVY


def test_a_heavy_import_would_be_seen(tmp_path: Path) -> None:
    assert "numpy" in loaded_by("import numpy", folder=tmp_path) & HEAVY
