"""Weights of a finished model that no sample reaches: what became of them is seen by nobody, so it has to be safe."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.storage.expand import expand
from onnxcomp.graph.weights.roles import constants_by_key, weights
from onnxcomp.model import Model
from onnxcomp.pipeline.safety.noise_bound import NoiseBound
from onnxcomp.pipeline.safety.reach import Reach, unreached_note
from onnxcomp.verify import Verdict


def with_unseen(verdict: Verdict, original: Model, model: Model, reach: Reach | None) -> Verdict:
    """The verdict, failed where weights that no sample reaches changed by more than is safe without data.

    Looked at are weights that the model still holds under their names, stored compactly or not.
    """
    if reach is None or reach.tuner is None or not verdict.passed:
        return verdict
    doubtful = _changed(original, model)
    unseen = reach.unreached(original, doubtful) if doubtful else set()
    if not unseen:
        return verdict
    reason = unreached_note(unseen, "changed by more than 8 bits per channel would")
    return dataclasses.replace(verdict, unseen=tuple(sorted(unseen)), reasons=(*verdict.reasons, reason))


def _changed(original: Model, model: Model) -> list[str]:
    """The weights of the original that are further off than is safe without data."""
    constants = constants_by_key(open_graph(expand(model)))
    found = []
    for weight in weights(open_graph(original)):
        other = constants.get(weight.name)
        if other is None or tuple(other.shape) != weight.shape or other.dtype != weight.dtype:
            continue
        values = np.asarray(other.values)
        if not np.array_equal(values, weight.values) and not NoiseBound.of(weight).allows(values):
            found.append(weight.name)
    return found
