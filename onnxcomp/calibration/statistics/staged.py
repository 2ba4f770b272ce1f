"""Run a model stage by stage while its weights change, each node once for what is settled.

    stage:   what its weights read is computed from what the stage before left -> the weights change -> the next stage

What later nodes read is held of every sample, in memory up to a room and in files beyond it. Each stage is known by
the content of all that was computed up to it, so that another run of a model that begins alike goes on from where they
part. Batches run side by side; what they give is taken in their order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.series import Room, Series
from onnxcomp.calibration.statistics.watch import OpenSession, opened_somehow
from onnxcomp.errors import TargetError
from onnxcomp.graph.dataflow.contents import Contents
from onnxcomp.graph.dataflow.segments import Segment, Stage, overridable_name, segment_model
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.seeds import is_drawing
from onnxcomp.graph.ir.value_infos import required_info
from onnxcomp.parallel import in_threads_ahead
from onnxcomp.runtime import Value, ValueSpec

CHECKPOINTS = 8  # kept along the model, each the smallest of its stretch
CHECKPOINT_BYTES = 64 * 2**20  # of one
Work = Callable[[str, int, Value], Any]  # a tensor's name, the number of the batch, the value
See = Callable[[str, int, Any], None]  # the same, the value or what was made of it

Live = dict[str, Series]


@dataclass
class Checkpoint:
    """What later stages read after a stage, its types, and what it was computed from (see ``Contents.left``)."""

    stage: int
    state: bytes
    live: Live
    infos: dict[str, ValueInfoProto]

    @property
    def size_bytes(self) -> int:
        """What it takes, in memory or on disk."""
        return sum(each.size_bytes for each in self.live.values())

    def is_of(self, states: Sequence[bytes]) -> bool:
        """Whether it is what would be computed now."""
        return self.stage < 0 or states[self.stage] == self.state


@dataclass
class Checkpoints:
    """Some of a run's stages, for runs to come."""

    by_stretch: dict[int, Checkpoint] = field(default_factory=dict)

    def offer(self, checkpoint: Checkpoint, count: int, states: Sequence[bytes]) -> None:
        """Keep it where the one of its stretch is larger or no longer of use. count: of stages."""
        if checkpoint.size_bytes > CHECKPOINT_BYTES:
            return
        stretch = checkpoint.stage * CHECKPOINTS // count
        present = self.by_stretch.get(stretch)
        if present is None or not present.is_of(states) or checkpoint.size_bytes < present.size_bytes:
            self.by_stretch[stretch] = checkpoint


def _ignored(name: str, batch: int, value: Any) -> None:
    """Look at nothing."""


def _as_it_is(name: str, batch: int, value: Value) -> Value:
    return value


@dataclass
class Watching:
    """What is looked at while a segment runs: ``see`` gets, in the order of the batches, what ``work`` makes of values,
    several batches at a time. also: outputs that are held beside those that later stages read, in ``held``."""

    names: Collection[str] = ()
    see: See = _ignored
    work: Work = _as_it_is
    also: Collection[str] = ()
    held: Live = field(default_factory=dict)


