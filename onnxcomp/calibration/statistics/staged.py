"""Run a model stage by stage while its weights change, each node once for what is settled.

    stage:   what its weights read is computed from what the stage before left -> the weights change -> the next stage

What later nodes read is held of every sample, in memory up to a room and in files beyond it. Each stage is known by the
content of all that was computed up to it, so that another run of a model that begins alike goes on from where they part.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.series import Room, Series
from onnxcomp.calibration.statistics.watch import OpenSession, opened_somehow
from onnxcomp.errors import TargetError
from onnxcomp.graph.dataflow.segments import Segment, Stage, segment_model
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.value_infos import required_info
from onnxcomp.graph.ir.writer import node_proto
from onnxcomp.runtime import Value, ValueSpec

CHECKPOINTS = 8  # kept along the model, each the smallest of its stretch
CHECKPOINT_BYTES = 64 * 2**20  # of one
See = Callable[[str, int, Value], None]  # a tensor's name, the number of the batch, the value

Live = dict[str, Series]


@dataclass
class Checkpoint:
    """What later stages read after a stage, its types, and what it was computed from (see ``StagedRun.state``)."""

    stage: int
    state: bytes
    live: Live
    infos: dict[str, ValueInfoProto]

    @property
    def size_bytes(self) -> int:
        """What it takes, in memory or on disk."""
        return sum(each.size_bytes for each in self.live.values())


@dataclass
class Checkpoints:
    """Some of a run's stages, for runs to come."""

    by_stretch: dict[int, Checkpoint] = field(default_factory=dict)

    def offer(self, checkpoint: Checkpoint, count: int, is_valid: Callable[[Checkpoint], bool]) -> None:
        """Keep it where the one of its stretch is larger or no longer of use. count: of stages."""
        stretch = checkpoint.stage * CHECKPOINTS // count
        present = self.by_stretch.get(stretch)
        if checkpoint.size_bytes > CHECKPOINT_BYTES:
            return
        if present is None or not is_valid(present) or checkpoint.size_bytes < present.size_bytes:
            self.by_stretch[stretch] = checkpoint


