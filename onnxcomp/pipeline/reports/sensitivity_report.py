"""How much a model's outputs depend on each weight, and the bits that each one tolerates: measured, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.rounding.grid import GridSpec, round_to_grid
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.parallel import one_thread
from onnxcomp.pipeline.api import silent, tuner_for
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.safety.exclusions import refuse_idle, with_stored
from onnxcomp.pipeline.safety.noise_bound import NoiseBound
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.weight_search.allocation import assign
from onnxcomp.pipeline.weight_search.assignment import divergence_of
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Table, WeightOption
from onnxcomp.pipeline.weight_search.fits import Fit
from onnxcomp.pipeline.weight_search.sensitivity import measure_influence
from onnxcomp.receipt import Entry
from onnxcomp.target import Target
from onnxcomp.verify import Verifier

Progress = Callable[[int, int, str], None]
WIDTHS = (8, 7, 6, 5, 4, 3, 2)


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
        exclude=with_stored(model, exclude),
        progress=progress,
    )
    with one_thread():
        rows = _rows(model, context, tuner)
    return SensitivityTable(tuner.samples, tuner.search_limit, rows)


def _rows(model: Model, context: Context, tuner: Verifier) -> tuple[WeightSensitivity, ...]:
    """Influence by weight, and the bits that a search would give it."""
    found = {each.name: each for each in context.editable_weights(open_plain(model), Outcome())}
    table = _tabulate(model, list(found), context)
    plain = {name: options[0] for name, options in table.options.items()}
    trials = tuner.trials(model)
    measure_influence(model, table, tuner, Reach(tuner), plain, context, once=True)
    chosen = assign(table, divergence_of(trials, table), tuner.search_limit, context)
    measured = {name: table.influence[name, ANY_FAMILY] for name, _ in table.measured}
    rows = [_row(found[name], influence, chosen[name].choice) for name, influence in measured.items()]
    return tuple(sorted(rows, key=lambda row: -row.influence))


def _tabulate(model: Model, names: Sequence[str], context: Context) -> Table:
    """Every weight on grids of all widths, each the number of its choice."""
    graph = open_plain(model)
    found = [each for each in weights(graph) if each.name in set(names)]
    known = context.observe.moments(graph, found)
    table = Table({each.name: [WeightOption(None, each.size_bytes, 0.0)] for each in found})
    for index, weight in enumerate(found):
        context.progress(index, len(found), f"rounding {weight.name}")
        moments, alone = known.get(weight.name), LoneWeight.of(weight)
        bound = NoiseBound.of(weight)
        for bits in WIDTHS:
            grid = GridSpec(bits=bits, granularity="tensor" if weight.channel_axis is None else "channel")
            own = alone.opened()
            gram = None if moments is None else moments.gram
            rounded = None if grid.obstacle(own) else round_to_grid(own, grid, "gptq", gram)
            if rounded is not None:
                own.set(rounded.values, rounded.encoding)
                fit = Fit.of(own, bound, Entry(weight.name, f"{bits} bits", {"error": rounded.error}))
                table.fits[bits, weight.name] = fit.kept(model.scratch)
                table.options[weight.name].append(WeightOption(bits, fit.size_bytes, fit.error))
    return table


def _row(weight: Weight, influence: float, bits: int | None) -> WeightSensitivity:
    kind = ", ".join(sorted(weight.kinds))
    return WeightSensitivity(weight.name, kind, weight.shape, weight.size_bytes, influence, bits)
