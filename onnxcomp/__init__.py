"""onnxcomp makes ONNX models smaller and faster, and checks every step against the original.

    import onnxcomp

    result = onnxcomp.optimize("model.onnx", calibration={"x": samples}, recipe="small")
    print(result.summary())
    result.save("small.onnx")

Names are loaded when they are first used, so importing the package costs nothing. What happens in a run is told to
``logging.getLogger("onnxcomp")``, which says nothing unless it is asked to. docs/python.md lists what is stable.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from onnxcomp.budget import Budget
    from onnxcomp.calibration import CalibrationData, Sequences
    from onnxcomp.contract import Change, Context, Effect, Needs, Outcome, Pass, Skip, parameter
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.interface.looking import bench, compare, diagnose, inspect
    from onnxcomp.interface.optimizing import distill, optimize, run
    from onnxcomp.interface.packed import expand, open_session, pack, unpack
    from onnxcomp.model import Model, load, save
    from onnxcomp.pipeline.replay import replay
    from onnxcomp.pipeline.result import Result
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
    "Result": "pipeline.result",
    "Sequences": "calibration",
    "Skip": "contract",
    "Target": "target",
    "TrainingOptions": "pipeline.training_data",
    "bench": "interface.looking",
    "compare": "interface.looking",
    "diagnose": "interface.looking",
    "distill": "interface.optimizing",
    "expand": "interface.packed",
    "inspect": "interface.looking",
    "load": "model",
    "open_session": "interface.packed",
    "optimize": "interface.optimizing",
    "pack": "interface.packed",
    "parameter": "contract",
    "replay": "pipeline.replay",
    "run": "interface.optimizing",
    "save": "model",
    "unpack": "interface.packed",
}

__all__ = [
    "Budget", "CalibrationData", "Change", "Context", "Effect", "Model", "Needs", "OnnxcompError", "Outcome",
    "Pass", "Receipt", "Recipe", "Result", "Sequences", "Skip", "Target", "TrainingOptions", "__version__", "bench",
    "compare", "diagnose", "distill", "expand", "inspect", "load", "open_session", "optimize", "pack", "parameter",
    "replay", "run", "save", "unpack",
]  # fmt: skip

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxcomp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
