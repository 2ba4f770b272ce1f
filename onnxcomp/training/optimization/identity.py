"""By what one training is told from another: model, original, samples, options."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.tensors import tensors_of
from onnxcomp.training.setup import TrainingSetup

BY_THE_WAY = frozenset({"until"})  # fields that another run of the same training may have otherwise
SAMPLED = 64  # samples whose content is looked at


def training_identity(
    model: Model,
    original: Model,
    data: CalibrationData,
    setup: TrainingSetup,
    names: Sequence[str],
    options: Any,
    seed: int,
) -> dict[str, Any]:
    """Plain values; nothing is computed where no checkpoint is kept. options: a dataclass."""
    if setup.checkpoints is None:
        return {}
    fields = {each.name: getattr(options, each.name) for each in dataclasses.fields(options)}
    return {
        "model": f"{model_digest(model)}",
        "original": model_digest(original),
        "data": data_digest(data),
        "options": {name: value for name, value in fields.items() if name not in BY_THE_WAY},
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "seed": seed,
    }


def model_digest(model: Model) -> str:
    """Of its graph and all its data."""
    found = hashlib.sha256()
    for tensor in tensors_of(model.proto):
        found.update(np.ascontiguousarray(model.read(tensor)).tobytes())
    for node in model.proto.graph.node:
        found.update(node.SerializeToString(deterministic=True))
    return found.hexdigest()


def data_digest(data: CalibrationData) -> str:
    """Of where samples come from, how many there are, and the content of some."""
    found = hashlib.sha256(f"{data.source} {data.sample_count}".encode())
    chosen = data.order[:: max(1, len(data.order) // SAMPLED)]
    for number, place in chosen.tolist():
        group = data.groups[number]
        batch = data.batch_of(group.load(), group.cut, np.array([place], np.int64))
        for name in sorted(batch.feeds):
            found.update(name.encode())
            found.update(np.ascontiguousarray(batch.feeds[name]).tobytes())
    return found.hexdigest()
