"""Where the time goes inside a model: ONNX Runtime's own profile, by node or by operator."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.model_source import ModelSource
from onnxcomp.runtime.measure import WARM_UP_RUNS
from onnxcomp.runtime.session import Feeds, Session

KERNEL = "_kernel_time"  # the ending of the events that time a node's kernel
MICROSECONDS = 1e-6


def profile_nodes(model: ModelSource, feeds: Feeds, *, runs: int = 20, **options: Any) -> dict[str, float]:
    """Seconds of one run by node of the optimized model: the median of ``runs``; times of nodes in loops add up.

    A node that ONNX Runtime made carries the name of what it was made from, with something before or behind it,
    or the name of what it gives out. options: see ``profile_events``.
    """
    return node_seconds(profile_events(model, feeds, runs=runs, **options), WARM_UP_RUNS + runs)


def profile_operators(model: ModelSource, feeds: Feeds, *, runs: int = 20, **options: Any) -> dict[str, float]:
    """Seconds of one run by operator of the optimized model, as ``profile_nodes``."""
    return operator_seconds(profile_events(model, feeds, runs=runs, **options), WARM_UP_RUNS + runs)


def profile_events(
    model: ModelSource,
    feeds: Feeds,
    *,
    runs: int,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    custom_ops: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile over ``runs`` and some before them.

    Profiling itself costs each node a little, the same for all.
    Raises TargetError or VerificationError when the model does not load or run.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        session = Session(
            model,
            provider=provider,
            provider_options=provider_options,
            threads=threads,
            custom_ops=custom_ops,
            profile=Path(folder),
        )
        for _ in range(WARM_UP_RUNS + runs):
            session.run(feeds)
        events: list[dict[str, Any]] = json.loads(session.end_profile().read_text(encoding="utf-8"))
    return events


def node_seconds(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, float]:
    """Seconds of one run by node, from the events of a profile over ``runs`` runs."""
    return {name: took for name, (took, _) in _kernels(events, runs).items()}


def operator_seconds(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, float]:
    """Seconds of one run by operator, from the events of a profile over ``runs`` runs, most first."""
    found: dict[str, float] = defaultdict(float)
    for took, operator in _kernels(events, runs).values():
        found[operator] += took
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _kernels(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, tuple[float, str]]:
    """Seconds of one run and operator, by node."""
    spent: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, str] = {}
    for each in events:
        name = str(each.get("name", ""))
        if each.get("cat") == "Node" and name.endswith(KERNEL):
            spent[name].append(MICROSECONDS * float(each["dur"]))
            operators[name] = str(each.get("args", {}).get("op_name", ""))
    return {
        name.removesuffix(KERNEL): (float(np.median(took)) * len(took) / runs, operators[name])
        for name, took in spent.items()
    }
