"""What was mistyped: one line in the style of every error, exit code 2, with what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Invoke

MEANT = {
    "command": (("optimise", "m.onnx"), "optimise: no such command. Did you mean optimize? See onnxcomp -h."),
    "command like none": (("zzz",), "zzz: no such command. Commands: optimize, "),
    "pass": (
        ("run", "quantise-static", "m.onnx"),
        "quantise-static: no such pass. Did you mean quantize-static? See onnxcomp run -h.",
    ),
    "pass asked about": (("passes", "quantise-static"), "quantise-static: no such pass. Did you mean quantize-static?"),
    "option": (
        ("optimize", "m.onnx", "--recepi", "small"),
        "--recepi: no such option. Did you mean --recipe? See onnxcomp optimize -h.",
    ),
    "option like none": (("optimize", "--frob"), "--frob: no such option. See onnxcomp optimize -h."),
    "option before the command": (("--verison",), "--verison: no such option. Did you mean --version? See onnxcomp"),
    "option of a pass": (
        ("run", "quantize-weights", "m.onnx", "--bit", "4"),
        "--bit: no such option. Did you mean --bits? See onnxcomp run quantize-weights -h.",
    ),
    "no model": (("optimize",), "MODEL: is missing. See onnxcomp optimize -h."),
    "value": (
        ("optimize", "m.onnx", "--max-drop", "abc"),
        "--max-drop: must be such as 0.01, 1% or 30dB, got 'abc'. See onnxcomp optimize -h.",
    ),
    "value of a pass": (
        ("run", "quantize-weights", "m.onnx", "--bits", "99"),
        "--bits: must be an integer from 2 to 8, or auto, got 99. See onnxcomp run quantize-weights -h.",
    ),
    "no value for a pass": (
        ("run", "prune-channels", "m.onnx", "--latency", ""),
        "--latency: must be a number from 0.0 to 1.0, or unset, got ''. See onnxcomp run prune-channels -h.",
    ),
    "two that go not together": (
        ("inspect", "m.onnx", "--sensitivity"),
        "--sensitivity is measured on inputs: give them with --data. See onnxcomp inspect -h.",
    ),
}


@pytest.mark.parametrize("kind", MEANT)
def test_what_was_mistyped_is_one_line(invoke: Invoke, kind: str) -> None:
    args, words = MEANT[kind]
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"onnxcomp: {words}")


def test_a_metric_is_guessed_too(invoke: Invoke, model_file: Path) -> None:
    result = invoke("compare", model_file, model_file, "--metric", "cosin")
    assert result.exit_code == 2
    assert result.stderr.startswith("onnxcomp: --metric: must be ") and "Did you mean cosine?" in result.stderr


@pytest.mark.parametrize("command", ["compare", "bench", "inspect"])
def test_data_and_calib_data_are_the_same_where_nothing_is_calibrated(
    invoke: Invoke, command: str, model_file: Path
) -> None:
    models = (model_file, model_file) if command == "compare" else (model_file,)
    more = ("--sensitivity",) if command == "inspect" else ()
    said = {invoke(command, *models, *more, option, "none.npz").stderr for option in ("--data", "--calib-data")}
    assert len(said) == 1 and "none.npz" in said.pop()


def test_without_a_command_the_help_is_shown(invoke: Invoke) -> None:
    result = invoke()
    assert "Commands:" in result.output and "onnxcomp: " not in result.output
