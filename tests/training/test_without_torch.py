"""What the engine ``torch`` says where torch is not installed, and that nothing else needs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxcomp.errors import ParameterError
from onnxcomp.model import load
from onnxcomp.pipeline.training_data import TrainingOptions
from onnxcomp.target import Target
from onnxcomp.training.torch_engine import MissingTorchError, TorchEngine

MODEL = '<ir_version: 8, opset_import: ["" : 17]> g () => (float loss) <float w = {1}> {loss = Neg (w)}'


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, package: str | None = None) -> Any:
        return None if name == "torch" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)


@pytest.mark.usefixtures("without_torch")
def test_the_error_says_how_to_install_it() -> None:
    proto: onnx.ModelProto = parser.parse_model(MODEL)
    assert not TorchEngine.is_installed()
    with pytest.raises(MissingTorchError, match=r"pip install onnxcomp\[train\].*download.pytorch.org/whl/cpu"):
        TorchEngine.unsupported(load(proto), "loss", ["w"])
    with pytest.raises(MissingTorchError):
        TorchEngine(load(proto), "loss", ["w"]).loss_and_gradients({}, {"w": np.ones((), np.float32)})


def test_importing_the_engine_does_not_import_torch() -> None:
    asked = "from onnxcomp.training.torch_engine import TorchEngine; TorchEngine.is_installed()"
    told = f"import sys; {asked}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.usefixtures("without_torch")
def test_a_run_that_asks_for_it_is_refused_before_any_work() -> None:
    """Although all of its trainings may come to nothing for other reasons."""
    with pytest.raises(ParameterError, match="torch is not installed"):
        TrainingOptions(engine="torch").opened(load(parser.parse_model(MODEL)), Target.of("cpu"), seed=0)
    assert TrainingOptions().opened(load(parser.parse_model(MODEL)), Target.of("cpu"), seed=0).engine == "auto"
