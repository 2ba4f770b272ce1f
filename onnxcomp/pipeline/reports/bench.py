"""Latency, load time and load memory of one model, or of two as ratios measured in one run; and how far each operator
is from what the machine can do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxcomp import formats
from onnxcomp.graph.report.profile_segments import with_names
from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.costs import as_used, loads_of, on_disk, session_options
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.reports.roofline import OperatorShare, operator_shares
from onnxcomp.pipeline.run import Progress
from onnxcomp.runtime import Feeds, MachinePeaks, measure_latency, measure_peaks, profile_kernels
from onnxcomp.shown import Row, Shown
from onnxcomp.target import Target

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model

PROFILED_RUNS = 20
COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("size", "size_bytes", formats.size),
    ("latency, median", "latency_ms", formats.milliseconds),
    ("load time", "load_s", lambda seconds: formats.milliseconds(1e3 * seconds)),
    ("load memory", "load_peak_bytes", formats.size),
)


@dataclass(frozen=True)
class MeasuredCost:
    """What one model costs on the target; latencies are of one run on one sample, alternated with the other's.

    load_noise: how much the times that it took to load differ, as a share of their median.
    operators: where the time of a run goes, by ONNX Runtime's own profile.
    """

    name: str
    size_bytes: int
    latency_ms: float
    best_latency_ms: float
    load_s: float
    load_noise: float
    load_peak_bytes: int
    operators: tuple[OperatorShare, ...] = ()


@dataclass(frozen=True, repr=False)
class Bench(Shown):
    """The costs of one or two models; ``ratios`` are the second's over the first's, empty for one model.

    shapes: of the inputs that they ran on; shapes_from: where these come from. peaks: what the machine does at best
    with so many threads; None on other targets than the CPU.
    """

    target: str
    threads: int
    runs: int
    data: str
    models: tuple[MeasuredCost, ...]
    ratios: dict[str, float]
    shapes: dict[str, list[int]]
    shapes_from: str
    peaks: MachinePeaks | None = None

    def headline(self) -> str:
        """What was measured, on what."""
        names = " and ".join(each.name for each in self.models)
        ratio = f", latency ratio {self.ratios['latency_ms']:.2f}" if self.ratios else ""
        took = " and ".join(formats.milliseconds(each.latency_ms) for each in self.models)
        return f"{names}: {took}{ratio} ({self.target}, {formats.count(self.threads, 'thread')})"

    def rows(self) -> list[Row]:
        """The costs side by side, then where the time of each goes."""
        columns = [each.name for each in self.models]
        found: list[Row] = [("", *columns, *(["ratio"] if self.ratios else []))]
        for name, key, words in COSTS:
            ratio = [f"{self.ratios[key]:.2f}"] if self.ratios else []
            found.append((name, *(words(getattr(each, key)) for each in self.models), *ratio))
        return [*found, ("most time in", *(_longest(each) for each in self.models))]


def _longest(cost: MeasuredCost) -> str:
    """``Conv 93% at 0.89 of the peak``: the operator that takes most of the time."""
    if not cost.operators:
        return ""
    first = cost.operators[0]
    peak = "" if first.share_of_peak is None else f" at {first.share_of_peak:.2f} of the peak"
    return f"{first.operator} {first.share_of_time:.0%}{peak}"


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
    progress(0, 1, "measuring where the time goes")
    peaks = measure_peaks(threads=where.threads) if where.name == "cpu" else None
    shares = [_shares(each, data.timed_sample(), options, peaks) for each in given]
    costs = tuple(
        MeasuredCost(
            model.name,
            model.size_bytes,
            took[str(index)].median_ms,
            took[str(index)].best_ms,
            loads[index].seconds,
            loads[index].noise,
            loads[index].peak_bytes,
            shares[index],
        )
        for index, model in enumerate(given)
    )
    shapes = data.timed_shapes(), data.shapes_from
    return Bench(where.name, where.threads, runs, data.source, costs, _ratios(costs), *shapes, peaks)


def _shares(
    model: Model, feeds: Feeds, options: dict[str, Any], peaks: MachinePeaks | None
) -> tuple[OperatorShare, ...]:
    with on_disk({"": with_names(model)}) as paths:
        return operator_shares(profile_kernels(paths[""], feeds, runs=PROFILED_RUNS, **options), peaks)


def _ratios(costs: tuple[MeasuredCost, ...]) -> dict[str, float]:
    if len(costs) < 2:
        return {}
    first, second = costs
    kinds = ("size_bytes", "latency_ms", "load_s", "load_peak_bytes")
    return {
        kind: getattr(second, kind) / getattr(first, kind) if getattr(first, kind) else float("nan") for kind in kinds
    }