class StagedRun:
    """A graph whose constants change while it runs, stage by stage.

    data: in the batches that are fed. checkpoints: from other runs of the same stages, gets those of this one.
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
    ) -> None:
        self._graph, self._stages, self._data, self._room = graph, stages, data, room
        self._open_session = functools.partial(opened_somehow, open_session)
        self._checkpoints = checkpoints or Checkpoints()
        self._digests: dict[Constant, tuple[Any, bytes]] = {}
        inputs = {each.name for each in graph.main.graph.inputs}
        self._default = inputs & {
            each.name if isinstance(each, TensorProto) else each.values.name for each in graph.main.overridable
        }
        self._infos = {
            each.name: required_info(each) for each in graph.main.graph.inputs if each.name not in self._default
        }
        self._inputs = frozenset(self._infos)
        self._start = Checkpoint(-1, b"", {}, {})
        self._frontier = self._start

    def state(self, index: int) -> bytes:
        """A digest of all that what is wanted in a stage is computed from, the samples aside."""
        return _digest(self._states[index], self._content(self._stages[index].ahead))

    @property
    def _states(self) -> list[bytes]:
        """For each stage a digest of what is left after it is computed from."""
        found = [self._elsewhere]
        for stage in self._stages:
            found.append(_digest(found[-1], self._content(stage.advance)))
        return found[1:]

    @functools.cached_property
    def _elsewhere(self) -> bytes:
        """A digest of the nodes, with all that is in them, and of what does not change."""
        graph, found = self._graph, hashlib.blake2b(digest_size=16)
        for stage in self._stages:
            for part in (stage.advance, stage.ahead):
                found.update(repr((part.feeds, part.outputs)).encode())
                for node in part.nodes:
                    found.update(node_proto(graph, node).SerializeToString(deterministic=True))
        for scope in graph.scopes[1:]:
            for constant in scope.constants:
                found.update(self._content_of(constant))
        for each in (*graph.main.overridable, *graph.model.proto.functions):
            found.update(each.SerializeToString(deterministic=True))
        return found.digest()

    def _content(self, segment: Segment) -> bytes:
        return b"".join(self._content_of(each) for each in segment.constants)

    def _content_of(self, constant: Constant) -> bytes:
        held = constant._values
        known = self._digests.get(constant)
        if known is None or known[0] is not held:
            known = held, content_digest(constant.values)
            self._digests[constant] = known
        return known[1]

    def show(self, index: int, names: Sequence[str], see: See) -> None:
        """Hand over what tensors that are wanted in a stage hold, with the constants as they are now.

        What was computed before, with these constants, is not computed again.
        """
        states = self._states
        known = [self._start, *self._checkpoints.by_stretch.values(), self._frontier]
        valid = [each for each in known if each.stage < 0 or states[each.stage] == each.state]
        before = max((each for each in valid if each.stage < index), key=lambda each: each.stage)
        for stage in range(before.stage + 1, index):
            before = self._advanced(before, stage, states, {})
        self._shown(before, index, names, see, states)

    def _shown(
        self, before: Checkpoint, index: int, names: Sequence[str], see: See, states: Sequence[bytes]
    ) -> None:
        stage = self._stages[index]
        seen = set(names)
        held: Live = {}
        for name in seen & before.live.keys():
            for batch in range(len(before.live[name])):
                see(name, batch, before.live[name][batch])
        for name in seen & self._inputs:
            for batch, feeds in enumerate(self._data.batches()):
                if name in feeds:
                    see(name, batch, feeds[name])
        after = self._advanced(before, index, states, held, seen & set(stage.advance.outputs), see)
        if seen & set(stage.ahead.outputs):
            self._run(stage.ahead, before.live | held, before.infos | after.infos, (), seen, see)

    def _advanced(
        self,
        before: Checkpoint,
        index: int,
        states: Sequence[bytes],
        beyond: Live,
        seen: frozenset[str] | set[str] = frozenset(),
        see: See | None = None,
    ) -> Checkpoint:
        """The checkpoint after a stage. beyond: gets what ``ahead`` reads and no later stage."""
        stage = self._stages[index]
        kept = set(stage.kept)
        wanted = kept | (set(stage.ahead.feeds) if see is not None else set())
        fresh = [name for name in stage.advance.outputs if name in wanted]
        live, infos = self._run(stage.advance, before.live, before.infos, fresh, seen, see)
        beyond |= live
        left = {name: each for name, each in (before.live | live).items() if name in kept}
        types = {name: each for name, each in (before.infos | infos).items()}
        made = Checkpoint(index, states[index], left, types)
        self._frontier = made
        valid = functools.partial(_is_of, states)
        self._checkpoints.offer(made, len(self._stages), valid)
        return made

    def _run(
        self,
        segment: Segment,
        live: Live,
        infos: Mapping[str, ValueInfoProto],
        kept: Sequence[str],
        seen: frozenset[str] | set[str],
        see: See | None,
    ) -> tuple[Live, dict[str, ValueInfoProto]]:
        """Run a segment over all batches: what is kept of its outputs and their types. seen: outputs to hand over."""
        fetched = [name for name in segment.outputs if name in seen or name in kept]
        if not fetched:
            return {}, {}
        series = {name: Series(self._room) for name in kept}
        model = segment_model(self._graph, segment, {**self._infos, **infos})
        with model.opened_on(self._open_session) as session:
            for batch, feeds in enumerate(self._fed(segment, live)):
                values = session.run(feeds, fetched)
                for name in fetched:
                    value = values.pop(name)
                    if name in series:
                        series[name].append(value)
                    if see is not None and name in seen:
                        see(name, batch, value)
            types = {each.name: each for each in session.outputs}
        return series, {name: info_of_values(types[name], each) for name, each in series.items()}

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


def _is_of(states: Sequence[bytes], checkpoint: Checkpoint) -> bool:
    return states[checkpoint.stage] == checkpoint.state


def content_digest(values: Any) -> bytes:
    """A digest of an array's type, shape and bytes."""
    array = np.asarray(values)
    found = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    if array.dtype == object:
        found.update(repr(array.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.digest()


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


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
