"""Samples that no file has, made of those of a step anew each time; the teacher answers for just these.

    mirror   left and right exchanged, for every other picture
    shift    a picture moved by up to so many pixels along both axes, its edge repeated where it is gone
    mixup    x <- l x + (1 - l) x',  l ~ Beta(a, a), x' another sample of the step

Mixup is Zhang et al. 2018 (https://arxiv.org/abs/1710.09412). That teacher and student see the very same input, however
far from a real one, is the function matching of Beyer et al. 2022 (https://arxiv.org/abs/2106.05237): what the original
gives for few samples is soon known by heart, what it does between them is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import Batch
from onnxcomp.training.samples.stream import Chunk, Mixture

Array = NDArray[Any]
Plane = tuple[int, int]

DRAWN = 1  # tells the numbers drawn here from those of the order of samples
ALONE = "a step runs one sample: there is none to mix it with"


@dataclass(frozen=True)
class Variation:
    """mixup: a of Beta(a, a), 0 for none; 1 is uniform, less stays nearer to the samples. shift: pixels. planes: the
    axes (height, width) of each input that is a picture. seed: with the step's number it says all that is drawn."""

    mixup: float = 0.0
    shift: int = 0
    mirror: bool = False
    planes: Mapping[str, Plane] = field(default_factory=dict)
    seed: int = 0

    @property
    def is_none(self) -> bool:
        """Whether samples stay what they are."""
        return not self.mixup and not self.planes_vary

    @property
    def planes_vary(self) -> bool:
        """Whether pictures are moved or mirrored."""
        return bool(self.planes) and (self.shift > 0 or self.mirror)

    def varied(self, chunks: Sequence[Chunk], step: int) -> list[Chunk]:
        """The chunks of a step as they are run."""
        if self.is_none:
            return list(chunks)
        rng = np.random.default_rng([self.seed, step, DRAWN])
        made = [self._displaced(each, rng) for each in chunks] if self.planes_vary else list(chunks)
        return [self._mixed(each, made, rng) for each in made] if self.mixup else made

    def _displaced(self, chunk: Chunk, rng: np.random.Generator) -> Chunk:
        """Its pictures moved and mirrored, all inputs of a sample alike."""
        count = chunk.batch.count
        moves = rng.integers(-self.shift, self.shift, (count, 2), endpoint=True)
        turned = rng.random(count) < 0.5 if self.mirror else np.zeros(count, bool)
        feeds = dict(chunk.batch.feeds)
        for name, plane in self.planes.items():
            if chunk.batch.axes.get(name) == 0:
                feeds[name] = displaced(np.asarray(feeds[name]), plane, moves, turned)
        return dataclasses.replace(chunk, batch=dataclasses.replace(chunk.batch, feeds=feeds), is_drawn=True)

    def _mixed(self, chunk: Chunk, chunks: Sequence[Chunk], rng: np.random.Generator) -> Chunk:
        """Each sample mixed with one of a chunk of the same form, which may be its own."""
        alike = [each for each in chunks if _form(each.batch) == _form(chunk.batch)]
        other = alike[int(rng.integers(len(alike)))]
        partners = rng.permutation(other.batch.count)
        shares = rng.beta(self.mixup, self.mixup, chunk.batch.count)
        feeds = {
            name: mixed(np.asarray(value), np.asarray(other.batch.feeds[name]), partners, shares, axis)
            if (axis := chunk.batch.axes.get(name)) is not None
            else value
            for name, value in chunk.batch.feeds.items()
        }
        labels = None if other.batch.labels is None else np.asarray(other.batch.labels)[partners]
        batch = dataclasses.replace(chunk.batch, feeds=feeds)
        return Chunk(batch, chunk.rows, is_drawn=True, mixture=Mixture(shares, labels))


def mixed(values: Array, others: Array, partners: Array, shares: Array, axis: int) -> Array:
    """shares * values + (1 - shares) * others[partners] along an axis, in the type of the values. partners, shares:
    (samples,)."""
    shape = [1] * values.ndim
    shape[axis] = -1
    kind = np.promote_types(values.dtype, np.float32)
    own = shares.reshape(shape).astype(kind)
    taken = np.take(others, partners, axis=axis)
    return np.asarray(taken + own * (values - taken), values.dtype)


def displaced(values: Array, plane: Plane, moves: Array, turned: Array) -> Array:
    """Pictures (samples, ...) moved by ``moves`` (samples, 2) pixels along the plane's axes, the edge repeated, those
    that are ``turned`` (samples,) mirrored along its second one."""
    height, width = (values.shape[axis] for axis in plane)
    made = np.empty_like(values)
    for at, ((down, right), is_turned) in enumerate(zip(moves.tolist(), turned.tolist(), strict=True)):
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        taken = np.take(values[at], rows, axis=plane[0] - 1)
        made[at] = np.take(taken, columns[::-1] if is_turned else columns, axis=plane[1] - 1)
    return made


def mixing_obstacle(chunks: Sequence[Chunk]) -> tuple[str, str] | None:
    """(input, why its samples cannot be mixed), None where all can."""
    for chunk in chunks:
        for name in chunk.batch.axes:
            value = chunk.batch.feeds[name]
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                return name, f"it is {kind}, of which there is nothing between two samples: they are not mixed"
    if sum(chunk.batch.count for chunk in chunks) < 2 or not any(chunk.batch.axes for chunk in chunks):
        return next(iter(chunks[0].batch.feeds)), ALONE
    return None


def _form(batch: Batch) -> Any:
    """Equal for batches whose samples can be mixed."""
    feeds = ((name, batch.feeds[name]) for name in sorted(batch.axes))
    return batch.count, tuple((name, np.asarray(each).shape) for name, each in feeds)
