"""CalibrationData: samples that can be split once, and read in batches as often as wanted.

data = CalibrationData.open("calib.npz", session.inputs, run=session.run)
calibration, verification = data.split(seed=0)
for feeds in calibration.batches(limit=128): ...
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.random_inputs import draw
from onnxcomp.calibration.sample_axes import WHOLE, Cut, find_cut
from onnxcomp.calibration.sources import IN_MEMORY_BYTES, LABELS, Loader, Scratch, find_loaders, source_files
from onnxcomp.errors import CalibrationError, VerificationError
from onnxcomp.files import Inputs
from onnxcomp.runtime import Feeds, Value, ValueSpec

Array = NDArray[Any]
Run = Callable[[Feeds], object]
BATCH_SIZE = 32
MAX_OPEN_GROUPS = 64
BATCH_BYTES = 2**20  # of inputs: what a model makes of them is often a hundred times as large, and must fit the caches
RANDOM_BATCHES = 8
VERIFICATION_SHARE = 0.5
VERIFICATION_MINIMUM = 64
SAFE_CASTS = {("float64", "float32"), ("int32", "int64"), ("int64", "int32")}


@dataclass(frozen=True)
class Group:
    """Arrays that are cut together: one file, one test data set or one feed of a function."""

    name: str
    load: Loader
    cut: Cut


@dataclass(frozen=True)
class Batch:
    """Feeds for one run. ``axes`` says along which axis of which input the ``count`` samples lie."""

    feeds: dict[str, Value]
    labels: Array | None
    count: int
    axes: Mapping[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationData:
    """Samples for a model's inputs, read on the fly.

    order: (samples, 2) int64, group and position of each sample, in the order they are fed.
    batch_size: samples a batch, at most; exactly the model's own batch dimension where that is fixed.
    is_random: drawn from a seed, so that nothing but breakage can be concluded from it.
    notes: what a reader of the results must know (dropped samples, no separate verification part).
    files: what the samples are read from, as it was when they were opened.
    """

    source: str
    inputs: tuple[ValueSpec, ...]
    groups: tuple[Group, ...]
    order: NDArray[np.int64]
    batch_size: int = BATCH_SIZE
    is_random: bool = False
    has_labels: bool = False
    notes: tuple[str, ...] = ()
    files: Inputs = field(default_factory=Inputs, repr=False)
    _scratch: Scratch = field(default_factory=Scratch, repr=False)

    @classmethod
    def open(
        cls,
        source: str | Path,
        inputs: Sequence[ValueSpec],
        *,
        run: Run | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> CalibrationData:
        """The samples in ``source`` for a model with ``inputs`` (``Session.inputs``).

        source: .npz with one array per input and optionally ``labels``; .npy for a single input; a folder
        of either or of ONNX ``test_data_set_*``; ``module:function`` giving one dict or an iterable of
        dicts. run: tries the first batch (``Session.run``); batches get smaller, down to one sample and
        then to whole arrays, until it raises no VerificationError.

        Raises CalibrationError when names, types or shapes do not fit, or no batch of them runs.
        """
        scratch = Scratch()
        groups: list[Group] = []
        notes = []
        labelled = []
        held_bytes = 0
        files = Inputs(source_files(source))
        for name, load in find_loaders(source, inputs, scratch):
            values = load()
            cut = _fitted_cut(name, values, inputs)
            labelled.append(_has_labels(name, values, inputs, cut))
            held_bytes += sum(v.nbytes for v in values.values() if type(v) is np.ndarray)
            # Kept open while there are few and they fit; else read again each time. A memory map costs a
            # file descriptor.
            is_kept = len(groups) < MAX_OPEN_GROUPS and held_bytes <= IN_MEMORY_BYTES
            again = functools.partial(_unchanged, Inputs(source_files(name)), load)
            groups.append(Group(name, functools.partial(dict, values) if is_kept else again, cut))
            if cut.dropped:
                notes.append(f"{name}: {cut.dropped} last samples do not fill a batch of {cut.exact}, dropped")
        if any(labelled) and not all(labelled):
            raise CalibrationError(f"calibration data: only some parts of {source} have labels")
        data = cls(
            source=str(source),
            inputs=tuple(inputs),
            groups=tuple(groups),
            order=_natural_order(groups),
            batch_size=batch_size,
            has_labels=all(labelled),
            notes=tuple(notes),
            files=files,
            _scratch=scratch,
        )
        if not len(data.order):
            raise CalibrationError(f"calibration data: {source} holds no complete batch")
        return data if run is None else data._fitted_to(run)

    @classmethod
    def random(
        cls, inputs: Sequence[ValueSpec], *, seed: int = 0, run: Run, batches: int = RANDOM_BATCHES
    ) -> CalibrationData:
        """Inputs drawn from declared shapes and types: for finding breakage, never for allowing loss.

        Sizes that the model leaves open are tried until ``run`` raises no VerificationError. Raises
        CalibrationError when none of them runs.
        """
        feeds = draw(inputs, seed=seed, run=run, batches=batches)
        shapes = {spec.name: np.shape(feeds[0][spec.name]) for spec in inputs if spec.is_tensor}
        data = cls._of_feeds(feeds, find_cut(shapes, inputs), inputs, seed)
        try:
            run(data.first_sample())
        except VerificationError:
            return cls._of_feeds(feeds, WHOLE, inputs, seed)
        return data

    @classmethod
    def _of_feeds(cls, feeds: Sequence[Feeds], cut: Cut, inputs: Sequence[ValueSpec], seed: int) -> CalibrationData:
        groups = tuple(
            Group(f"random batch {i}", functools.partial(dict, values), cut) for i, values in enumerate(feeds)
        )
        return cls(
            source=f"random inputs, seed {seed}",
            inputs=tuple(inputs),
            groups=groups,
            order=_natural_order(groups),
            is_random=True,
        )

    @classmethod
    def nothing(cls, why: str) -> CalibrationData:
        """No samples at all, for a model that no inputs are known for; ``why`` goes to the notes."""
        none = np.zeros((0, 2), np.int64)
        return cls(source="no inputs", inputs=(), groups=(), order=none, is_random=True, notes=(why,))

    @property
    def sample_count(self) -> int:
        """How many samples there are (of random or uncut data: how many batches)."""
        return len(self.order)

    def split(
        self,
        *,
        seed: int = 0,
        fraction: float = VERIFICATION_SHARE,
        minimum: int = VERIFICATION_MINIMUM,
    ) -> tuple[CalibrationData, CalibrationData]:
        """(calibration, verification): disjoint, both in a shuffled order fixed by ``seed``.

        Verification gets ``fraction`` of the samples, ``minimum`` at least, but never more than half of
        them. One sample alone (or one exact batch) serves both, and the notes say so. Random data, which
        verifies nothing, is not split.
        """
        if self.is_random:
            return self, self
        units = self._shuffled_units(np.random.default_rng(seed))
        if len(units) < 2:
            note = "too few samples to keep some apart: verified on the calibration samples"
            both = replace(self, notes=(*self.notes, note))
            return both, both
        share = max(math.ceil(fraction * len(units)), math.ceil(minimum / len(units[0])))
        share = min(share, len(units) // 2)
        return (
            replace(self, order=np.concatenate(units[share:])),
            replace(self, order=np.concatenate(units[:share])),
        )

    def batches(self, limit: int | None = None) -> Iterator[dict[str, Value]]:
        """Feeds of at most ``batch_size`` samples each, of the first ``limit`` samples."""
        return (batch.feeds for batch in self.labelled_batches(limit))

    def first(self, limit: int) -> CalibrationData:
        """The same data without all but its first ``limit`` samples (of a fixed batch: no incomplete one)."""
        if self.sample_count <= limit or any(group.cut.exact for group in self.groups):
            return self
        return replace(self, order=self.order[:limit])

    def first_sample(self) -> dict[str, Value]:
        """The feeds of the first sample alone (of a fixed batch: of that batch), for measuring latency."""
        return next(self.batches(limit=1))

    def labelled_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """As ``batches``, with the labels and where the samples lie."""
        if not self.groups:
            return
        longest = max(group.cut.exact or 1 for group in self.groups)
        order = self.order if limit is None else self.order[: max(limit, longest)]
        # Samples of one group are brought together, so that batches can be filled.
        order = order[np.argsort(order[:, 0], kind="stable")]
        starts = np.flatnonzero(np.diff(order[:, 0], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            group = self.groups[int(order[start, 0])]
            yield from self._group_batches(group, order[start:stop, 1])

    def _group_batches(self, group: Group, positions: NDArray[np.int64]) -> Iterator[Batch]:
        values = group.load()
        exact = group.cut.exact
        size = exact or self._batch_size(values, group.cut)
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            if exact and len(chosen) < exact:
                return
            yield self._batch(values, group.cut, chosen)

    def _batch(self, values: Mapping[str, Value], cut: Cut, chosen: NDArray[np.int64]) -> Batch:
        feeds = {}
        for spec in self.inputs:
            if spec.name not in values:
                continue
            value = values[spec.name]
            if spec.name in cut.axes:
                value = _taken(value, chosen, cut.axes[spec.name])
            feeds[spec.name] = _as_declared(value, spec)
        labels = None
        if self.has_labels:
            labels = np.asarray(values[LABELS])
            labels = labels[chosen] if cut.axes else labels
        return Batch(feeds, labels, len(chosen), cut.axes)

    def _batch_size(self, values: Mapping[str, Value], cut: Cut) -> int:
        sample_bytes: int = sum(values[name].nbytes // max(cut.count, 1) for name in cut.axes)
        return max(1, min(self.batch_size, BATCH_BYTES // max(sample_bytes, 1)))

    def _shuffled_units(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """All samples shuffled, in units of the batch that their group's model dimension demands."""
        units: list[NDArray[np.int64]] = []
        for number, group in enumerate(self.groups):
            own = rng.permutation(self.order[self.order[:, 0] == number])
            unit = group.cut.exact or 1
            units += [own[i : i + unit] for i in range(0, len(own) - unit + 1, unit)]
        return [units[i] for i in rng.permutation(len(units))]

    def _fitted_to(self, run: Run) -> CalibrationData:
        whole = tuple(replace(group, cut=WHOLE) for group in self.groups)
        tries = [
            self,
            replace(self, batch_size=1, notes=(*self.notes, "the model runs on one sample at a time only")),
        ]
        if not self.has_labels:
            note = "the model does not run on cut arrays: each is fed whole"
            tries.append(replace(self, groups=whole, order=_natural_order(whole), notes=(*self.notes, note)))
        failure: VerificationError | None = None
        for data in tries:
            try:
                run(next(data.batches()))
            except VerificationError as error:
                failure = failure or error
                continue
            return data
        raise CalibrationError(f"calibration data: {self.source}: {failure}") from failure


