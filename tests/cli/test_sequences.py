"""--sequence-axis: calibration data whose arrays have an axis of steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Invoke


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x, float[N, 2] h) => (float[N, 2] y, float[N, 2] hn)'
        " <float half = {0.5}> { a = Mul(h, half) hn = Add(a, x) y = Tanh(hn) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "cell.onnx")
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).standard_normal((10, 12, 2)).astype(np.float32))
    return tmp_path / "cell.onnx"


def test_sequences_are_counted_by_steps(invoke: Invoke, cell: Path) -> None:
    data = cell.parent / "c.npz"
    options = ["--calib-data", data, "--sequence-axis", "1", "--recipe", "lossless", "--json"]
    result = invoke("optimize", cell, *options)
    assert result.exit_code == 0, result.output
    receipt = json.loads(result.stdout)
    assert receipt["data"]["samples"] == 120 and receipt["data"]["source"] == str(data)


def test_the_axis_needs_data(invoke: Invoke, cell: Path) -> None:
    result = invoke("optimize", cell, "--sequence-axis", "1")
    assert result.exit_code == 2 and "--calib-data" in result.stderr
