"""What a pass may ask for beside the graph."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.contract.outcome import Outcome

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.calibration import CalibrationData
    from onnxcomp.calibration.statistics.moments import Moments
    from onnxcomp.graph.ir.reader import Graph
    from onnxcomp.graph.weights.roles import Weight
    from onnxcomp.model import Model
    from onnxcomp.target import Target


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, as names with brackets are their own, or is of its kind (shell style)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _no_progress(done: int, total: int, what: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Context:
    """What a pass may ask for beside the graph.

    seed: the only source of randomness (``rng``).
    exclude: patterns (shell style) of weight and node names to leave alone.
    include: where given, only these exact names may be touched; taking back and searching use it.
    calibration: input batches where there is data; never the verification part.
    original: the model as it was before the first step that loses anything, for passes that repair what was lost;
        None without a pipeline.
    divergence: how far a model is from the original on the calibration part, as verification measures it
        (infinite for one that fails); None without data.
    progress: called with (done, total, what).
    max_opset: the highest default-domain opset that may be used, from ``--min-ort`` and the target.
    deadline: on the clock of ``time.monotonic``, when a long pass is to leave the rest as it is.
    """

    seed: int = 0
    target: Target | None = None
    calibration: CalibrationData | None = None
    original: Model | None = None
    divergence: Callable[[Model], float] | None = None
    exclude: tuple[str, ...] = ()
    include: frozenset[str] | None = None
    progress: Callable[[int, int, str], None] = _no_progress
    max_opset: int | None = None
    deadline: float = math.inf

    def selects(self, *names: str) -> bool:
        """Whether a weight or node known under these names may be touched."""
        if self.include is not None and not self.include.intersection(names):
            return False
        return not self.excludes(*names)

    def excludes(self, *names: str) -> bool:
        """Whether one of these names is excluded, whatever is included."""
        return any(matches(name, pattern) for name in names for pattern in self.exclude)

    def is_over(self) -> bool:
        """Whether the deadline has come: a pass stops between two weights or nodes and says so in its outcome."""
        return time.monotonic() > self.deadline

    def editable_weights(
        self, graph: Graph, outcome: Outcome, obstacle: Callable[[Weight], str | None] | None = None
    ) -> Iterator[Weight]:
        """The weights whose values a pass may change; the others are skipped in its outcome, with the reason.

        obstacle: why the pass itself leaves a weight alone, or None.
        """
        from onnxcomp.graph.weights.value_pass import editable_weights

        return editable_weights(
            graph, selects=self.selects, skip=outcome.skip, progress=self.progress, obstacle=obstacle
        )

    def input_moments(self, graph: Graph, weights: Sequence[Weight]) -> Mapping[str, Moments]:
        """The second moments of what each weight is multiplied with, by name; nothing without calibration data, nor for
        weights that they would be far larger than."""
        from onnxcomp.calibration.statistics.moments import input_moments
        from onnxcomp.graph.weights.matrix_form import worth_moments
        from onnxcomp.runtime import Session

        if self.calibration is None:
            return {}
        opened = Session if self.target is None else self.target.session
        worth = [each for each in weights if worth_moments(each)]
        return input_moments(graph, worth, self.calibration, open_session=opened, progress=self.progress)

    def rng(self, *key: str) -> np.random.Generator:
        """A generator that depends on the seed and the key only, not on what ran before."""
        import zlib

        import numpy

        return numpy.random.default_rng([self.seed, *(zlib.crc32(part.encode()) for part in key)])