def _taken(value: Array, chosen: NDArray[np.int64], axis: int) -> Array:
    """Some samples of an array. Of one that is mapped from a file, nothing stays in memory that was read for it."""
    taken: Array = np.take(value, chosen, axis=axis)
    held = getattr(value, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
    return taken


def _unchanged(files: Inputs, load: Loader) -> Mapping[str, Value]:
    """What is loaded, once more, from files that are as they were the first time."""
    files.refuse_changes()
    return load()


def _natural_order(groups: Sequence[Group]) -> NDArray[np.int64]:
    parts = [
        np.stack([np.full(group.cut.count, i), np.arange(group.cut.count)], axis=1) for i, group in enumerate(groups)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 2), np.int64)


def _fitted_cut(name: str, values: Mapping[str, Value], inputs: Sequence[ValueSpec]) -> Cut:
    known = {spec.name for spec in inputs}
    missing = [spec.name for spec in inputs if spec.name not in values and "optional(" not in spec.type]
    extra = [key for key in values if key not in known and key != LABELS]
    if missing or extra:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"has {', '.join(extra)}, which the model does not"] if extra else []
        raise CalibrationError(f"calibration data: {name} {' and '.join(wrong)}")
    for spec in inputs:
        if spec.name in values:
            _check_type(name, values[spec.name], spec)
    shapes = {
        spec.name: np.shape(values[spec.name])
        for spec in inputs
        if spec.is_tensor and isinstance(values.get(spec.name), np.ndarray)
    }
    return find_cut(shapes, inputs)


