"""Latency, load time and load memory of one model, or of two as ratios measured in one run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.costs import as_used, loads_of, on_disk, session_options
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.run import Progress
from onnxcomp.runtime import measure_latency
from onnxcomp.target import Target

Source = str | os.PathLike[str] | Model


@dataclass(frozen=True)
class MeasuredCost:
    """What one model costs on the target; latencies are of one run on one sample, alternated with the other's.

    load_noise: how much the times that it took to load differ, as a share of their median.
    """

    name: str
    size_bytes: int
    latency_ms: float
    best_latency_ms: float
    load_s: float
    load_noise: float
    load_peak_bytes: int


@dataclass(frozen=True)
class Bench:
    """The costs of one or two models; ``ratios`` are the second's over the first's, empty for one model.

    shapes: of the inputs that they ran on; shapes_from: where these come from.
    """

    target: str
    threads: int
    runs: int
    data: str
    models: tuple[MeasuredCost, ...]
    ratios: dict[str, float]
    shapes: dict[str, list[int]]
    shapes_from: str


def bench(
    source: Source,
    other: Source | None = None,
    *,
    calibration: Any = None,
    target: str | Target = "cpu",
    runs: int = 50,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Bench:
    """Measure one model, or two on the same inputs in turns; what is compared must take the same inputs.

    calibration: where the sample comes from that the models run on; None draws it from the inputs' types.
    Raises TargetError or VerificationError for a model that does not load or run on the target.
    """
    given = [load(source), *([] if other is None else [load(other)])]
    where = target if isinstance(target, Target) else Target.of(target)
    progress(0, 1, "reading the inputs")
    data = open_data(given[0], calibration, where, seed, input_shapes)
    options = session_options(where)
    with on_disk({str(index): each for index, each in enumerate(given)}) as paths:
        progress(0, 1, "measuring latency")
        took = measure_latency(paths, data.timed_sample(), runs=runs, warm=True, **options)
    progress(0, 1, "measuring load time and memory")
    with as_used(given, [True] * len(given)) as sources:
        loads = loads_of(sources, given, options)
    costs = tuple(
        MeasuredCost(
            model.name,
            model.size_bytes,
            took[str(index)].median_ms,
            took[str(index)].best_ms,
            loads[index].seconds,
            loads[index].noise,
            loads[index].peak_bytes,
        )
        for index, model in enumerate(given)
    )
    shapes = data.timed_shapes(), data.shapes_from
    return Bench(where.name, where.threads, runs, data.source, costs, _ratios(costs), *shapes)


def _ratios(costs: tuple[MeasuredCost, ...]) -> dict[str, float]:
    if len(costs) < 2:
        return {}
    first, second = costs
    kinds = ("size_bytes", "latency_ms", "load_s", "load_peak_bytes")
    return {
        kind: getattr(second, kind) / getattr(first, kind) if getattr(first, kind) else float("nan") for kind in kinds
    }
