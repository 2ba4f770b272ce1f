"""Where the time goes inside a model: ONNX Runtime's own profile, node by node."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp.model_source import ModelSource
from onnxcomp.runtime.measure import WARM_UP_RUNS
from onnxcomp.runtime.session import Feeds, Session

KERNEL = "_kernel_time"  # the ending of the events that time a node's kernel
MICROSECONDS = 1e-6


def profile_nodes(
    model: ModelSource,
    feeds: Feeds,
    *,
    runs: int = 20,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, str] | None = None,
    custom_ops: Sequence[Path] = (),
) -> dict[str, float]:
    """Seconds of one run by node of the optimized model: the median of ``runs``; times of nodes in loops add up.

    A node that ONNX Runtime made carries the name of what it was made from, with something before or behind it,
    or the name of what it gives out. Profiling itself costs each node a little, the same for all.
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
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    return node_seconds(events, WARM_UP_RUNS + runs)


def node_seconds(events: Sequence[Mapping[str, object]], runs: int) -> dict[str, float]:
    """Seconds of one run by node, from the events of a profile over ``runs`` runs."""
    spent: dict[str, list[float]] = defaultdict(list)
    for each in events:
        name = str(each.get("name", ""))
        if each.get("cat") == "Node" and name.endswith(KERNEL):
            spent[name.removesuffix(KERNEL)].append(MICROSECONDS * float(str(each["dur"])))
    return {name: float(np.median(took)) * len(took) / runs for name, took in spent.items()}
