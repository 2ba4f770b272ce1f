"""A folder as the pages assume it: a model, inputs for it, a result with its receipt, and the checkout's models."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxcomp.cli import commands
from onnxcomp.pipeline.costs import Costs
from tests.cli.conftest import small_model
from tests.docs.blocks import ROOT


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages find in the working folder: model.onnx, samples.npz, small.onnx with its
    receipt, models/."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, seed in (("model.onnx", 0), ("student.onnx", 1)):
        (folder / name).write_bytes(small_model(seed).SerializeToString())
    for seed, name in enumerate(("samples.npz", "calib.npz", "inputs.npz")):
        values = np.random.default_rng(seed).standard_normal((256, 16)).astype(np.float32)
        np.savez(folder / name, x=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        leave_costs_out(patch)
        arguments = "run quantize-weights model.onnx --calib-data samples.npz -o small.onnx -q"
        assert CliRunner().invoke(commands, arguments.split()).exit_code == 0
    (folder / "models").symlink_to(ROOT / "models", target_is_directory=True)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the prepared folder, as the working folder."""
    made = tmp_path / "work"
    shutil.copytree(prepared, made, symlinks=True)
    monkeypatch.chdir(made)
    yield made


def environment() -> dict[str, str]:
    """The environment of a process for which the commands installed here come first."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def leave_costs_out(patch: pytest.MonkeyPatch) -> None:
    """Do not time load and latency at the end of a run: each load takes a process of its own."""
    pipeline = importlib.import_module("onnxcomp.pipeline.api")  # the package has a function of that name
    patch.setattr(pipeline, "compare_costs", lambda *args, **kwargs: Costs())
