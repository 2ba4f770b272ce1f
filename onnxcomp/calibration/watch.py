"""Run calibration data through a model and hand over the values of its inner tensors as they come.

The wanted tensors are added to the model's outputs; the session then runs batch by batch, asked for some of
them at a time, so that their values never take more than a fixed room.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from onnxcomp.calibration.data import CalibrationData
from onnxcomp.errors import TargetError
from onnxcomp.model import Model
from onnxcomp.runtime import Session, Value

ROOM_BYTES = 128 * 2**20  # of tensors fetched by one run
FIRST_FETCH = 16  # tensors fetched at once before their sizes are known

OpenSession = Callable[[bytes | Path], Session]
Progress = Callable[[int, int, str], None]
See = Callable[[str, Value], None]


def silent(done: int, total: int, what: str) -> None:
    """Tell nobody."""


def watch(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    see: See,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> None:
    """Call ``see(name, value)`` for every batch of the first ``limit`` samples and every tensor of the main graph
    in ``names``.

    Raises TargetError or VerificationError where the model does not load or run.
    """
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
            for name in names:
                if name in inputs and name in batch.feeds:
                    see(name, batch.feeds[name])
            for group in groups:
                for name, value in session.run(batch.feeds, group).items():
                    see(name, value)
                    sizes[name] = max(sizes.get(name, 0), getattr(value, "nbytes", 0))
            groups = _grouped(sizes)


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
