"""The engine ``torch``: the model executed in torch, differentiated by autograd. Part of the extra ``onnxcomp[train]``.

torch is imported when an engine is made, so that everything else works without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from onnxcomp.errors import PassError
from onnxcomp.graph.ir.functions import written_out
from onnxcomp.model import Model
from onnxcomp.training.engine import Array, Engine, NoGradientError

INSTALL = (
    "install it with `pip install onnxcomp[train]`, for processors alone (a fifth of the size) after"
    " `pip install torch --index-url https://download.pytorch.org/whl/cpu`"
)


class MissingTorchError(PassError):
    """torch is not installed."""


class TorchEngine(Engine):
    """device: what torch calls where it computes, "cpu" or "cuda"; values come from and go to numpy all the same.

    Random operators draw the same in every call. Sums are in the same order every time, for as many threads.
    Raises MissingTorchError where torch is not installed.
    """

    name = "torch"

    def __init__(
        self, model: Model, loss: str, parameters: Sequence[str], *, threads: int = 0, device: str = "cpu"
    ) -> None:
        reasons = self.unsupported(model, loss, parameters)
        if reasons:
            told = "; ".join(f"{operator}: {reason}" for operator, reason in reasons.items())
            raise NoGradientError(f"{model.name} cannot be differentiated in torch. {told}.")
        from onnxcomp.training.torch_graph.executor import Executor

        self._loss = loss
        self._parameters = tuple(parameters)
        self._executor = Executor(model, free=self._parameters, device=device, threads=threads)

    @staticmethod
    def is_installed() -> bool:
        """Whether torch is there; it is not imported for it."""
        return importlib.util.find_spec("torch") is not None

    @classmethod
    def unsupported(cls, model: Model, loss: str, parameters: Sequence[str]) -> Mapping[str, str]:
        if not cls.is_installed():
            raise MissingTorchError(f"the engine torch needs torch, which is not installed: {INSTALL}.")
        from onnxcomp.training.torch_graph.reach import faults

        return faults(written_out(model).proto, loss, parameters)

    def forward(self, feeds: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        return self._executor.outputs_of(feeds, {name: values[name] for name in self._parameters})

    def loss_and_gradients(
        self, feeds: Mapping[str, Array], values: Mapping[str, Array]
    ) -> tuple[float, dict[str, Array]]:
        return self._executor.slopes_of(self._loss, feeds, {name: values[name] for name in self._parameters})