class StagedRun:
    """A graph whose constants change while it runs, stage by stage.

    data: in the batches that are fed. checkpoints: from other runs of the same stages, gets those of this one. jobs:
    batches that run at a time; a graph that draws numbers draws them batch after batch.
    Methods raise TargetError or VerificationError where a segment does not load or run.
    """

    def __init__(
        self,
        graph: Graph,
        stages: Sequence[Stage],
        data: CalibrationData,
        open_session: OpenSession,
        room: Room,
        checkpoints: Checkpoints | None = None,
        jobs: int = 1,
    ) -> None:
        self._graph, self._stages, self._data, self._room = graph, stages, data, room
        self._open_session = functools.partial(opened_somehow, open_session)
        self._checkpoints = checkpoints or Checkpoints()
        self._contents = Contents(graph, stages)
        default = {overridable_name(each) for each in graph.main.overridable}
        self._infos = {each.name: required_info(each) for each in graph.main.graph.inputs if each.name not in default}
        self._inputs = frozenset(self._infos)
        self._recent: list[Checkpoint] = []
        self._jobs = 1 if is_drawing(graph.model) else jobs

    def state(self, index: int) -> bytes:
        """A digest of all that what is wanted in a stage is computed from, the samples aside."""
        return self._contents.wanted(index)

    def show(self, index: int, names: Collection[str], see: See, work: Work = _as_it_is) -> None:
        """Hand over what tensors that are wanted in a stage hold, with the constants as they are now.

        work: is done to each value first, several at a time. What was computed before, with these constants, is not
        computed again.
        """
        states = self._contents.left()
        before = self._latest(index, states)
        for between in range(before.stage + 1, index):
            before = self._advanced(before, between, states)
        seen = set(names)
        self._hand_over(self._known_values(seen, before.live), see, work)
        stage = self._stages[index]
        beyond: Live = {}
        after = self._advanced(before, index, states, Watching(seen, see, work, frozenset(stage.ahead.feeds), beyond))
        if seen & set(stage.ahead.outputs):
            self._run(stage.ahead, before.live | beyond, after.infos, Watching(seen, see, work))

    def _known_values(self, names: Collection[str], live: Live) -> Iterator[tuple[str, int, Value]]:
        """What need not be computed: what the stage before left, and inputs."""
        for name in sorted(live.keys() & names):
            for batch in range(len(live[name])):
                yield name, batch, live[name][batch]
        fed = sorted(self._inputs.intersection(names))
        if fed:
            for batch, feeds in enumerate(self._data.batches()):
                yield from ((name, batch, feeds[name]) for name in fed if name in feeds)

    def _hand_over(self, values: Iterator[tuple[str, int, Value]], see: See, work: Work) -> None:
        def worked(value: tuple[str, int, Value]) -> tuple[str, int, Any]:
            return value[0], value[1], work(*value)

        for each in in_threads_ahead(worked, values, self._jobs):
            see(*each)

    def _latest(self, index: int, states: Sequence[bytes]) -> Checkpoint:
        """The last that is known before a stage, with the constants as they are now."""
        known = [*self._recent, *self._checkpoints.by_stretch.values()]
        valid = [each for each in known if each.stage < index and each.is_of(states)]
        return max(valid, key=lambda each: each.stage, default=Checkpoint(-1, b"", {}, {}))

    def _advanced(
        self, before: Checkpoint, index: int, states: Sequence[bytes], watching: Watching | None = None
    ) -> Checkpoint:
        """What is left after a stage, where the next one goes on, and this one where it is shown again."""
        stage = self._stages[index]
        made, infos = self._run(stage.advance, before.live, before.infos, watching, keep=stage.kept)
        left = {name: each for name, each in (before.live | made).items() if name in stage.kept}
        after = Checkpoint(index, states[index], left, {**before.infos, **infos})
        self._recent = [before, after]
        self._checkpoints.offer(after, len(self._stages), states)
        return after

    def _run(
        self,
        segment: Segment,
        live: Live,
        infos: Mapping[str, ValueInfoProto],
        watching: Watching | None,
        *,
        keep: Collection[str] = (),
    ) -> tuple[Live, dict[str, ValueInfoProto]]:
        """Run a segment over all batches: what is kept of its outputs, and the types of these."""
        see = watching or Watching()
        fetched = [name for name in segment.outputs if name in keep or name in see.names or name in see.also]
        made = {name: Series(self._room) for name in fetched if name in keep or name in see.also}
        if not fetched:
            return {}, {}
        model = segment_model(self._graph, segment, {**self._infos, **infos})
        with model.opened_on(self._open_session) as session:

            def run(fed: tuple[int, dict[str, Value]]) -> tuple[dict[str, Value], dict[str, Any]]:
                values = session.run(fed[1], fetched)
                shown = {name: see.work(name, fed[0], values[name]) for name in fetched if name in see.names}
                return {name: values[name] for name in made}, shown

            ran = in_threads_ahead(run, enumerate(self._fed(segment, live)), self._jobs)
            for batch, (kept, shown) in enumerate(ran):
                for name, series in made.items():
                    series.append(kept.pop(name))
                for name in list(shown):
                    see.see(name, batch, shown.pop(name))
            types = {each.name: info_of_values(each, made[each.name]) for each in session.outputs if each.name in made}
        see.held |= made
        return made, types

    def _fed(self, segment: Segment, live: Live) -> Iterator[dict[str, Value]]:
        """What the segment is fed, batch after batch; the data are read only where it reads inputs."""
        own = [name for name in segment.feeds if name in live]
        inputs = [name for name in segment.feeds if name in self._inputs]
        if not inputs and own:
            for batch in range(len(live[own[0]])):
                yield {name: live[name][batch] for name in own}
            return
        for batch, feeds in enumerate(self._data.batches()):
            yield {name: live[name][batch] for name in own} | {name: feeds[name] for name in inputs if name in feeds}


def info_of_values(spec: ValueSpec, series: Series) -> ValueInfoProto:
    """What to state of a tensor that held these values, the sizes that all of them have among it.

    Raises TargetError for a type that cannot be fed.
    """
    element = TensorProto.DataType.DESCRIPTOR.values_by_name.get(spec.element.upper())
    if element is not None and spec.type == f"tensor({spec.element})":
        shapes = {np.shape(series[batch]) for batch in range(len(series))}
        if len({len(each) for each in shapes}) != 1:
            return helper.make_tensor_value_info(spec.name, element.number, None)
        sizes = [set(each) for each in zip(*shapes, strict=True)]
        known = [each.pop() if len(each) == 1 else None for each in sizes]
        return helper.make_tensor_value_info(spec.name, element.number, known)
    if element is not None and spec.type == f"seq(tensor({spec.element}))":
        inner = helper.make_tensor_type_proto(element.number, None)
        return helper.make_value_info(spec.name, helper.make_sequence_type_proto(inner))
    raise TargetError(f"{spec.name}: a value of type {spec.type} cannot be fed")
