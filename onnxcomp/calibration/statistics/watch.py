"""Run calibration data through a model and hand over the values of its inner tensors as they come.

The model is cut down to the nodes that the wanted tensors come from, and these are its outputs. Batches are as small
as it takes for their values to fit in a fixed room; where those of one sample are far over it, the session is asked
for some of them at a time, and runs again.

Random nodes go on drawing from run to run. So that what one watch sees fits what another sees, with other names or
of another form of the model, a model that draws runs one sample at a time, and every session each of them once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.errors import TargetError
from onnxcomp.graph.extract import up_to
from onnxcomp.graph.ir.seeds import is_drawing
from onnxcomp.model import Model
from onnxcomp.model_source import ModelSource
from onnxcomp.runtime import Feeds, Session, Value

# Of tensors fetched by one run. Small batches cost nothing here: EfficientNet-Lite0 runs 100 images one by one in
# 0.81 of the time that it takes for them in fours, since what was computed is still in the cache when it is read.
ROOM_BYTES = 32 * 2**20
MOST_BYTES = 128 * 2**20  # fetched by one run where a batch cannot be smaller: every further run computes all anew
LEAST_BYTES = 2**20  # of a batch's values: of smaller ones, running and fetching takes longer than computing
LARGE_BYTES, LARGE_MOST_BYTES = 2**27, 512 * 2**20  # of models from this size on as much as they take themselves
FIRST_FETCH = 32  # tensors fetched at once before their sizes are known

OpenSession = Callable[[ModelSource], Session]
Progress = Callable[[int, int, str], None]
See = Callable[[str, Value], None]
SeeBoth = Callable[[str, Value, Value], None]


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
    with contextlib.ExitStack() as stack:
        sessions = _Sessions(up_to(model, inner), functools.partial(opened_somehow, open_session), stack)
        groups = [inner[start : start + FIRST_FETCH] for start in range(0, len(inner), FIRST_FETCH)]
        data, sizes = _in_room(data, sessions, groups)
        groups = _grouped(sizes, sessions.most_bytes) if sizes else groups
        total = data.sample_count if limit is None else min(limit, data.sample_count)
        done = 0
        for batch in data.labelled_batches(limit):
            progress(done, total, "calibrating")
            done += batch.count
            for name in names:
                if name in inputs and name in batch.feeds:
                    see(name, batch.feeds[name])
            for index, group in enumerate(groups):
                _fetch(sessions.of_group(index), batch.feeds, group, sizes, see)
            if not sessions.is_drawing:
                groups = _grouped(sizes, sessions.most_bytes) if sizes else groups


def watch_both(
    first: Model,
    second: Model,
    names: Sequence[str],
    data: CalibrationData,
    see: SeeBoth,
    *,
    open_session: OpenSession = Session,
) -> None:
    """Call ``see(name, value, value)`` with what both models hold in each tensor, batch by batch; as ``watch``."""
    inputs = {each.name for each in second.proto.graph.input}
    inner = [name for name in names if name not in inputs]
    opened = functools.partial(opened_somehow, open_session)
    with contextlib.ExitStack() as stack:
        one, other = (_Sessions(up_to(model, inner), opened, stack) for model in (first, second))
        groups = [inner[start : start + FIRST_FETCH] for start in range(0, len(inner), FIRST_FETCH)]
        data, sizes = _in_room(data, other, groups)
        groups = _grouped(sizes, other.most_bytes) if sizes and other.is_drawing else groups
        for batch in data.labelled_batches():
            for name in names:
                if name in inputs and name in batch.feeds:
                    see(name, batch.feeds[name], batch.feeds[name])
            for index, group in enumerate(groups):
                before = one.of_group(index).run(batch.feeds, group)
                after = other.of_group(index).run(batch.feeds, group)
                for name in group:
                    see(name, before.pop(name), after.pop(name))


def in_batches(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    *,
    open_session: OpenSession = Session,
    wanted: int = 1,
) -> tuple[CalibrationData, dict[str, int]]:
    """The data in such batches that these tensors of one fit in the room, sample by sample where the model draws; and
    the bytes of each tensor of a batch, where known.

    wanted: batches at least, where there are as many samples and one takes more than some LEAST_BYTES.
    """
    inputs = {each.name for each in model.proto.graph.input}
    inner = [name for name in names if name not in inputs]
    with contextlib.ExitStack() as stack:
        sessions = _Sessions(up_to(model, inner), functools.partial(opened_somehow, open_session), stack)
        groups = [inner[start : start + FIRST_FETCH] for start in range(0, len(inner), FIRST_FETCH)]
        found, sizes = _in_room(data, sessions, groups)
    if not sizes or is_drawing(model):
        return found, sizes
    of_sample = max(1, sum(sizes.values()) // found.batch_size)
    size = min(found.batch_size, max(1, data.sample_count // wanted, LEAST_BYTES // of_sample))
    return replace(found, batch_size=size), {name: each * size // found.batch_size for name, each in sizes.items()}


class _Sessions:
    """The sessions that run a model: one, or one for each group of tensors where it draws random numbers."""

    def __init__(self, model: Model, opened: OpenSession, stack: contextlib.ExitStack) -> None:
        self.is_drawing = is_drawing(model)
        self.most_bytes = MOST_BYTES if model.size_bytes < LARGE_BYTES else min(model.size_bytes, LARGE_MOST_BYTES)
        self._model, self._opened, self._stack = model, opened, stack
        self._open: list[Session] = []

    def of_group(self, index: int) -> Session:
        """What runs the group at a position; of a model that draws, it has run nothing else."""
        place = index if self.is_drawing else 0
        while len(self._open) <= place:
            self._open.append(self.new(self._stack))
        return self._open[place]

    def new(self, stack: contextlib.ExitStack) -> Session:
        """A fresh session."""
        return stack.enter_context(self._model.opened_on(self._opened))


def _fetch(session: Session, feeds: Feeds, names: Sequence[str], sizes: dict[str, int], see: See) -> None:
    """Hand over the values of some tensors, each let go before the next, and note how large they get."""
    values = session.run(feeds, names)
    for name in names:
        value = values.pop(name)
        sizes[name] = max(sizes.get(name, 0), getattr(value, "nbytes", 0))
        see(name, value)


def _in_room(
    data: CalibrationData, sessions: _Sessions, groups: Sequence[Sequence[str]]
) -> tuple[CalibrationData, dict[str, int]]:
    """The data in batches whose values fit in the room, by what one sample takes, and that batch's sizes.

    Where batches cannot be cut, the first one tells the sizes as it is seen, and none are given. Of a model that
    draws, the batches are single samples, and another session tells the sizes.
    """
    sizes: dict[str, int] = {}
    is_uncut = any(each.cut.exact or not each.cut.axes for each in data.groups)
    if not groups or not data.sample_count or (is_uncut and not sessions.is_drawing):
        return data, sizes
    with contextlib.ExitStack() as stack:
        session = sessions.new(stack) if sessions.is_drawing else sessions.of_group(0)
        feeds = data.first_sample()
        for group in groups:
            _fetch(session, feeds, group, sizes, _ignore)
    if sessions.is_drawing:
        return replace(data, batch_size=1), sizes
    batch_size = max(1, min(data.batch_size, ROOM_BYTES // max(1, sum(sizes.values()))))
    return replace(data, batch_size=batch_size), {name: batch_size * size for name, size in sizes.items()}


def _ignore(name: str, value: Value) -> None:
    """Let go of a value."""


def opened_somehow(open_session: OpenSession, source: ModelSource) -> Session:
    """A session on the model with other outputs, without graph optimizations where these fail.

    ONNX Runtime's GemmTransposeFusion (1.31) drops a Transpose whose result is an output, too.
    """
    try:
        return open_session(source)
    except TargetError:
        return Session(source, optimization="none")


def _grouped(sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Names in groups whose values may be fetched together, so many bytes of them."""
    groups: list[list[str]] = []
    used = most_bytes
    for name, size in sizes.items():
        if used + size > most_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
