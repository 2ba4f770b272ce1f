"""What a pass may ask for beside the graph."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.clock import clock
from onnxcomp.contract.outcome import Outcome
from onnxcomp.errors import CalibrationError, PassError

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.calibration import CalibrationData
    from onnxcomp.calibration.observer import Observer
    from onnxcomp.graph.ir.reader import Graph
    from onnxcomp.graph.provenance import Reference
    from onnxcomp.graph.weights.roles import Weight
    from onnxcomp.model import Model
    from onnxcomp.runtime import Session
    from onnxcomp.target import Target
    from onnxcomp.target.node_times import NodeTimes
    from onnxcomp.training.setup import TrainingSetup


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, as names with brackets are their own, or is of its kind (shell style)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _untimed() -> NodeTimes:
    from onnxcomp.target.node_times import NodeTimes

    return NodeTimes()


def _no_progress(done: int, total: int, what: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Context:
    """What a pass may ask for beside the graph.

    seed: the only source of randomness (``rng``).
    exclude: patterns (shell style) of weight and node names to leave alone.
    include: where given, only these exact names may be touched; taking back and searching use it.
    calibration: input batches where there is data; never the verification part.
    reference: the model as it was before the first step that loses anything, and what its tensors are now, for passes
        that repair what was lost; None without a pipeline.
    original: the model from before the first step that loses anything, whatever a pass has renewed since: what outputs
        are to be in the end. None without a pipeline.
    divergence: how far a model is from the original on the calibration part, as verification measures it
        (infinite for one that fails); None without data.
    progress: called with (done, total, what).
    max_opset: the highest default-domain opset that may be used, from ``--min-ort`` and the target.
    deadline: on the clock of ``time.monotonic``, when a long pass is to leave the rest as it is.
    jobs: how many threads a pass may use for what does not depend on each other; the result does not depend on it.
    training: what the user says of trainings: samples, engine, time. None where nothing is said.
    outputs: what outputs are by the user's word, by name.
    draws_gradients: whether gradients may be drawn, which takes as long as a short training; a search that looks at
        what many rewrites would come to does without.
    times: what was timed of nodes so far, each geometry once a run.
    """

    seed: int = 0
    target: Target | None = None
    calibration: CalibrationData | None = None
    reference: Reference | None = None
    original: Model | None = None
    divergence: Callable[[Model], float] | None = None
    exclude: tuple[str, ...] = ()
    include: frozenset[str] | None = None
    progress: Callable[[int, int, str], None] = _no_progress
    max_opset: int | None = None
    deadline: float = math.inf
    jobs: int = 1
    training: TrainingSetup | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    draws_gradients: bool = True
    times: NodeTimes = field(default_factory=_untimed, repr=False)

    def selects(self, *names: str) -> bool:
        """Whether a weight or node known under these names may be touched."""
        if self.include is not None and not self.include.intersection(names):
            return False
        return not self.excludes(*names)

    def excludes(self, *names: str) -> bool:
        """Whether one of these names is excluded, whatever is included."""
        return bool(self.exclude) and any(matches(name, pattern) for name in names for pattern in self.exclude)

    def limited_to(self, names: Iterable[str]) -> Context:
        """The context in which only these weights and nodes may be touched."""
        return dataclasses.replace(self, include=frozenset(names))

    def alone(self) -> Context:
        """What is left of it where one weight is changed by itself, maybe on another machine: seed and max_opset."""
        return AloneContext(seed=self.seed, max_opset=self.max_opset)

    def is_over(self) -> bool:
        """Whether the deadline has come: a pass stops between two weights or nodes and says so in its outcome."""
        return clock() > self.deadline

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, infinite where there is none."""
        return self.deadline - clock()

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

    @property
    def open_session(self) -> Callable[..., Session]:
        """What opens a session of ONNX Runtime on the target, by default on the CPU."""
        from onnxcomp.runtime import Session

        return Session if self.target is None else self.target.session

    @property
    def observe(self) -> Observer:
        """What inner tensors hold while the calibration data run. Raises CalibrationError without data; its methods
        raise TimeIsUp, which a pass may let pass, when the deadline comes before all samples have run."""
        from onnxcomp.calibration.observer import Observer

        if self.calibration is None:
            raise CalibrationError("needs calibration data. Give it with --calib-data.")
        return Observer(self.calibration, self.open_session, self.progress, self.is_over)

    def rng(self, *key: str) -> np.random.Generator:
        """A generator that depends on the seed and the key only, not on what ran before."""
        import zlib

        import numpy

        return numpy.random.default_rng([self.seed, *(zlib.crc32(part.encode()) for part in key)])


class AskedInEditError(PassError):
    """A pass asked where one weight is changed by itself for what is not there."""


class AloneContext(Context):
    """Says plainly what is not to be had where one weight is changed by itself (see ``WeightPass.edit``)."""

    ELSEWHERE = frozenset(
        {"calibration", "divergence", "observe", "open_session", "original", "reference", "target", "times", "training"}
    )

    def __getattribute__(self, name: str) -> Any:
        if name in AloneContext.ELSEWHERE:
            raise AskedInEditError(f"edit asks for context.{name}, which is where the model is. Ask for it in prepare.")
        return super().__getattribute__(name)
