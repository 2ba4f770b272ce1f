"""CalibrationData: samples that can be split once, and read in batches as often as wanted.

data = CalibrationData.open("calib.npz", session.inputs, run=session.run)
calibration, verification = data.split(seed=0)
for feeds in calibration.batches(limit=128): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.asked_shapes import resized, with_shapes
from onnxcomp.calibration.data.groups import Group, natural_order, read_groups
from onnxcomp.calibration.data.in_memory import Held, described, held_loaders, is_named
from onnxcomp.calibration.data.random_inputs import draw
from onnxcomp.calibration.data.sample_axes import WHOLE, Cut, find_cut
from onnxcomp.calibration.data.samples import as_declared, digests, taken
from onnxcomp.calibration.data.sequences import Sequences, as_steps, is_numbered_folder
from onnxcomp.calibration.data.sources import LABELS, ArrayScratch, find_loaders, source_files
from onnxcomp.calibration.data.splitting import divided
from onnxcomp.errors import CalibrationError, VerificationError
from onnxcomp.files import Inputs
from onnxcomp.runtime import Feeds, Value, ValueSpec

Array = NDArray[Any]
Run = Callable[[Feeds], object]
BATCH_SIZE = 32
BATCH_BYTES = 2**20  # of inputs: what a model makes of them is often a hundred times as large, and must fit the caches
RANDOM_BATCHES = 8
FEW_RANDOM_BATCHES = 4  # of a large model: each runs five times, and what breaks shows in the first
VERIFICATION_SHARE = 0.5
VERIFICATION_MINIMUM = 64


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
    timed: what latencies are measured on, where its shapes were asked for; the first sample otherwise.
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
    scratch: ArrayScratch = field(default_factory=ArrayScratch, repr=False)
    timed: Mapping[str, Value] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        source: str | Path | Held | Sequences,
        inputs: Sequence[ValueSpec],
        *,
        run: Run | None = None,
        tried: int | None = None,
        batch_size: int = BATCH_SIZE,
        states: Collection[str] = (),
        not_samples: Mapping[str, frozenset[int]] | None = None,
    ) -> CalibrationData:
        """The samples in ``source`` for a model with ``inputs`` (``Session.inputs``).

        source: .npz with one array per input and optionally ``labels``; .npy for a single input; a folder
        of either or of ONNX ``test_data_set_*``; ``module:function`` giving one dict or an iterable of
        dicts; arrays by input name, an array for a single input, an iterable of such or a function that gives one;
        ``Sequences`` of these. states: inputs that may be left out, since they start at zero. With
        states, a folder of numbered .npz is one of sequences, whose steps lie along the samples' axis.
        run: tries the first batch (``Session.run``), or as many samples of it as ``tried`` says; batches get smaller,
        down to one sample and then to whole arrays, until it raises no VerificationError. not_samples: axes of inputs
        that cannot hold the samples (``graph.time_axes``).

        Raises CalibrationError when names, types or shapes do not fit, or no batch of them runs.
        """
        scratch = ArrayScratch()
        path, axis = (source.source, source.axis) if isinstance(source, Sequences) else (source, None)
        files = Inputs(source_files(path) if is_named(path) else [])
        read = functools.partial(as_steps, inputs=inputs, axis=axis, states=states)
        loaders = find_loaders(path, inputs, scratch) if is_named(path) else held_loaders(path, inputs, scratch)
        is_stepped = bool(states) or axis is not None
        groups, labelled = read_groups(loaders, read, inputs, not_samples, is_stepped=is_stepped)
        if any(labelled) and not all(labelled):
            raise CalibrationError(f"calibration data: only some parts of {described(path)} have labels")
        if states and axis is None and is_numbered_folder(path) and any(group.cut.count > 1 for group in groups):
            groups = [replace(each, sequences=np.full(each.cut.count, i)) for i, each in enumerate(groups)]
        data = cls(
            source=described(path),
            inputs=tuple(inputs),
            groups=tuple(groups),
            order=natural_order(groups),
            batch_size=batch_size,
            has_labels=all(labelled),
            notes=_dropped(groups),
            files=files,
            scratch=scratch,
        )
        if not len(data.order):
            raise CalibrationError(f"calibration data: {described(path)} holds no complete batch")
        fitted = data if run is None else data._fitted_to(run, tried)
        is_choice = any(group.cut.is_choice for group in fitted.groups)
        return replace(fitted, notes=(*fitted.notes, fitted.axes_in_words)) if is_choice else fitted

    @classmethod
    def random(
        cls,
        inputs: Sequence[ValueSpec],
        *,
        seed: int = 0,
        run: Run,
        batches: int = RANDOM_BATCHES,
        not_samples: Mapping[str, frozenset[int]] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> CalibrationData:
        """Inputs drawn from declared shapes and types: for finding breakage, never for allowing loss.

        Sizes that the model leaves open are tried until ``run`` raises no VerificationError. shapes: of these inputs,
        as the user wants them. Raises CalibrationError when none of them runs, ParameterError for shapes that the
        model cannot have.
        """
        drawn = with_shapes(inputs, shapes or {})
        feeds = draw(drawn, seed=seed, run=run, batches=batches)
        found = {spec.name: np.shape(feeds[0][spec.name]) for spec in inputs if spec.is_tensor}
        data = cls._of_feeds(feeds, find_cut(found, inputs, not_samples), inputs, seed)
        try:
            run(data.first_sample())
        except VerificationError:
            data = cls._of_feeds(feeds, WHOLE, inputs, seed)
        return replace(data, timed=feeds[0]) if shapes else data

    def timed_at(self, shapes: Mapping[str, Sequence[int]], run: Run) -> CalibrationData:
        """The same, with latencies measured at these shapes: on the first sample, repeated or cut to them.

        Raises ParameterError for shapes that the model cannot have, CalibrationError where it does not run at them.
        """
        timed = resized(self.first_sample(), with_shapes(self.inputs, shapes))
        try:
            run(timed)
        except VerificationError as error:
            raise CalibrationError(f"--input-shape: the model does not run at these shapes: {error}") from error
        return replace(self, timed=timed)

    @classmethod
    def _of_feeds(cls, feeds: Sequence[Feeds], cut: Cut, inputs: Sequence[ValueSpec], seed: int) -> CalibrationData:
        groups = tuple(
            Group(f"random batch {i}", functools.partial(dict, values), cut) for i, values in enumerate(feeds)
        )
        return cls(
            source=f"random inputs, seed {seed}",
            inputs=tuple(inputs),
            groups=groups,
            order=natural_order(groups),
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

    @property
    def axes_in_words(self) -> str:
        """Where the samples lie: "samples: axis 1 of x (96), axis 0 of mask"; of several files as in the first."""
        cut = self.groups[0].cut if self.groups else WHOLE
        if not cut.axes:
            return "samples: none are told apart, arrays are fed whole"
        (first, axis), *others = cut.axes.items()
        count = sum(group.cut.count for group in self.groups)
        rest = "".join(f", axis {at} of {name}" for name, at in others)
        return f"samples: axis {axis} of {first} ({count}){rest}"

    def split(
        self,
        *,
        seed: int = 0,
        fraction: float = VERIFICATION_SHARE,
        minimum: int = VERIFICATION_MINIMUM,
    ) -> tuple[CalibrationData, CalibrationData]:
        """(calibration, verification): disjoint, both in a shuffled order fixed by ``seed``.

        Verification gets ``fraction`` of the distinct samples, ``minimum`` at least, but never more than half
        of them; equal samples are never on both sides, and steps of one sequence only where sequences are few.
        One content alone (or one exact batch) serves both, and the notes say so. Random data, which
        verifies nothing, is not split.
        """
        if self.is_random:
            return self, self
        parts = divided(self.groups, self.order, self._contents, np.random.default_rng(seed), fraction, minimum)
        if isinstance(parts, str):
            both = replace(self, notes=(*self.notes, f"{parts}: verified on the calibration samples"))
            return both, both
        return replace(self, order=parts[0]), replace(self, order=parts[1])

    @property
    def are_sequences(self) -> bool:
        """Whether the samples are steps of sequences, in order within each (see ``Group.sequences``)."""
        return bool(self.groups) and all(group.sequences is not None for group in self.groups)

    @property
    def distinct_count(self) -> int:
        """How many of the samples differ in what is fed (of random or uncut data: how many batches)."""
        return len(np.unique(self._contents))

    @functools.cached_property
    def _contents(self) -> NDArray[np.int64]:
        """(samples,) int64, equal for samples of equal content."""
        numbers: dict[bytes, int] = {}
        contents = np.zeros(len(self.order), np.int64)
        for i, group in enumerate(self.groups):
            here = np.flatnonzero(self.order[:, 0] == i)
            here = here[np.argsort(self.order[here, 1], kind="stable")]
            if len(here):
                found = digests(group.load(), group.cut, self.inputs, self.order[here, 1])
                contents[here] = [numbers.setdefault(each, len(numbers)) for each in found]
        return contents

    def batches(self, limit: int | None = None) -> Iterator[dict[str, Value]]:
        """Feeds of at most ``batch_size`` samples each, of the first ``limit`` samples."""
        return (batch.feeds for batch in self.labelled_batches(limit))

    def first(self, limit: int) -> CalibrationData:
        """The same data without all but its first ``limit`` samples (of a fixed batch: no incomplete one)."""
        if self.sample_count <= limit or any(group.cut.exact for group in self.groups):
            return self
        return replace(self, order=self.order[:limit])

    def first_sample(self) -> dict[str, Value]:
        """The feeds of the first sample alone (of a fixed batch: of that batch)."""
        return next(self.batches(limit=1))

    def timed_sample(self) -> dict[str, Value]:
        """The feeds that latencies are measured on."""
        return self.first_sample() if self.timed is None else dict(self.timed)

    def timed_shapes(self) -> dict[str, list[int]]:
        """The shapes of the tensors that latencies are measured on, by input."""
        feeds = self.timed_sample() if self.groups else {}
        return {name: list(value.shape) for name, value in feeds.items() if isinstance(value, np.ndarray)}

    @property
    def shapes_from(self) -> str:
        """Where those shapes come from."""
        if self.timed is not None:
            return "--input-shape"
        if not self.is_random:
            return "calibration data"
        open_axes = {axis for spec in self.inputs for axis, dim in enumerate(spec.shape) if not isinstance(dim, int)}
        unranked = any(not spec.shape and self.timed_shapes().get(spec.name) for spec in self.inputs)
        if open_axes - {0} or unranked:
            return "guessed"
        return "the model, a batch of one" if open_axes else "the model"

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
            yield self.batch_of(values, group.cut, chosen)

    def batch_of(self, values: Mapping[str, Value], cut: Cut, chosen: NDArray[np.int64]) -> Batch:
        """The samples at these places of a group's arrays."""
        feeds = {}
        for spec in self.inputs:
            if spec.name not in values:
                continue
            value = values[spec.name]
            if spec.name in cut.axes:
                value = taken(value, chosen, cut.axes[spec.name])
            feeds[spec.name] = as_declared(value, spec)
        labels = None
        if self.has_labels:
            labels = np.asarray(values[LABELS])
            labels = labels[chosen] if cut.axes else labels
        return Batch(feeds, labels, len(chosen), cut.axes)

    def _batch_size(self, values: Mapping[str, Value], cut: Cut) -> int:
        sample_bytes: int = sum(values[name].nbytes // max(cut.count, 1) for name in cut.axes)
        return max(1, min(self.batch_size, BATCH_BYTES // max(sample_bytes, 1)))

    def _fitted_to(self, run: Run, tried: int | None) -> CalibrationData:
        whole = tuple(replace(group, cut=WHOLE, sequences=None) for group in self.groups)
        tries = [
            self,
            replace(self, batch_size=1, notes=(*self.notes, "the model runs on one sample at a time only")),
        ]
        if not self.has_labels:
            note = "the model does not run on cut arrays: each is fed whole"
            tries.append(replace(self, groups=whole, order=natural_order(whole), notes=(*self.notes, note)))
        failure: VerificationError | None = None
        for data in tries:
            try:
                run(next(data.batches(limit=tried)))
                if any(axis for group in data.groups[:1] for axis in group.cut.axes.values()):
                    run(data.first_sample())  # all along an axis may run that holds no samples
            except VerificationError as error:
                failure = failure or error
                continue
            return data
        raise CalibrationError(f"calibration data: {self.source}: {failure}") from failure


def _dropped(groups: Sequence[Group]) -> tuple[str, ...]:
    """A note for each group of arrays whose last samples fill no batch."""
    return tuple(
        f"{each.name}: {each.cut.dropped} last samples do not fill a batch of {each.cut.exact}, dropped"
        for each in groups
        if each.cut.dropped
    )
