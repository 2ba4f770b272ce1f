"""What the result costs beside its bytes: load time, load memory, latency and where that goes."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import OnnxcompError
from onnxcomp.model import Model
from onnxcomp.model_source import ModelSource, Referring
from onnxcomp.runtime import Latency, Load, measure_apart, measure_latency, measure_loads, profile_operators
from onnxcomp.target import Target

MEASURED_S = 1.0  # what two models run in turns, at least: twenty runs of a few microseconds say little
FEWEST_RUNS = 7
PROFILED_S = 0.2  # what a model runs to show where its time goes, in at most PROFILED_RUNS
PROFILED_RUNS = 20
FEWEST_APART = 3  # of a large model, whose runs are long
LOADS = 3  # of each model, each in a fresh process; one of a model over ONE_LOAD_BYTES
ONE_LOAD_BYTES = 100 * 10**6
APART_BYTES = 500 * 10**6  # models of more in all are not open in one process
APART_NODES = 5000  # nor models of which one has more nodes: opening one takes a second
DECODING = 6  # times the original, at most, that loading takes where weights are decoded: each step on the way is kept
STORED_SHARE = 0.75  # of the original's bytes; a result of fewer decodes its weights
PAIR = ("original", "result")


@dataclass
class Costs:
    """Figures of both models and their ratios, by name; notes: what could not be measured. operators: milliseconds of
    one run of each model by the operators that ONNX Runtime makes of it, empty for large models."""

    figures: dict[str, float] = field(default_factory=dict)
    operators: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, before: float, after: float) -> None:
        """A figure of the two models."""
        self.figures |= {f"{kind}_original": before, f"{kind}_result": after}
        self.figures[f"{kind}_ratio"] = after / before if before else 1.0

    def add_loads(self, before: Load, after: Load) -> None:
        """What loading the two models took, and how much the times of either differed."""
        self.add("load_s", before.seconds, after.seconds)
        self.figures["load_s_noise"] = max(each.noise for each in (before, after))
        self.add("load_peak_bytes", before.peak_bytes, after.peak_bytes)

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note what was not measured where that fails."""
        try:
            yield
        except (OnnxcompError, OSError, MemoryError) as error:
            self.notes.append(f"{what}: not measured: {_reason(error)}")


def latency_ratio(before: Model, after: Model, data: CalibrationData, target: Target | None) -> float:
    """Median latency of ``after`` over that of ``before``, alternated on one sample."""
    with on_disk({"before": before, "after": after}) as paths:
        took = measure_latency(paths, data.timed_sample(), seconds=MEASURED_S, warm=True, **session_options(target))
    return took["after"].median_ms / took["before"].median_ms


def compare_costs(original: Model, result: Model, data: CalibrationData, target: Target | None) -> Costs:
    """Latency, session creation time and its peak memory of both models, and their ratios.

    What fails costs its figures only. Large models are measured one after the other, in processes of their own.
    """
    costs, options = Costs(), session_options(target)
    nodes = max(len(each.proto.graph.node) for each in (original, result))
    if original.size_bytes + result.size_bytes > APART_BYTES or nodes > APART_NODES:
        _compare_apart(costs, original, result, data, options)
        return costs
    with costs.noting("latency"), on_disk(dict(zip(PAIR, (original, result), strict=True))) as paths:
        # Warm, as the trials of a search are: what a model takes that runs alone.
        how: dict[str, Any] = {"runs": FEWEST_RUNS, "seconds": MEASURED_S, "warm": True}
        took = measure_latency(paths, data.timed_sample(), **how, **options)
        costs.add("latency_ms", *(took[name].median_ms for name in PAIR))
        with costs.noting("latency by operator"):
            costs.operators = _by_operator(paths, {name: took[name].median_ms for name in PAIR}, data, options)
    with costs.noting("load time and load memory"), as_used([original, result]) as sources:
        costs.add_loads(*loads_of(sources, [original, result], options))
    return costs


def _compare_apart(
    costs: Costs, original: Model, result: Model, data: CalibrationData, options: dict[str, Any]
) -> None:
    """Fill in the figures of models that are not open at the same time."""
    with costs.noting("latency, load time and load memory"):
        _refuse_lack_of_memory(original, result)
        found: list[tuple[Load, Latency]] = []
        for model, read in ((original, [True]), (result, [False])):
            with as_used([model], read) as [source]:
                how: dict[str, Any] = {"runs": FEWEST_APART, "seconds": MEASURED_S / 2}
                found.append(measure_apart(source, data.timed_sample(), **how, **options))
        costs.add("latency_ms", *(latency.median_ms for _, latency in found))
        costs.add_loads(*(load for load, _ in found))


def _refuse_lack_of_memory(original: Model, result: Model) -> None:
    """Raise MemoryError where loading the result might take more than there is, at the cost of other processes."""
    needed, free = DECODING * original.size_bytes, psutil.virtual_memory().available
    if result.size_bytes < STORED_SHARE * original.size_bytes and needed > free:
        raise MemoryError(f"loading the result may take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} are free")


def _by_operator(
    paths: Mapping[str, ModelSource], took_ms: Mapping[str, float], data: CalibrationData, options: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Milliseconds of one run of each model by operator; none where ONNX Runtime gives no profile."""
    found: dict[str, list[float]] = {}
    for index, (name, path) in enumerate(paths.items()):
        runs = min(PROFILED_RUNS, max(1, int(1e3 * PROFILED_S / max(took_ms[name], 1e-3))))
        for operator, seconds in profile_operators(path, data.timed_sample(), runs=runs, **options).items():
            found.setdefault(operator, [0.0] * len(paths))[index] = float(f"{1e3 * seconds:.4g}")
    return found


def loads_of(sources: Sequence[ModelSource], models: Sequence[Model], options: Mapping[str, Any]) -> list[Load]:
    """What loading each of the models takes, in turns; once where one is large."""
    runs = 1 if any(each.size_bytes > ONE_LOAD_BYTES for each in models) else LOADS
    found = measure_loads({str(index): each for index, each in enumerate(sources)}, runs=runs, **options)
    return [found[str(index)] for index in range(len(models))]


def session_options(target: Target | None) -> dict[str, Any]:
    """What sessions on the target are opened with."""
    chosen = target or Target.of("cpu")
    return {
        "provider": chosen.provider,
        "provider_options": chosen.provider_options,
        "threads": chosen.threads,
        "custom_ops": chosen.custom_ops,
    }


@contextlib.contextmanager
def on_disk(models: Mapping[str, Model]) -> Iterator[dict[str, Path | Referring]]:
    """The models as files that ONNX Runtime can load, for as long as the context is open."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        yield {name: model.materialize(Path(folder) / name) for name, model in models.items()}


@contextlib.contextmanager
def as_used(models: Sequence[Model], read: Sequence[bool] = (True, False)) -> Iterator[list[ModelSource]]:
    """The models as the files that their user has or will have, for as long as the context is open. read: which are as
    they were read."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        given = enumerate(zip(models, read, strict=False))
        yield [_as_used(each, Path(folder) / str(at), is_read=is_read) for at, (each, is_read) in given]


def _as_used(model: Model, folder: Path, *, is_read: bool) -> ModelSource:
    if is_read and model.path is not None and not model.seeds:
        return model.path
    folder.mkdir()
    return model.written_whole(folder)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"there is no room in {tempfile.gettempdir()}. Set TMPDIR to a folder that has some"
    return str(error) or type(error).__name__
