"""The choice of an engine: torch where it is installed, else ONNX Runtime, whichever can differentiate the model."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from onnxcomp.errors import ParameterError
from onnxcomp.model import Model
from onnxcomp.training.engine import Engine, NoGradientError

AUTO = "auto"
TORCH, ORT = "torch", "ort"
PLACES = {  # of each engine's class; the first that can is taken
    TORCH: ("onnxcomp.training.torch_engine", "TorchEngine"),
    ORT: ("onnxcomp.training.backward.engine", "BackwardEngine"),
}
CHOICES = (AUTO, *PLACES)
EXTRA = "onnxcomp[train]"


def chosen_engine(asked: str, model: Model, loss: str, parameters: Sequence[str]) -> type[Engine]:
    """The engine asked for, or the first that can differentiate the model.

    Raises ParameterError where torch is asked for and not installed, NoGradientError, naming the operators, where no
    engine can.
    """
    reasons: dict[str, str] = {}
    for name in PLACES if asked == AUTO else (asked,):
        if name == TORCH and not has_torch():
            refuse_missing(asked)
            continue
        kind = engine_of(name)
        found = kind.unsupported(model, loss, parameters)
        if not found:
            return kind
        reasons |= found
    told = "; ".join(f"{operator} ({reason})" for operator, reason in reasons.items())
    helps = "" if has_torch() or asked != AUTO else f" The engine torch may have them: install {EXTRA}."
    raise NoGradientError(f"{model.name}: no gradients through {told}.{helps}")


def refuse_missing(asked: str) -> None:
    """Raise ParameterError where torch is asked for and not installed."""
    if asked == TORCH and not has_torch():
        raise ParameterError(f"engine: torch is not installed. Install {EXTRA}, or take --engine ort.")


def engine_of(name: str) -> type[Engine]:
    """The class of an engine, imported now."""
    module, attribute = PLACES[name]
    found: type[Engine] = getattr(importlib.import_module(module), attribute)
    return found


def has_torch() -> bool:
    """Whether torch can be imported, without doing it."""
    return importlib.util.find_spec("torch") is not None