def _check_type(name: str, value: Value, spec: ValueSpec) -> None:
    if not isinstance(value, np.ndarray) or spec.dtype is None:
        if spec.is_tensor and not isinstance(value, np.ndarray):
            raise CalibrationError(f"calibration data: {name}: input {spec.name} is not an array")
        return
    is_text = spec.dtype == object and value.dtype.kind in "OUS"
    if value.dtype != spec.dtype and not is_text and (value.dtype.name, spec.dtype.name) not in SAFE_CASTS:
        raise CalibrationError(
            f"calibration data: {name}: input {spec.name} is {value.dtype.name}, the model wants {spec.element}"
        )


def _as_declared(value: Value, spec: ValueSpec) -> Value:
    if not isinstance(value, np.ndarray) or spec.dtype is None or value.dtype == spec.dtype:
        return np.ascontiguousarray(value).reshape(value.shape) if isinstance(value, np.ndarray) else value
    if spec.dtype == np.int32 and value.size:
        limits = np.iinfo(np.int32)
        if value.min() < limits.min or value.max() > limits.max:
            raise CalibrationError(f"calibration data: input {spec.name} holds integers beyond int32")
    return value.astype(spec.dtype)


def _has_labels(name: str, values: Mapping[str, Value], inputs: Sequence[ValueSpec], cut: Cut) -> bool:
    if LABELS not in values or any(spec.name == LABELS for spec in inputs):
        return False
    labels = np.asarray(values[LABELS])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        given = f"an array of shape {labels.shape} of {labels.dtype.name}"
        raise CalibrationError(
            f"calibration data: {name}: labels must be integers, the class of each sample, got {given}. "
            "Leave them out to compare the outputs themselves."
        )
    found = len(labels)
    if cut.axes and found != cut.count + cut.dropped:
        raise CalibrationError(f"calibration data: {name} has {found} labels for {cut.count + cut.dropped} samples")
    return True
