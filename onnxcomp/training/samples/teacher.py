"""What the original gives for training samples: computed once and kept while it fits, else once for every batch.

Samples that are drawn anew at each step are asked about at each step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.statistics.watch import opened_somehow
from onnxcomp.graph.extract import up_to
from onnxcomp.model import Model
from onnxcomp.model_source import ModelSource
from onnxcomp.runtime import Feeds, Session
from onnxcomp.training.samples.stream import Chunk

Array = NDArray[Any]
OpenSession = Callable[[ModelSource], Session]

KEPT_BYTES = 512 * 2**20


@dataclass(eq=False)
class Teacher:
    """A model whose tensors are asked for, sample by sample.

    names: of tensors of its main graph. by_sample: whether their first axis counts the samples, so that each can be
    remembered by itself, in ``kept_bytes`` together.
    """

    model: Model
    names: Sequence[str]
    open_session: OpenSession
    by_sample: bool = False
    kept_bytes: int = KEPT_BYTES
    _kept: dict[tuple[int, int], tuple[Array, ...]] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    @contextlib.contextmanager
    def opened(self) -> Any:
        """Ready to be asked."""
        with up_to(self.model, self.names).opened_on(functools.partial(opened_somehow, self.open_session)) as session:
            self._session = session
            yield self

    def targets(self, chunk: Chunk) -> dict[str, Array]:
        """Its tensors for the samples of a chunk, by name; those of drawn samples are not kept."""
        if chunk.is_drawn:
            return self.run(chunk.batch.feeds)
        places = [(int(group), int(place)) for group, place in chunk.rows]
        known = [self._kept.get(place) for place in places]
        if all(each is not None for each in known):
            stacked = zip(*(each for each in known if each is not None), strict=True)
            return {name: np.stack(values) for name, values in zip(self.names, stacked, strict=True)}
        found = self.run(chunk.batch.feeds)
        self._keep(places, found)
        return found

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Its tensors for any inputs."""
        return {name: np.asarray(each) for name, each in self._session.run(feeds, list(self.names)).items()}

    def _keep(self, places: Sequence[tuple[int, int]], found: Mapping[str, Array]) -> None:
        """Remember what belongs to single samples, while there is room."""
        size = sum(each.nbytes for each in found.values())
        if not self.by_sample or self._bytes + size > self.kept_bytes:
            return
        self._bytes += size
        rows = [np.array(found[name]) for name in self.names]
        for at, place in enumerate(places):
            self._kept[place] = tuple(each[at] for each in rows)


def is_by_sample(teacher: Teacher, chunk: Chunk, whole: Mapping[str, Array]) -> bool:
    """Whether the first axis of all that the teacher gives counts the samples, and these do not see each other."""
    count = chunk.batch.count
    if count < 2 or not chunk.batch.axes:
        return False
    feeds = {
        name: np.take(value, range(1), axis=chunk.batch.axes[name]) if name in chunk.batch.axes else value
        for name, value in chunk.batch.feeds.items()
    }
    first = teacher.run(feeds)
    return all(
        each.ndim > 0 and each.shape[0] == count and first[name].shape[:1] == (1,) for name, each in whole.items()
    )
