"""What the result costs beside its bytes: load time, load memory, latency; each beside the original's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.model_source import Referring
from onnxcomp.runtime import measure_latency, measure_load
from onnxcomp.target import Target

MEASURED_S = 1.0  # what two models run in turns, at least: twenty runs of a few microseconds say little


def latency_ratio(before: Model, after: Model, data: CalibrationData, target: Target | None) -> float:
    """Median latency of ``after`` over that of ``before``, alternated on one sample."""
    with on_disk({"before": before, "after": after}) as paths:
        took = measure_latency(paths, data.first_sample(), seconds=MEASURED_S, **session_options(target))
    return took["after"].median_ms / took["before"].median_ms


def compare_costs(original: Model, result: Model, data: CalibrationData, target: Target | None) -> dict[str, float]:
    """Latency, session creation time and its peak memory of both models, and their ratios."""
    options = session_options(target)
    with on_disk({"original": original, "result": result}) as paths:
        took = measure_latency(paths, data.first_sample(), seconds=MEASURED_S, **options)
        loads = {name: measure_load(path, **options) for name, path in paths.items()}
    costs: dict[str, float] = {}
    for name in paths:
        costs[f"latency_ms_{name}"] = took[name].median_ms
        costs[f"load_s_{name}"] = loads[name].seconds
        costs[f"load_peak_bytes_{name}"] = loads[name].peak_bytes
    for kind in ("latency_ms", "load_s", "load_peak_bytes"):
        before = costs[f"{kind}_original"]
        costs[f"{kind}_ratio"] = costs[f"{kind}_result"] / before if before else 1.0
    return costs


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
