"""Where the time goes inside a model: ONNX Runtime's own profile, by node or by operator."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import TargetError
from onnxcomp.model_source import ModelSource
from onnxcomp.runtime.measure import WARM_UP_RUNS
from onnxcomp.runtime.optimized import optimized
from onnxcomp.runtime.session import Feeds, Session

if TYPE_CHECKING:
    import onnx

KERNEL = "_kernel_time"  # the ending of the events that time a node's kernel
MICROSECONDS = 1e-6
BITS = {
    **dict.fromkeys(("uint2", "int2"), 2),
    **dict.fromkeys(("uint4", "int4", "float4e2m1"), 4),
    **dict.fromkeys(("bool", "uint8", "int8", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"), 8),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("uint32", "int32", "float"), 32),
    **dict.fromkeys(("uint64", "int64", "double", "complex64"), 64),
}
"""Of an element, by ONNX Runtime's word for its type."""

TensorType = tuple[str, tuple[int, ...]]
"""An element type and a shape."""

Wiring = tuple[str, tuple[TensorType | None, ...]]
"""An operator, and of each of its inputs the constant that it is, or None."""


@dataclass(frozen=True)
class ExecutedNode:
    """A node of the model that ONNX Runtime made, as it ran.

    seconds: of one run; of a node in a loop, all of its turns. reads, writes: element type and shape of each tensor in
    one turn, constants among what it reads, in the layout that it was given.
    """

    name: str
    operator: str
    provider: str
    seconds: float
    reads: tuple[TensorType, ...] = ()
    writes: tuple[TensorType, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all that it reads and writes in one turn; of strings nothing."""
        return sum(math.prod(shape) * BITS.get(kind, 0) // 8 for kind, shape in (*self.reads, *self.writes))


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
        return events_in(session.end_profile().read_text(encoding="utf-8", errors="replace"))


def events_in(text: str) -> list[dict[str, Any]]:
    """The events of a profile. ONNX Runtime up to 1.24 writes names as they are, quotes and control characters among
    them: a line that is no JSON for that is left out."""
    try:
        whole: list[dict[str, Any]] = json.loads(text, strict=False)
    except ValueError:
        return [each for line in text.split("\n") if (each := _event(line)) is not None]
    return whole


def _event(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found = json.loads(line.strip().lstrip("[").rstrip(",]"), strict=False)
        return found if isinstance(found, dict) else None
    return None


def profile_kernels(model: ModelSource, feeds: Feeds, *, runs: int = 20, **options: Any) -> list[ExecutedNode]:
    """What ran, node by node of the optimized model, in the order in which it ran first.

    Nodes should have names. options: see ``profile_events``.
    """
    events = profile_events(model, feeds, runs=runs, **options)
    loading = {name: options[name] for name in ("provider", "custom_ops") if name in options}
    try:
        wired = wirings(optimized(model, level="all", **loading).graph)
    except TargetError:  # a provider that compiles nodes: what it made cannot be written down
        wired = {}
    return kernels(events, WARM_UP_RUNS + runs, wired)


def wirings(graph: onnx.GraphProto) -> dict[str, Wiring]:
    """By name, what each node of a graph and its subgraphs reads: constants, and None for all else."""
    constants: dict[str, TensorType] = {}
    found: dict[str, Wiring] = {}
    graphs = [graph]
    while graphs:
        each = graphs.pop()
        constants |= {held.name: (_kind(held.data_type), tuple(held.dims)) for held in each.initializer}
        for node in each.node:
            inputs = [name for name in node.input if name]
            found.setdefault(node.name, (node.op_type, tuple(constants.get(name) for name in inputs)))
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def _kind(data_type: int) -> str:
    """ONNX Runtime's word for an element type."""
    import onnx  # late: processes that measure import this package, too

    return onnx.TensorProto.DataType.Name(data_type).lower()


def kernels(
    events: Sequence[Mapping[str, Any]], runs: int, wired: Mapping[str, Wiring] | None = None
) -> list[ExecutedNode]:
    """What the events of a profile over ``runs`` runs tell of each node. wired: what the nodes read of constants, since
    the profile does not tell of those that a kernel keeps in a form of its own."""
    seconds = node_seconds(events, runs)
    told: dict[str, Mapping[str, Any]] = {}
    for each in events:
        name = str(each.get("name", ""))
        if each.get("cat") == "Node" and name.endswith(KERNEL):
            told.setdefault(name.removesuffix(KERNEL), each.get("args", {}))
    found = []
    for name, about in told.items():
        operator, seen = str(about.get("op_name", "")), _tensors(about.get("input_type_shape", ()))
        known = (wired or {}).get(name)
        reads = _joined(seen, known[1]) if known and known[0] == operator else seen
        writes = _tensors(about.get("output_type_shape", ()))
        found.append(ExecutedNode(name, operator, str(about.get("provider", "")), seconds[name], reads, writes))
    return found


def _joined(seen: Sequence[TensorType], wired: Sequence[TensorType | None]) -> tuple[TensorType, ...]:
    """What a node reads, in order: the profile's tensors, with the constants that it leaves out in their places."""
    rest, found = list(seen), []
    for constant in wired:
        if constant is not None and (not rest or rest[0] != constant):
            found.append(constant)
        elif rest:
            found.append(rest.pop(0))
    return (*found, *rest)


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> tuple[TensorType, ...]:
    return tuple((kind, tuple(shape)) for each in listed for kind, shape in each.items())


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
