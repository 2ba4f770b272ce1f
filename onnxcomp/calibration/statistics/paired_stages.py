"""The paired moments of a model's weights, stage by stage, while the weights of one stage after another change.

    stage k: the weights that k others stand before on the longest way       moments as in ``paired``

Weights side by side share a stage. The original's columns are computed once for all models that are held against it,
and what a model has in common with one before, up to the first weight that differs, is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.moments import Source, sources_by_name, sums_bytes
from onnxcomp.calibration.statistics.paired import (
    PairedMoments,
    PairedSums,
    columns_of,
    is_plain,
    is_turned,
    of_weights,
    paired_moments,
)
from onnxcomp.calibration.statistics.series import Room, Series, kept_bytes
from onnxcomp.calibration.statistics.staged import Checkpoints, StagedRun
from onnxcomp.calibration.statistics.watch import ROOM_BYTES, OpenSession, in_batches
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.dataflow.contents import content_digest
from onnxcomp.graph.dataflow.segments import cut
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.ir.topology import depths
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.matrix_form import worth_moments
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.parallel import in_threads
from onnxcomp.runtime import Value
from onnxcomp.tensors import SPILL_BYTES, Scratch, lent

MOST_RESULTS = 4096  # remembered
BATCHES = 32  # at least, where there are as many samples: to be shared among threads

# A weight's new values, their encoding and error, and by how much the bias of its node moves (channels,).
Answer = tuple[Array, Encoding | None, float, Array | None] | None
_Cut = tuple[Source, Value, Array | None]  # a batch's value, and its columns
Solve = Callable[[Weight, Array, PairedMoments], Answer]  # a function, or what its repr tells all of


@dataclass
class _Columns:
    """What one source holds in the original, batch by batch: columns (groups, rows, K), in memory with rows and K the
    other way where ``is_turned``, or the values that they are cut from."""

    values: Series
    is_cut: bool = False
    is_turned: bool = False
    fault: bool = False


class _Kept:
    """What is remembered of a reference for all models that are held against it. stages: the tensors of each; sizes:
    their bytes in a batch, where known."""

    def __init__(self, stages: Any, data: CalibrationData, sizes: Mapping[str, int], original: Model) -> None:
        self.stages, self.data, self.sizes = stages, data, sizes
        most = kept_bytes(original.size_bytes)
        self.own, self.under_way = Room(most, original.scratch), Room(most, original.scratch)
        self.columns: dict[Hashable, _Columns] = {}
        self.checkpoints = Checkpoints()
        self.results: dict[bytes, Answer] = {}

    def remember(self, key: bytes, answer: Answer) -> None:
        """Keep an answer; of too many the oldest goes."""
        self.results[key] = answer
        while len(self.results) > MOST_RESULTS:
            self.results.pop(next(iter(self.results)))


class PairedStages:
    """The stages of ``graph``, whose weights may change from one to the next, held against a reference.

    names: of the weights whose moments are wanted. ``by_stage`` has those of them that both models can show the inputs
    of. Where the graph cannot be run in segments both models are run whole, for each stage (``is_whole``).
    """

    def __init__(
        self,
        reference: Reference,
        graph: Graph,
        names: Collection[str],
        data: CalibrationData,
        open_session: OpenSession,
        jobs: int = 1,
    ) -> None:
        self._reference, self._graph, self._data, self._open_session = reference, graph, data, open_session
        self._jobs = jobs
        self._original = open_plain(reference.model)
        self._sources = self._shown_by_both()
        all_stages = _by_depth(graph, self._sources)
        stages = [sorted({each.tensor for name in own for each in self._sources[name]}) for own in all_stages]
        self.by_stage = [[name for name in own if name in names] for own in all_stages]
        self._weights = {each.name: each for each in weights(graph)}
        self._changes = {name: index for index, own in enumerate(all_stages) for name in own}
        self._kept = self._remembered(stages)
        stages_now = cut(graph, self._kept.stages, self._changes)
        kept = self._kept
        self._run = StagedRun(graph, stages_now, kept.data, open_session, kept.under_way, kept.checkpoints, jobs)
        self.is_whole, self._has_seen_original = False, False

    def solved(self, index: int, solve: Solve) -> dict[str, Answer]:
        """What ``solve(weight, values in the reference, moments)`` makes of each weight of a stage, by name.

        It is not asked again for a weight in whose moments, values and encoding nothing has changed.
        Raises TargetError or VerificationError where a model does not load or run.
        """
        names = self.by_stage[index]
        keys = {} if self.is_whole else {name: self._key(index, name, solve) for name in names}
        known = {name: self._kept.results[key] for name, key in keys.items() if key in self._kept.results}
        for part in self._parts([each for each in names if each not in known]):
            moments = self._moments(index, part)
            asked: list[tuple[Any, ...]] = [
                (self._weights[name], self._before_all(name), each) for name, each in moments.items()
            ]
            answers = list(in_threads(lambda each: solve(*each), asked, self._jobs))
            for name, answer in zip(moments, answers, strict=True):
                known[name] = _on_disk(answer, self._reference.model.scratch)
                if name in keys and not self.is_whole:
                    self._kept.remember(keys[name], known[name])
        return {name: known[name] for name in names if name in known}

    def _parts(self, names: Sequence[str]) -> list[list[str]]:
        """The names in parts, the sums of each of which fit in the room."""
        parts: list[list[str]] = []
        used: dict[Hashable, int] = {}
        for name in names:
            own = {each.key: 2 * each.size_bytes for each in self._sources[name]}
            if not parts or sum((used | own).values()) > sums_bytes(self._reference.model.size_bytes):
                parts.append([])
                used = {}
            parts[-1].append(name)
            used |= own
        return parts

    def _before_all(self, name: str) -> Array:
        """The values that a weight has in the reference, in the sizes and units of now."""
        found = self._reference.constant(name)
        assert found is not None, "asked for are weights that the reference has"
        return found

    def _moments(self, index: int, names: Sequence[str]) -> dict[str, PairedMoments]:
        if not self.is_whole:
            try:
                return self._staged_moments(index, names)
            except (TargetError, VerificationError):
                self.is_whole = True
        now = open_plain(close_graph(self._graph))
        present = [each for each in weights(now) if each.name in names]
        return dict(paired_moments(self._reference, now, present, self._data, open_session=self._open_session))

    def _staged_moments(self, index: int, names: Sequence[str]) -> dict[str, PairedMoments]:
        self._see_original()
        sources = {each.key: each for name in names for each in self._sources[name]}
        sums = {key: PairedSums() for key in sources}

        def work(name: str, batch: int, value: Value) -> dict[Hashable, tuple[Array | None, Array | None]]:
            read = [each for each in sources.values() if each.tensor == name]
            return {each.key: (self._before(each, batch), self._cut(each, value)) for each in read}

        def see(name: str, batch: int, columns: dict[Hashable, tuple[Array | None, Array | None]]) -> None:
            for key in list(columns):
                before, after = columns.pop(key)
                sums[key].fault |= before is None or after is None
                if before is not None and after is not None:
                    sums[key].add(before, after)

        self._run.show(index, sorted({each.tensor for each in sources.values()}), see, work)
        return of_weights({name: self._sources[name] for name in names}, sums)

    def _before(self, source: Source, batch: int) -> Array | None:
        """The original's columns of a batch, in the sizes and units of now."""
        columns = self._kept.columns[source.key]
        if columns.fault or batch >= len(columns.values):
            return None
        value: Array = columns.values[batch]
        if columns.is_cut:
            return value.swapaxes(1, 2) if columns.is_turned else value
        return self._cut(source, self._reference.as_now(source.tensor, value))

    def _cut(self, source: Source, value: Value | None) -> Array | None:
        if not is_plain(value):
            return None
        return columns_of(source, value, max(1, self._data.sample_count))

    def _see_original(self) -> None:
        """Have the original's columns, of all weights that moments are wanted of."""
        if self._has_seen_original:
            return
        parts = self._missing()
        tensors = [sorted({each.tensor for each in found.values()}) for found in parts]
        stages = cut(self._original, tensors, {}) if parts else []
        run = StagedRun(self._original, stages, self._kept.data, self._open_session, self._kept.own, jobs=self._jobs)
        for index, found in enumerate(parts):
            self._kept.columns |= {key: _Columns(Series(self._kept.own)) for key in found}
            by_tensor: dict[str, list[Source]] = {}
            for each in found.values():
                by_tensor.setdefault(each.tensor, []).append(each)

            def work(name: str, batch: int, value: Value, read: Mapping[str, list[Source]] = by_tensor) -> list[_Cut]:
                return [(each, value, self._cut(each, value)) for each in read[name]]

            def see(name: str, batch: int, cut: list[_Cut]) -> None:
                for each in cut:
                    self._keep(*each)

            run.show(index, tensors[index], see, work)
        self._has_seen_original = True

    def _missing(self) -> list[dict[Hashable, Source]]:
        """The original's columns that are not there yet, by key: of as many stages together as fit in the room, since
        its weights stay."""
        parts: list[dict[Hashable, Source]] = []
        used = ROOM_BYTES
        for own in self.by_stage:
            found = {each.key: each for name in own for each in self._sources[name]}
            found = {key: each for key, each in found.items() if not self._has(each)}
            size = sum(self._kept.sizes.get(name, ROOM_BYTES) for name in {each.tensor for each in found.values()})
            if found and used + size > ROOM_BYTES:
                parts.append({})
                used = 0
            if found:
                parts[-1] |= found
                used += size
        return parts

    def _has(self, source: Source) -> bool:
        """Whether the original's columns are there, in a form that can be brought to the sizes and units of now."""
        columns = self._kept.columns.get(source.key)
        return columns is not None and (self._reference.is_as_it_was(source.tensor) or not columns.is_cut)

    def _keep(self, source: Source, value: Any, rows: Array | None) -> None:
        """Keep a batch of the original: its columns, where these are fewer bytes than the value and as they were."""
        columns = self._kept.columns[source.key]
        columns.fault |= rows is None
        if rows is None:
            return
        if not len(columns.values):
            columns.is_cut = rows.nbytes <= value.nbytes and self._reference.is_as_it_was(source.tensor)
            columns.is_turned = is_turned(rows)
        turned = rows.swapaxes(1, 2) if columns.is_turned else rows
        columns.values.append(turned if columns.is_cut else value)

    def _key(self, index: int, name: str, solve: Solve) -> bytes:
        """What an answer depends on: the samples and the reference aside, all that the moments are computed from, the
        weight and what it was."""
        weight, before = self._weights[name], self._before_all(name)
        encoding = "" if weight.encoding is None else json.dumps(weight.encoding.to_dict(), sort_keys=True)
        parts = (solve.__module__, getattr(solve, "__qualname__", repr(solve)), name, encoding)
        texts = [hashlib.blake2b(each.encode()).digest() for each in parts]
        return b"".join([self._run.state(index), *texts, content_digest(weight.values), content_digest(before)])

    def _remembered(self, stages: list[list[str]]) -> _Kept:
        """What is kept of the reference, anew where the stages are other ones."""
        known: dict[CalibrationData, _Kept] = self._reference.model.memo.setdefault(PairedStages, {})
        kept = known.get(self._data)
        if kept is None or kept.stages != stages:
            names = sorted({name for own in stages for name in own})
            options: dict[str, Any] = {"open_session": self._open_session, "wanted": BATCHES}
            data, sizes = in_batches(self._reference.model, names, self._data, **options)
            known.clear()
            known[self._data] = kept = _Kept(stages, data, sizes, self._reference.model)
        return kept

    def _shown_by_both(self) -> dict[str, list[Source]]:
        """The sources of each weight, by name, where both models have the tensors."""
        known = {out.name for node in self._original.main.graph.nodes for out in node.outputs}
        known |= {each.name for each in self._original.main.graph.inputs}
        found = sources_by_name(self._graph, [each for each in weights(self._graph) if worth_moments(each)])
        return {name: own for name, own in found.items() if own and all(each.tensor in known for each in own)}


def _by_depth(graph: Graph, names: Collection[str]) -> list[list[str]]:
    """The weights in order, those that do not depend on each other together."""
    nodes = {each.name: {id(role.node) for role in each.roles} for each in weights(graph) if each.name in names}
    depth = depths(graph, {node for readers in nodes.values() for node in readers})
    found: dict[int, list[str]] = {}
    for name, readers in nodes.items():
        found.setdefault(min(depth.get(node, 0) for node in readers), []).append(name)
    return [found[each] for each in sorted(found)]


def _on_disk(answer: Answer, scratch: Scratch) -> Answer:
    """The answer with large values mapped."""
    if answer is None or answer[0].nbytes < SPILL_BYTES:
        return answer
    return lent(answer[0], scratch), *answer[1:]
