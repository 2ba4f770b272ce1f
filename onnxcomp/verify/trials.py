"""A model judged again and again with other values in some of its weights, without rewriting it.

    trials = verifier.trials(model)
    verdict = trials.check({"fc1.weight": rounded})     # as verifier.check of the model with these values

The model is prepared and serialized once, without the data of its weights; sessions get these from memory. Where few
weights change, only the nodes that come after them run, from what the model makes of the samples before
(``activations``), which is computed at the first such change. Of a model of many nodes and small weights one session is
opened for all changes, which is fed the weights with each batch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from onnxcomp.calibration.statistics.series import Room, kept_bytes
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.slices import Slice, Slices
from onnxcomp.graph.weights.detached import Detached, detach
from onnxcomp.graph.weights.roles import refuse_misfit, with_arrays
from onnxcomp.model import Model
from onnxcomp.runtime import Session, Value
from onnxcomp.verify.activations import Activations, keep_activations
from onnxcomp.verify.candidate import ISOLATE_FROM_BYTES
from onnxcomp.verify.reference import flatten
from onnxcomp.verify.repeatable import may_draw
from onnxcomp.verify.verdict import Verdict

if TYPE_CHECKING:
    from onnxcomp.verify.verifier import Verifier

Array = NDArray[Any]
Values = Mapping[str, Array]

PROVIDER = "CPUExecutionProvider"
MOST_RUN = 0.8  # of the nodes, for a change to be worth running from what is kept
# A session of 9,000 nodes takes 1.2 seconds to open and 0.013 to run, or 0.036 where it is fed its 3,000 weights.
FED_FROM_NODES = 1000
FED_BYTES = 4096  # of weights for each node, at most: ONNX Runtime packs larger ones when it opens


class ValueTrials:
    """Judges ``model`` with other values in some of its weights. Several threads may ask at once.

    It holds a copy of the weights and up to 256 MB of what the model makes of the samples, most of that in files, until
    it is dropped.
    """

    def __init__(self, verifier: Verifier, model: Model) -> None:
        self.verifier, self.model = verifier, model
        self._preparing = threading.Lock()

    def check(self, values: Values) -> Verdict:
        """The verdict on the model with these values in the weights of these keys (``Weight.name``), others as they
        are; the same as that of ``Verifier.check``, where not all nodes run to rounding.

        What sessions cannot be given is written into a model first: weights of subgraphs and of functions, random
        nodes, other execution providers, models that need a process of their own.
        Raises ValueError for values that no weight can hold.
        """
        prepared = self._ready()
        if prepared is None or not prepared.takes(values):
            return self._composed(values)
        outside = self.verifier.changed_outside(self.model)
        verdict = outside or self.verifier.judge(_Changed(prepared, self.verifier, values))
        return self._composed(values) if verdict.failed and outside is None else verdict

    def _composed(self, values: Values) -> Verdict:
        return self.verifier.check(with_arrays(self.model, values) if values else self.model)

    def _ready(self) -> _Prepared | None:
        """The model as it is given to sessions; None where each change has to be composed."""
        with self._preparing:
            return self._prepared

    @functools.cached_property
    def _prepared(self) -> _Prepared | None:
        target = self.verifier.target
        if target.provider != PROVIDER or may_draw(self.model, target) or self.model.size_bytes >= ISOLATE_FROM_BYTES:
            return None
        return _Prepared(self.verifier, self.model)


class _Prepared:
    """A model as it is given to sessions: with what is watched as further outputs, and as it is."""

    def __init__(self, verifier: Verifier, model: Model) -> None:
        self.target, self.data = verifier.target, verifier.data
        shown_model, self.shown = verifier.watched.prepare(model)
        self._memory = Room(kept_bytes(model.size_bytes), model.scratch)
        self.plain = detach(model)
        self.whole = self.plain if shown_model is model else detach(shown_model)
        self.slices = Slices(self.whole.proto)
        self._contents = {id(each): each.proto.SerializeToString() for each in (self.plain, self.whole)}
        self._keeping = threading.Lock()

    def takes(self, values: Values) -> bool:
        """Whether sessions can be given these values. Raises ValueError where their shape or type is wrong."""
        for name in values.keys() & self.plain.data.keys():
            refuse_misfit(name, values[name], self.plain.data[name].shape, self.plain.data[name].dtype)
        return all(name in self.plain.data and name in self.whole.data for name in values)

    def open_whole(self, detached: Detached, values: Values) -> Session:
        """A session on the whole model with these values."""
        return self._open(self._contents[id(detached)], detached.data, values)

    def fed(self, values: Values) -> tuple[Session, Mapping[str, Value]] | None:
        """A session on the whole model, the same for all values, and the weights that it is fed with these; None where
        the weights are few or large, or ONNX Runtime wants one of them constant."""
        with self._keeping:
            if self._fed_session is None:
                return None
            session, present = self._fed_session
        return session, present | session.held({name: np.asarray(each) for name, each in values.items()})

    @functools.cached_property
    def _fed_session(self) -> tuple[Session, dict[str, Value]] | None:
        weights = self.whole.weights
        most = FED_BYTES * self.slices.node_count
        if self.slices.node_count < FED_FROM_NODES or sum(self.whole.data[name].nbytes for name in weights) > most:
            return None
        others = {name: own for name, own in self.whole.data.items() if name not in weights}
        try:
            session = self._open(self.whole.fed().SerializeToString(), others, {})
        except TargetError:
            return None
        return session, session.held({name: self.whole.data[name] for name in weights})

    def part_for(self, values: Values) -> Slice | None:
        """The nodes to run for these values; None where all have to. It depends on the names alone."""
        changed = self.slices.after(values)
        most = MOST_RUN * self.slices.node_count
        if not values or len(self.slices.cut(changed, self.slices.varying).nodes) > most:
            return None
        known = self.kept().known
        return self.slices.cut(changed, known) if known else None

    def open_part(self, part: Slice, values: Values) -> Session:
        """A session on some of the nodes with these values."""
        proto = self.slices.model(part, self._infos)
        data = {name: self.whole.data[name] for name in part.initializers if name in self.whole.data}
        return self._open(proto.SerializeToString(), data, values)

    def kept(self) -> Activations:
        """What is kept of the model, computed by the first who asks."""
        with self._keeping:
            return self._kept

    @functools.cached_property
    def _kept(self) -> Activations:
        try:
            return keep_activations(self.slices, self.whole.weights, self.data, self._open_proto, self._memory)
        except (TargetError, VerificationError):  # which the verdict on the whole model will say
            return Activations()

    @functools.cached_property
    def _infos(self) -> dict[str, ValueInfoProto]:
        return self.kept().infos()

    def _open_proto(self, proto: ModelProto) -> Session:
        return self._open(proto.SerializeToString(), self.whole.data, {})

    def _open(self, content: bytes, data: Values, values: Values) -> Session:
        given = {name: np.asarray(values.get(name, own)) for name, own in data.items()}
        return self.target.session(content, initializers=given)


@dataclass(frozen=True)
class _Changed:
    """The prepared model with some values, as a candidate."""

    prepared: _Prepared
    verifier: Verifier
    values: Values

    def outputs(self) -> Iterator[dict[str, Array]]:
        """The outputs of every batch: those that nothing changed as they are kept."""
        prepared, named = self.prepared, self.verifier.watched.named
        for found in self._found():
            yield named(flatten(found), prepared.shown)

    def _found(self) -> Iterator[Mapping[str, Value]]:
        fed = self.prepared.fed(self.values)
        if fed is not None:
            session, weights = fed
            return (session.run({**feeds, **weights}) for feeds in self.prepared.data.batches())
        part = self.prepared.part_for(self.values)
        return self._whole() if part is None else self._part(part)

    def _whole(self) -> Iterator[Mapping[str, Value]]:
        session = self.prepared.open_whole(self.prepared.whole, self.values)
        return (session.run(feeds) for feeds in self.prepared.data.batches())

    def _part(self, part: Slice) -> Iterator[Mapping[str, Value]]:
        prepared = self.prepared
        session = prepared.open_part(part, self.values) if part.outputs else None
        kept = prepared.kept()
        count = len(next(iter(kept.series.values())))
        batches = prepared.data.batches() if part.inputs else ({} for _ in range(count))
        for index, feeds in enumerate(batches):
            fed = {name: feeds[name] for name in part.inputs if name in feeds}
            fed |= {name: kept.series[name][index] for name in part.feeds}
            made = {} if session is None else session.run(fed)
            yield {name: made[name] if name in made else kept.series[name][index] for name in prepared.slices.outputs}

    def opened(self) -> AbstractContextManager[Session]:
        """A session on the whole model as it is."""
        return nullcontext(self.prepared.open_whole(self.prepared.plain, self.values))
