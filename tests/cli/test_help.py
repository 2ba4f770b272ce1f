"""Help texts name every command and option, and are quick to make."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from onnxcomp.cli import COMMANDS
from onnxcomp.registry import pass_names, pass_summary, shipped_names

OPTIMIZE = [
    "-o",
    "--out",
    "--output",
    "--recipe",
    "--calib-data",
    "--ep",
    "--max-drop",
    "--metric",
    "--target-size",
    "--target-latency",
    "--time-budget",
    "--report",
    "--json",
    "--seed",
    "--dry-run",
    "--force",
    "--exclude",
    "--min-ort",
    "--replay",
    "--threads",
    "--quiet",
    "--verbose",
]


def test_help_names_every_command(invoke) -> None:
    text = invoke("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_text_with_a_first_sentence(invoke, name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert re.search(r"^  [A-Z][^.]+\.", result.stdout, re.MULTILINE)


def test_optimize_has_the_options_of_the_design(invoke) -> None:
    text = invoke("optimize", "--help").stdout
    assert [flag for flag in OPTIMIZE if flag not in text] == []


def test_run_lists_every_pass_with_its_summary(invoke) -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    for name in pass_names():
        assert f"{name} {' '.join(pass_summary(name).split())}" in text


@pytest.mark.parametrize("name", shipped_names())
def test_the_summary_read_from_the_source_is_the_docstrings_first_line(name: str) -> None:
    from onnxcomp.registry import get_pass

    assert pass_summary(name) == get_pass(name).summary()


def test_version_is_the_packages(invoke) -> None:
    assert re.fullmatch(r"onnxcomp \d+\.\d+\.\d+\S*\n", invoke("--version").stdout)


def test_an_unknown_command_is_wrong_usage(invoke) -> None:
    result = invoke("compress", "x.onnx")
    assert result.exit_code == 2
    assert "compress" in result.stderr


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_no_pass_and_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom onnxcomp.cli import main\n"
        f"try:\n    main({args})\nexcept SystemExit:\n    pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stderr.split())
    heavy = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "sklearn", "rich", "psutil"}
    assert not loaded & heavy
    assert [name for name in loaded if name.startswith("onnxcomp.passes.")] == []


def test_outputs_can_be_called_all_that_they_can_be_read_as() -> None:
    from onnxcomp.cli.running.options import READINGS
    from onnxcomp.numerics.metrics import KINDS

    assert READINGS == KINDS
