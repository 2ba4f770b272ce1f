"""Samples in batches, in an order that the seed fixes, across files, with no more of them in memory than a few files.

    blocks, shuffled -> windows of blocks that fit in the room -> the samples of a window, shuffled -> batches

A block is a file, or some samples that stand side by side in an array that is mapped from one: samples read one by one
would each cost a read of the disk. Where all fits in one window every sample may follow on every other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import Batch, CalibrationData, Group
from onnxcomp.calibration.data.sources import LABELS
from onnxcomp.runtime import Value

Array = NDArray[Any]
Rows = NDArray[np.int64]  # (n, 2): group and position of each sample

ROOM_BYTES = 256 * 2**20  # of arrays that are held at once
BLOCK_BYTES = 2**20  # of mapped arrays that are read at once
LOOKED_AT = 64  # groups of which it is asked whether their arrays are mapped: of more, each is small
HELD_SHARE = 0.1
LEAST_HELD, MOST_HELD = 32, 2048
LEAST_SAMPLES = 16  # fewer teach nothing that holds elsewhere


@dataclass(frozen=True, eq=False)
class Mixture:
    """Samples that are mixed with others: the share of their own, (samples,) 0 to 1, and the labels of the others."""

    shares: Array
    labels: Array | None = None

    def between(self, start: int, stop: int) -> Mixture:
        """That of some samples that stand side by side."""
        return Mixture(self.shares[start:stop], None if self.labels is None else self.labels[start:stop])


@dataclass(frozen=True, eq=False)
class Chunk:
    """Samples that are run at once, and where they come from.

    is_drawn: they are no longer what is there, so that nothing about them is worth keeping. mixture: with what.
    """

    batch: Batch
    rows: Rows
    is_drawn: bool = False
    mixture: Mixture | None = None


Vary = Callable[[Sequence[Chunk], int], Sequence[Chunk]]


@dataclass(eq=False)
class TrainingStream:
    """Epochs of batches of ``batch_size`` samples; each epoch in an order of its own.

    A batch comes as one chunk, or as several where a fixed batch, a limit of ``most`` samples at once or arrays of
    different shapes demand it. vary: what becomes of the samples of a step, before they are limited to so many.
    """

    data: CalibrationData
    batch_size: int
    seed: int
    most: int = 2**31
    vary: Vary = lambda chunks, step: chunks
    room_bytes: int = ROOM_BYTES
    _bytes: int = 0
    _held: OrderedDict[tuple[int, int], Mapping[str, Value]] = field(default_factory=OrderedDict, repr=False)

    @property
    def batches_in_epoch(self) -> int:
        """How many batches an epoch has."""
        return max(1, -(-len(self.data.order) // self.batch_size))

    def batch(self, step: int) -> list[Chunk]:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.batches_in_epoch)
        rows = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        varied = self.vary(list(self._whole(rows)), step)
        return [piece for each in varied for piece in self._limited(each)]

    def in_order(self) -> Iterator[Chunk]:
        """All samples once, file by file."""
        order = self.data.order[np.argsort(self.data.order[:, 0], kind="stable")]
        for start in range(0, len(order), self.batch_size):
            yield from self.chunks(order[start : start + self.batch_size])

    def chunks(self, rows: Rows) -> Iterator[Chunk]:
        """The samples in as few runs as can be."""
        for each in self._whole(rows):
            yield from self._limited(each)

    def _whole(self, rows: Rows) -> Iterator[Chunk]:
        parts: dict[Any, list[tuple[Batch, Rows]]] = {}
        blocks = rows[:, 1] // self._blocks[rows[:, 0]]
        for number, block in dict.fromkeys(zip(rows[:, 0].tolist(), blocks.tolist(), strict=True)):
            own, group = rows[(rows[:, 0] == number) & (blocks == block)], self.data.groups[number]
            for some in self._cut(own, group):
                inside = some[:, 1] - block * self._blocks[number]
                made = self.data.batch_of(self._values(number, block), group.cut, inside)
                parts.setdefault(_form(made, number, group), []).append((made, some))
        for several in parts.values():
            whole = joined([batch for batch, _ in several])
            yield Chunk(whole, np.concatenate([each for _, each in several]))

    def _cut(self, rows: Rows, group: Group) -> Iterator[Rows]:
        """Samples of one group in such numbers as its model dimension demands; incomplete ones are left out."""
        exact = group.cut.exact
        if exact is None:
            yield rows
            return
        for start in range(0, len(rows) - exact + 1, exact):
            yield rows[start : start + exact]

    def _limited(self, chunk: Chunk) -> Iterator[Chunk]:
        """A chunk in pieces of ``most`` samples at most."""
        if chunk.batch.count <= self.most or not chunk.batch.axes:
            yield chunk
            return
        for start in range(0, chunk.batch.count, self.most):
            rows = chunk.rows[start : start + self.most]
            stop = start + len(rows)
            mixture = None if chunk.mixture is None else chunk.mixture.between(start, stop)
            yield Chunk(_piece(chunk.batch, start, stop), rows, chunk.is_drawn, mixture)

    @functools.cached_property
    def _blocks(self) -> Rows:
        """(groups,) how many samples side by side a block of each group has."""
        sizes = [max(1, each.cut.count) for each in self.data.groups]
        for number, group in enumerate(self.data.groups if len(sizes) <= LOOKED_AT else ()):
            arrays = group.load()
            if group.cut.axes and not group.cut.exact and any(isinstance(each, np.memmap) for each in arrays.values()):
                sample = sum(arrays[name].nbytes // max(1, group.cut.count) for name in group.cut.axes)
                sizes[number] = max(1, BLOCK_BYTES // max(1, sample))
        return np.array(sizes, np.int64)

    def _values(self, number: int, block: int) -> Mapping[str, Value]:
        """The arrays of a block, read once while they are in the window."""
        key = number, block
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        group, size = self.data.groups[number], int(self._blocks[number])
        values = group.load()
        if size < group.cut.count:
            values = _between(values, group, block * size, (block + 1) * size)
        self._held[key] = values
        self._bytes += _held_bytes(values)
        while len(self._held) > 1 and self._bytes > self.room_bytes:
            self._bytes -= _held_bytes(self._held.popitem(last=False)[1])
        return values

    def _order(self, epoch: int) -> Rows:
        """The samples of an epoch in their order; the last one is remembered."""
        if getattr(self, "_epoch", None) != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled = _windowed(self.data, self._blocks, rng, self._blocks_at_once)
            self._epoch = epoch
        return self._shuffled

    @functools.cached_property
    def _blocks_at_once(self) -> int:
        """How many blocks fit in the room, by the size of the first."""
        number, place = self.data.order[0].tolist()
        size = _held_bytes(self._values(number, place // int(self._blocks[number])))
        return max(1, self.room_bytes // max(1, size))


def held_out(data: CalibrationData, seed: int, *, share: float = HELD_SHARE) -> tuple[CalibrationData, CalibrationData]:
    """(the samples to train on, those to stop by): disjoint in what is fed, drawn by the seed. Where they are too few
    to keep some apart, the same for both."""
    wanted = min(MOST_HELD, max(LEAST_HELD, int(share * data.sample_count)))
    if data.sample_count <= EXACT_SPLIT:
        return data.split(seed=seed, fraction=wanted / max(1, data.sample_count), minimum=1)
    order = data.order[np.random.default_rng(seed).permutation(len(data.order))]
    return dataclasses.replace(data, order=order[wanted:]), dataclasses.replace(data, order=order[:wanted])


EXACT_SPLIT = 20_000  # samples: of more, equal ones are not looked for, since that reads them all


def _windowed(data: CalibrationData, sizes: Rows, rng: np.random.Generator, at_once: int) -> Rows:
    """The rows of ``data.order`` shuffled within windows of so many blocks, which are shuffled themselves. sizes: how
    many samples a block of each group has."""
    counts = np.array([-(-each.cut.count // size) for each, size in zip(data.groups, sizes, strict=True)], np.int64)
    first = np.cumsum(counts) - counts
    mixed = _in_units(data, data.order[rng.permutation(len(data.order))], rng)
    blocks = first[mixed[:, 0]] + mixed[:, 1] // sizes[mixed[:, 0]]
    window_of = np.zeros(int(counts.sum()) + 1, np.int64)
    used = rng.permutation(np.unique(blocks))
    window_of[used] = np.arange(len(used)) // max(1, at_once)
    shuffled: Rows = mixed[np.argsort(window_of[blocks], kind="stable")]
    return shuffled


def _between(values: Mapping[str, Value], group: Group, start: int, stop: int) -> Mapping[str, Value]:
    """The samples of a group from one to another, in memory."""
    return {
        name: np.array(np.moveaxis(np.moveaxis(each, group.cut.axes[name], 0)[start:stop], 0, group.cut.axes[name]))
        if name in group.cut.axes
        else (each[start:stop] if name == LABELS else each)
        for name, each in values.items()
    }


def _in_units(data: CalibrationData, rows: Rows, rng: np.random.Generator) -> Rows:
    """The rows with those of one group side by side that make a batch of the size that it demands."""
    demanded = {number: data.groups[number].cut.exact or 1 for number in np.unique(rows[:, 0]).tolist()}
    if all(size == 1 for size in demanded.values()):
        return rows
    units = []
    for number, size in demanded.items():
        own = rows[rows[:, 0] == number]
        units += [own[at : at + size] for at in range(0, len(own) - size + 1, size)]
    return np.concatenate([units[each] for each in rng.permutation(len(units))])


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of the same shapes as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    feeds = {
        name: np.concatenate([each.feeds[name] for each in batches], axis=first.axes[name])
        if name in first.axes
        else value
        for name, value in first.feeds.items()
    }
    labels = None if first.labels is None else np.concatenate([np.asarray(each.labels) for each in batches])
    return Batch(feeds, labels, sum(each.count for each in batches), first.axes)


def _piece(batch: Batch, start: int, stop: int) -> Batch:
    feeds = {
        name: np.take(value, range(start, stop), axis=batch.axes[name]) if name in batch.axes else value
        for name, value in batch.feeds.items()
    }
    labels = None if batch.labels is None else batch.labels[start:stop]
    return Batch(feeds, labels, stop - start, batch.axes)


def _form(batch: Batch, number: int, group: Group) -> Any:
    """Equal for batches that can be fed as one: a fixed batch, or what goes along uncut, cannot."""
    if group.cut.exact or any(name not in batch.axes for name in batch.feeds):
        return number, id(batch)
    return tuple(
        (name, value.dtype.str, *np.delete(value.shape, batch.axes[name]).tolist())
        for name, value in sorted(batch.feeds.items())
    )


def _held_bytes(values: Mapping[str, Value]) -> int:
    """Bytes in memory: mapped arrays take none."""
    return sum(each.nbytes for each in values.values() if type(each) is np.ndarray)
