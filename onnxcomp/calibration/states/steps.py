"""A model step by step on its own state: the inputs come from the data, the states from the step before.

    feeds 0: x[0], state of the data       -> outputs 0
    feeds 1: x[1], stateN of outputs 0     -> outputs 1 ...

Each sample is one step; samples of sequences that run side by side lie on the sample axis, as in any batch. A sample
with many positions and an empty cache is a whole sequence, and is cut along its positions (see ``window``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.calibration_data import Batch, CalibrationData
from onnxcomp.calibration.states.lanes import LaneBlock, Rows, by_form
from onnxcomp.calibration.states.names import COUNTING, ENCODER
from onnxcomp.calibration.states.states import FIXED, GROWING, State, is_flag
from onnxcomp.errors import VerificationError
from onnxcomp.runtime import Feeds, Value

Array = NDArray[Any]
Run = Callable[[Feeds], Mapping[str, Value]]
MASK = re.compile(r"mask", re.IGNORECASE)
COUNTS_ALL = re.compile(r"total|seq_?lens?", re.IGNORECASE)
# What moves on with each step where a cache has a fixed size; lengths of the input itself do not.
ADVANCING = re.compile(r"position|cache_?pos|past|offset|start_?pos|seqlens_k|total_?seq", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a model with states is run on its data step after step.

    length: how many positions one sample adds to a growing cache. tokens: inputs with an axis that counts these.
    from_empty: growing caches start with no rows, not with those of the data. total_masks: masks count the cache, too.
    """

    data: CalibrationData
    states: tuple[State, ...]
    length: int = 1
    tokens: Mapping[str, int]
    from_empty: bool = False
    total_masks: bool = True

    @classmethod
    def of(cls, data: CalibrationData, states: Sequence[State], run: Run) -> Steps:
        """The steps of the data; the model runs once, to see how much its caches grow. Raises VerificationError."""
        steps = cls(data=data, states=tuple(states), tokens={})
        if not steps.growing:
            return steps
        batch = next(data.labelled_batches(limit=1))
        state = steps.growing[0]
        assert state.axis is not None
        made = np.shape(run(batch.feeds)[state.output])[state.axis]
        steps = replace(steps, length=made - steps.past_length(batch.feeds))
        return replace(steps, tokens=steps._token_axes(batch))

    @classmethod
    def by_length(cls, data: CalibrationData, states: Sequence[State], run: Run, most: int) -> list[Steps]:
        """The steps of each part of the data whose samples have the same shapes, of ``most`` parts."""
        if not any(state.kind == GROWING for state in states):
            return [cls.of(data, states, run)]
        return [cls.of(part, states, run) for part in by_form(data)[:most]]

    @property
    def growing(self) -> tuple[State, ...]:
        """The caches that get longer."""
        return tuple(state for state in self.states if state.kind == GROWING)

    @property
    def side_by_side(self) -> int:
        """How many sequences can run in one batch."""
        cuts = [group.cut for group in self.data.groups]
        if not all(state.input in cut.axes for cut in cuts for state in self.states):
            return 1
        return max(cut.exact or self.data.batch_size for cut in cuts)

    def past_length(self, feeds: Feeds) -> int:
        """How many rows the growing caches in some feeds have; none where a flag says that they are not in use."""
        if any(is_flag(name, value) and not value.any() for name, value in feeds.items()):
            return 0
        return int(np.shape(feeds[self.growing[0].input])[self.growing[0].axis or 0])

    @property
    def has_whole_sequences(self) -> bool:
        """Whether one sample is a sequence of positions from the first on."""
        if not self.growing or self.length < 2 or not self.tokens:
            return False
        return not self.past_length(self.data.first_sample())

    def run(self, run: Run, block: LaneBlock) -> Iterator[tuple[Batch, Mapping[str, Value]]]:
        """Every step's batch, as it was fed, and what ``run`` made of it.

        Raises VerificationError where a cache does not get longer by just the positions that were fed.
        """
        held = {int(group): self.data.groups[group].load() for group in {*np.concatenate(block.lanes)[:, 0].tolist()}}
        carried: dict[str, Value] = {}
        for step in range(block.steps):
            batch = self._gathered(held, block.rows(step))
            carried = {name: _first(value, batch, name) for name, value in carried.items()}
            window = block.windows[step] if block.windows else None
            batch = replace(batch, feeds=self._fed(batch, carried, step, window))
            outputs = run(batch.feeds)
            self._check_growth(batch.feeds, outputs, self.length if window is None else window[1] - window[0])
            yield batch, outputs
            carried = self._carried(batch.feeds, outputs)

    def _check_growth(self, feeds: Feeds, outputs: Mapping[str, Value], positions: int) -> None:
        for state in self.growing:
            before, after = np.shape(feeds[state.input]), np.shape(outputs[state.output])
            axis = state.axis or 0
            if len(after) != len(before) or after[axis] != before[axis] + positions:
                raise VerificationError(
                    f"output {state.output} has shape {list(after)} after {positions} more positions, its input "
                    f"{state.input} {list(before)}"
                )

    def _gathered(self, held: Mapping[int, Mapping[str, Value]], rows: Rows) -> Batch:
        """The samples of some rows as one batch, in their order."""
        if len({*rows[:, 0].tolist()}) == 1:
            return self.data.batch_of(held[int(rows[0, 0])], self.data.groups[rows[0, 0]].cut, rows[:, 1])
        parts = [self.data.batch_of(held[int(g)], self.data.groups[g].cut, np.array([at])) for g, at in rows]
        axes = parts[0].axes
        joined = {name: np.concatenate([part.feeds[name] for part in parts], axis) for name, axis in axes.items()}
        labels = [np.atleast_1d(part.labels) for part in parts if part.labels is not None]
        return Batch({**parts[0].feeds, **joined}, np.concatenate(labels) if labels else None, len(rows), axes)

    def _fed(
        self, batch: Batch, carried: Mapping[str, Value], step: int, window: tuple[int, int] | None
    ) -> dict[str, Value]:
        feeds = {**batch.feeds, **carried}
        if not self.growing:
            return feeds
        before = self.past_length(batch.feeds)
        if not step and (self.from_empty or not before):
            for state in self.growing:
                feeds[state.input] = np.take(feeds[state.input], [], axis=state.axis)
        past = int(np.shape(feeds[self.growing[0].input])[self.growing[0].axis or 0])
        for name, value in batch.feeds.items():
            if name in carried or any(name == state.input for state in self.states):
                continue
            if is_flag(name, value):
                feeds[name] = np.full_like(value, past > 0)
            elif window is not None:
                feeds[name] = self._windowed(name, value, window)
            elif self._is_total_mask(name, value, before):
                feeds[name] = _lengthened(value, self._mask_axes(name, value, before), before, past)
            elif _counts(name, value):
                feeds[name] = value + np.asarray(past - before, value.dtype)
        return feeds

    def _windowed(self, name: str, value: Value, window: tuple[int, int]) -> Value:
        start, stop = window
        if self._is_total_mask(name, value, 0):
            last, query = self._mask_axes(name, value, 0)
            value = np.take(value, range(stop), last)
            return value if query is None else np.take(value, range(start, stop), query)
        if name in self.tokens:
            return np.take(value, range(start, stop), self.tokens[name])
        if _counts(name, value):
            return value + np.asarray(stop - self.length if COUNTS_ALL.search(name) else start, value.dtype)
        return value

    def _carried(self, feeds: Feeds, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """What the next step takes from this one."""
        after = {name: value for name, value in feeds.items() if self.growing and ENCODER.search(name)}
        if not self.growing:  # a cache of fixed size that is written at a position
            places = [name for name, value in feeds.items() if _counts(name, value) and ADVANCING.search(name)]
            after |= {name: feeds[name] + np.asarray(1, feeds[name].dtype) for name in places}
        is_unused = any(is_flag(name, value) and not value.any() for name, value in feeds.items())
        for state in self.states:
            is_kept = state.kind == FIXED and not is_unused and bool(np.size(feeds[state.input]))
            after[state.input] = feeds[state.input] if is_kept else outputs[state.output]
        return after

    def _token_axes(self, batch: Batch) -> dict[str, int]:
        """Of each input that is no state and no mask, the axis that counts the positions of a sample."""
        found = {}
        for spec in self.data.inputs:
            value = batch.feeds.get(spec.name)
            if not isinstance(value, np.ndarray) or any(spec.name == state.input for state in self.states):
                continue
            if ENCODER.search(spec.name):
                continue
            axes = self._open_axes(spec.name, value, self.length)
            if axes:
                found[spec.name] = axes[0]
        return found

    def _is_total_mask(self, name: str, value: Value, past: int) -> bool:
        is_mask = bool(MASK.search(name)) and not ENCODER.search(name) and isinstance(value, np.ndarray)
        return is_mask and self.total_masks and bool(self._open_axes(name, value, past + self.length))

    def _mask_axes(self, name: str, value: Array, past: int) -> tuple[int, int | None]:
        """The axis of a mask that counts all positions, and the one before it that counts the new ones, if any."""
        total = self._open_axes(name, value, past + self.length)[-1]
        query = [axis for axis in self._open_axes(name, value, self.length) if axis < total]
        return total, query[-1] if query and self.length > 1 else None

    def _open_axes(self, name: str, value: Array, size: int) -> list[int]:
        """The axes of an input that are so long, may be of any length, and do not count samples."""
        [spec] = [each for each in self.data.inputs if each.name == name]
        samples = {group.cut.axes.get(name) for group in self.data.groups}
        return [
            axis
            for axis, length in enumerate(value.shape)
            if length == size and axis not in samples and not isinstance(spec.shape[axis], int)
        ]


def _first(value: Value, batch: Batch, name: str) -> Value:
    """What is carried on for as many sequences as there are in the batch."""
    axis = batch.axes.get(name)
    if axis is None or value.shape[axis] <= batch.count:
        return value
    return np.take(value, range(batch.count), axis)


def _counts(name: str, value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu" and bool(COUNTING.search(name))


def _lengthened(mask: Array, axes: tuple[int, int | None], before: int, past: int) -> Array:
    """A mask over ``before`` old positions for ``past`` of them, all of which are seen as the last position is."""
    axis, query = axes
    seen = np.take(mask, [-1], axis)
    if query is not None:
        seen = np.repeat(np.take(seen, [-1], query), mask.shape[query], query)
    new = np.take(mask, range(before, mask.shape[axis]), axis)
    return np.concatenate([np.repeat(seen, past, axis), new], axis)
