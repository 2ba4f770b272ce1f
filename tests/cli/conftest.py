"""Small models to run commands on, and a way to run them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper, parser

from onnxcomp.cli import commands
from onnxcomp.pipeline.costs import Costs

Invoke = Callable[..., Result]

TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N,16] x) => (float[N,10] y) {
  h = Gemm <transB = 1> (x, W1, B1)
  r = Relu (h)
  y = MatMul (r, W2)
}
"""


def small_model(seed: int = 0) -> onnx.ModelProto:
    """Two linear layers, 16 -> 64 -> 10, with well-behaved random weights."""
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(seed)
    weights = {
        "W1": rng.standard_normal((64, 16)) / 4,
        "B1": rng.standard_normal(64) / 4,
        "W2": rng.standard_normal((64, 10)),
    }
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """The small model in a folder of its own."""
    path = tmp_path / "in" / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(small_model().SerializeToString())
    return path


@pytest.fixture
def calibration_file(tmp_path: Path) -> Path:
    """256 inputs for the small model."""
    path = tmp_path / "calib.npz"
    values = np.random.default_rng(1).standard_normal((256, 16)).astype(np.float32)
    np.savez(path, x=values)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for outputs."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def invoke() -> Invoke:
    """Run the command line in this process."""

    def run(*args: object) -> Result:
        result = CliRunner().invoke(commands, [str(each) for each in args], prog_name="onnxcomp")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what is timed at the end of a run: each load takes a process of its own."""
    pipeline = importlib.import_module("onnxcomp.pipeline.api")  # the package has a function of that name
    monkeypatch.setattr(pipeline, "compare_costs", lambda *args, **kwargs: Costs())


def files_in(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
