"""onnxcomp makes ONNX models smaller and faster, and checks every step against the original.

    import onnxcomp

    result = onnxcomp.optimize("model.onnx", recipe="small", calibration="calib.npz")
    result.save("small.onnx")

Names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.budget import Budget
    from onnxcomp.calibration import CalibrationData, Sequences
    from onnxcomp.contract import Change, Context, Effect, Needs, Outcome, Pass, Skip, parameter
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.graph.report.inspection import inspect
    from onnxcomp.graph.storage.expand import expand
    from onnxcomp.model import Model, load, save
    from onnxcomp.packing.packer import pack
    from onnxcomp.packing.session import open_session
    from onnxcomp.packing.unpacker import unpack
    from onnxcomp.pipeline.api import Result, optimize
    from onnxcomp.pipeline.replay import replay
    from onnxcomp.pipeline.reports.compare import compare
    from onnxcomp.pipeline.training_data import TrainingOptions
    from onnxcomp.receipt import Receipt
    from onnxcomp.recipe import Recipe
    from onnxcomp.target import Target

_HOMES = {
    "Budget": "budget",
    "CalibrationData": "calibration",
    "Change": "contract",
    "Context": "contract",
    "Effect": "contract",
    "Model": "model",
    "Needs": "contract",
    "OnnxcompError": "errors",
    "Outcome": "contract",
    "Pass": "contract",
    "Receipt": "receipt",
    "Recipe": "recipe",
    "Result": "pipeline",
    "Sequences": "calibration",
    "Skip": "contract",
    "Target": "target",
    "TrainingOptions": "pipeline.training_data",
    "compare": "pipeline.reports.compare",
    "expand": "graph.storage.expand",
    "inspect": "graph.report.inspection",
    "load": "model",
    "open_session": "packing.session",
    "optimize": "pipeline",
    "pack": "packing.packer",
    "parameter": "contract",
    "replay": "pipeline",
    "save": "model",
    "unpack": "packing.unpacker",
}

__all__ = [
    "Budget", "CalibrationData", "Change", "Context", "Effect", "Model", "Needs", "OnnxcompError", "Outcome",
    "Pass", "Receipt", "Recipe", "Result", "Sequences", "Skip", "Target", "TrainingOptions", "compare", "expand",
    "inspect", "load", "open_session", "optimize", "pack", "parameter", "replay", "save", "unpack",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxcomp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
