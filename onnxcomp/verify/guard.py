"""How far off each node's own output is, where outputs of the model may be blind to it: saturated, rarely used, argmax.

    node error = mean of e^2 / variance of the node's output in the original, on the same samples

Where a quarter of a node's signal is error (6 dB), what comes after works with noise, whatever the outputs show on
these samples. Both models run once on a few samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxcomp.calibration import CalibrationData
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.runtime import Value
from onnxcomp.target import Target

Array = NDArray[Any]
MAX_NODE_ERROR = 0.25
SAMPLES = 32
CONSTANT_SHARE = 1e-4
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Guard:
    """The samples on which the nodes of an original are watched."""

    original: Model
    data: CalibrationData
    target: Target

    def errors(self, model: Model) -> dict[str, float]:
        """By name of a weight of the original the largest relative squared error of the nodes of the main graph that
        read it, as far as their outputs have the same name in ``model``.

        Raises TargetError or VerificationError where a model does not load or run.
        """
        tensors = _outputs_by_weight(self.original)
        shared = _made(model.proto)
        names = sorted({name for found in tensors.values() for name in found if name in shared})
        if not names or not self.data.sample_count:
            return {}
        totals = {name: _Total() for name in names}
        first, second = _showing(self.original, names), _showing(model, names)
        with first.opened_on(self.target.session) as one, second.opened_on(self.target.session) as other:
            for feeds in islice(self.data.batches(SAMPLES), SAMPLES):
                left, right = one.run(feeds, names), other.run(feeds, names)
                for name in names:
                    totals[name].add(left[name], right[name])
        found = {name: each.error for name, each in totals.items() if each.error is not None}
        return {
            weight: max(found[name] for name in outputs if name in found)
            for weight, outputs in tensors.items()
            if any(name in found for name in outputs)
        }


@dataclass
class _Total:
    """Sums over batches: of squared errors, of the original's values and of their squares."""

    error_sum: float = 0.0
    total: float = 0.0
    square: float = 0.0
    count: int = 0

    def add(self, reference: Value, candidate: Value) -> None:
        if not _comparable(reference, candidate):
            return
        left, right = (np.asarray(each, dtype=np.float64) for each in (reference, candidate))
        finite = np.isfinite(left)
        left, right = left[finite], right[finite]
        self.error_sum += float(np.square(left - right).sum())
        self.total += float(left.sum())
        self.square += float(np.square(left).sum())
        self.count += left.size

    @property
    def error(self) -> float | None:
        """None where nothing was seen, or the output is zero; what hardly varies is held to a share of its power."""
        if not self.count:
            return None
        power = self.square / self.count
        variance = max(power - (self.total / self.count) ** 2, CONSTANT_SHARE * power)
        return self.error_sum / self.count / variance if variance > TINY else None


def _comparable(reference: Value, candidate: Value) -> bool:
    both = isinstance(reference, np.ndarray) and isinstance(candidate, np.ndarray)
    return both and reference.dtype.kind == "f" and np.shape(reference) == np.shape(candidate)


def _outputs_by_weight(model: Model) -> Mapping[str, list[str]]:
    """For each weight the first outputs of the nodes of the main graph that read it."""
    graph = open_plain(model)
    main = {id(node) for node in graph.main.graph.nodes}
    return {
        weight.name: [role.node.outputs[0].name for role in weight.roles if id(role.node) in main and role.node.outputs]
        for weight in weights(graph)
    }


def _made(proto: ModelProto) -> set[str]:
    return {name for node in proto.graph.node for name in node.output}


def _showing(model: Model, names: list[str]) -> Model:
    """The model with these tensors as further outputs."""
    own = {each.name for each in model.proto.graph.output}
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for name in names:
        if name not in own:
            proto.graph.output.add(name=name)
    return model.with_proto(proto)
