"""How much a model's outputs depend on each weight, and the bits that each one bears: measured, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.calibration.sensitivity import sensitivities
from onnxcomp.calibration.statistics.moments import input_moments
from onnxcomp.contract import Context
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.matrix_form import worth_moments
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import open_data, silent, tuner_for
from onnxcomp.pipeline.safety.exclusions import refuse_idle, with_stored
from onnxcomp.registry import get_pass
from onnxcomp.target import Target

Progress = Callable[[int, int, str], None]
PASS = "assign-bits"


@dataclass(frozen=True)
class WeightSensitivity:
    """One weight. influence: divergence of the outputs for each unit of relative squared error of the node's output.
    bits: that it gets where all weights together stay within the divergence; None where they do not."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size_bytes: int
    influence: float
    bits: int | None


@dataclass(frozen=True)
class SensitivityTable:
    """The weights, those first that the outputs depend on most. divergence: the limit that the bits keep to."""

    samples: int
    divergence: float
    weights: tuple[WeightSensitivity, ...]


def measure_sensitivity(
    source: str | os.PathLike[str] | Model,
    *,
    calibration: Any,
    target: str | Target = "cpu",
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> SensitivityTable:
    """Change each weight alone and measure, on the calibration part of the data as a search does.

    Raises CalibrationError without data, and the errors of ``optimize`` for the model, the data and the target.
    """
    if calibration is None:
        raise CalibrationError("sensitivity: must be measured on inputs. Give them with --calib-data.")
    model = load(source)
    where = target if isinstance(target, Target) else Target.of(target)
    refuse_idle(model, exclude)
    data = open_data(model, calibration, where, seed).split(seed=seed)[0]
    tuner = tuner_for(model, data, "divergence", {"target": where, "metric": "divergence", "seed": seed})
    context = Context(
        seed=seed,
        target=where,
        calibration=data,
        divergence=lambda candidate: tuner.check(candidate).energy,
        exclude=with_stored(model, exclude),
        progress=progress,
    )
    rows = _rows(model, context, tuner.search_limit)
    return SensitivityTable(tuner.samples, tuner.search_limit, rows)


def _rows(model: Model, context: Context, limit: float) -> tuple[WeightSensitivity, ...]:
    """Influence by weight, and the bits of the pass that assigns them; the model remembers what both measure."""
    assert context.calibration is not None and context.divergence is not None and context.target is not None
    graph = open_plain(model)
    parameters: dict[str, Any] = {"max_divergence": limit}
    outcome = get_pass(PASS)(**parameters).apply(graph, context)
    bits = {each.name: int(each.details["bits"]) for each in outcome.changed}
    found = {each.name: each for each in weights(open_plain(model)) if all_finite(each.values)}
    selected = [each for each in found.values() if context.selects(each.name, *each.node_names)]
    seen = [each for each in selected if worth_moments(each)]
    moments = input_moments(open_plain(model), seen, context.calibration, open_session=context.target.session)
    names = [each.name for each in selected]
    measured = sensitivities(model, names, context.divergence, moments, progress=context.progress)
    rows = [_row(found[name], each.influence, bits.get(name)) for name, each in measured.items()]
    return tuple(sorted(rows, key=lambda row: -row.influence))


def _row(weight: Weight, influence: float, bits: int | None) -> WeightSensitivity:
    kind = ", ".join(sorted(weight.kinds))
    return WeightSensitivity(weight.name, kind, weight.shape, weight.size_bytes, influence, bits)
