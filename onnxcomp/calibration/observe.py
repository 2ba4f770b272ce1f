"""Watch inner tensors of a model while calibration data run through it.

The wanted tensors are added to the model's outputs; the session then runs batch by batch, asked for some of
them at a time, so that their values never take more than a fixed room.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxcomp.calibration.data import CalibrationData
from onnxcomp.errors import TargetError
from onnxcomp.model import Model
from onnxcomp.numerics.histogram import Histogram
from onnxcomp.runtime import Session, Value

ROOM_BYTES = 128 * 2**20  # of tensors fetched by one run
FIRST_FETCH = 16  # tensors fetched at once before their sizes are known

OpenSession = Callable[[bytes | Path], Session]
Progress = Callable[[int, int, str], None]


@dataclass
class Observation:
    """What was seen of one tensor: how its values spread, its type, its rank (None where it varied or never came)."""

    histogram: Histogram = field(default_factory=Histogram)
    dtypes: set[str] = field(default_factory=set)
    ranks: set[int] = field(default_factory=set)

    @property
    def rank(self) -> int | None:
        """The number of dimensions, None where it varied or the tensor never came."""
        return next(iter(self.ranks)) if len(self.ranks) == 1 else None

    @property
    def fault(self) -> str | None:
        """Why no range can be taken from it, None where one can."""
        if self.dtypes - {"float32"}:
            return f"is {', '.join(sorted(self.dtypes))}, not float32"
        if self.histogram.odd:
            return "has values that are not finite"
        return None if self.histogram.count else "had no values in the calibration data"

    def see(self, value: Value) -> None:
        """Take in one value of the tensor."""
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            self.dtypes.add(value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__)
            return
        self.dtypes.add(value.dtype.name)
        self.ranks.add(value.ndim)
        self.histogram.add(value)


def observe(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = lambda done, total, what: None,
) -> Mapping[str, Observation]:
    """What the tensors of the main graph called ``names`` hold while the first ``limit`` samples run.

    The model remembers it: taking back asks for parts of the same tensors again and again.
    Raises TargetError or VerificationError where the model does not load or run.
    """
    known: dict[str, Observation] = model.memo.setdefault((observe, data, limit), {})
    missing = [name for name in names if name not in known]
    if missing:
        known.update(_run(model, missing, data, limit, open_session, progress))
    return {name: known[name] for name in names}


def _run(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    limit: int | None,
    open_session: OpenSession,
    progress: Progress,
) -> dict[str, Observation]:
    seen = {name: Observation() for name in names}
    inputs = {each.name for each in model.proto.graph.input}
    inner = [name for name in names if name not in inputs]
    opener = functools.partial(_opened, open_session)
    with model.with_proto(_showing(model.proto, inner)).opened_on(opener) as session:
        groups = [inner[start : start + FIRST_FETCH] for start in range(0, len(inner), FIRST_FETCH)]
        sizes: dict[str, int] = {}
        total = data.sample_count if limit is None else min(limit, data.sample_count)
        done = 0
        for batch in data.labelled_batches(limit):
            progress(done, total, "calibrating")
            done += batch.count
            for name in inputs & seen.keys() & batch.feeds.keys():
                seen[name].see(batch.feeds[name])
            for group in groups:
                for name, value in session.run(batch.feeds, group).items():
                    seen[name].see(value)
                    sizes[name] = max(sizes.get(name, 0), getattr(value, "nbytes", 0))
            groups = _grouped(sizes)
    return seen


def _opened(open_session: OpenSession, source: bytes | Path) -> Session:
    """A session on the model, without graph optimizations where these fail.

    ONNX Runtime's GemmTransposeFusion (1.31) drops a Transpose whose result is an output, too.
    """
    try:
        return open_session(source)
    except TargetError:
        return Session(source, optimization="none")


def _showing(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with these tensors among its outputs; ONNX Runtime finds their types itself."""
    shown = ModelProto()
    shown.CopyFrom(proto)
    outputs = {each.name for each in proto.graph.output}
    for name in names:
        if name not in outputs:
            shown.graph.output.add(name=name)
    return shown


def _grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in groups whose values fit in the room together."""
    groups: list[list[str]] = []
    used = ROOM_BYTES
    for name, size in sizes.items():
        if used + size > ROOM_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
