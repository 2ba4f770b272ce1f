"""The engine ``ort``: forward, loss and backward as one graph of standard operators, run by ONNX Runtime.

    loss, gradients = BackwardEngine(model, "loss", ["weight"]).loss_and_gradients(feeds, {"weight": values})

Parameters become inputs of that graph, so their values come with each call and are not copied. Quantizing and
dequantizing are computed as they stand, not fused into integer kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model
from onnxcomp.runtime.session import Session
from onnxcomp.training.backward.memory import peak_bytes
from onnxcomp.training.backward.prepare import free, step_of
from onnxcomp.training.engine import Array, Engine, NoGradientError

SIMULATED = {"session.disable_quant_qdq": "1"}


class BackwardEngine(Engine):
    """Differentiates by rules, one an operator; needs nothing beside ONNX Runtime."""

    name = "ort"
    runs_in_threads = True

    @classmethod
    def unsupported(cls, model: Model, loss: str, parameters: Sequence[str]) -> Mapping[str, str]:
        return step_of(model, loss, parameters).reasons

    def __init__(self, model: Model, loss: str, parameters: Sequence[str], *, threads: int = 0) -> None:
        step = step_of(model, loss, parameters)
        if step.reasons:
            told = "; ".join(f"{op} ({reason})" for op, reason in step.reasons.items())
            raise NoGradientError(f"no gradients through {told}")
        self._model, self._loss, self._parameters, self._threads = model, loss, list(parameters), threads
        self._step, self._outputs = step.model, step.outputs
        self._session = self._opened(step.model)

    def forward(self, feeds: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        return self._forward.run({**feeds, **values})

    def loss_and_gradients(
        self, feeds: Mapping[str, Array], values: Mapping[str, Array]
    ) -> tuple[float, dict[str, Array]]:
        taken = {each.name for each in self._session.inputs}
        found = self._session.run({name: each for name, each in {**feeds, **values}.items() if name in taken})
        gradients = {
            name: found[self._outputs[name]] if name in self._outputs else np.zeros_like(values[name])
            for name in self._parameters
        }
        return float(found[self._loss].reshape(())), gradients

    def step_bytes(self, feeds: Mapping[str, Array]) -> int:
        return peak_bytes(self._step, feeds)

    @functools.cached_property
    def _forward(self) -> Session:
        graph = open_graph(self._model)
        for name in self._parameters:
            free(graph, name)
        return self._opened(close_graph(graph))

    def _opened(self, model: Model) -> Session:
        opened = functools.partial(Session, threads=self._threads, config=SIMULATED, plans_memory=False)
        with model.opened_on(opened) as session:
            return session
