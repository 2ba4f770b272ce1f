"""What inner tensors of a model hold while the calibration data run through it, on the target of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.channel_means import channel_means
from onnxcomp.calibration.statistics.input_rows import InputRows, input_rows
from onnxcomp.calibration.statistics.lookup_counts import lookup_counts
from onnxcomp.calibration.statistics.moments import Moments, input_moments
from onnxcomp.calibration.statistics.observe import Observation, observe
from onnxcomp.calibration.statistics.paired_stages import PairedStages
from onnxcomp.calibration.statistics.watch import OpenSession, watch
from onnxcomp.errors import TimeIsUp
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.pruning.problem import InputsSeen
from onnxcomp.graph.weights.matrix_form import worth_moments
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.model import Model
from onnxcomp.runtime import Value


def seen_in(moments: Moments) -> InputsSeen:
    """What pruning is to know of inputs that have these moments."""
    return InputsSeen(moments.gram, moments.mean, moments.independent_count)


@dataclass(frozen=True)
class Observer:
    """Statistics of activations, each a function of ``calibration.statistics`` bound to the data and the target.

    limit, where a method has it: of samples, None for all. Models remember moments and ranges. Methods raise
    TargetError or VerificationError where a model does not load or run. is_over: whether samples may run no longer.
    """

    data: CalibrationData
    open_session: OpenSession
    tell: Callable[[int, int, str], None]
    is_over: Callable[[], bool] = lambda: False

    def progress(self, done: int, total: int, what: str) -> None:
        """Tell how far the samples have run; raises TimeIsUp where they may run no longer."""
        if self.is_over():
            raise TimeIsUp("the time budget was used up while calibration data ran")
        self.tell(done, total, what)

    def ranges(
        self, model: Model, keys: Sequence[str], *, ends_only: bool = False, limit: int | None = None
    ) -> Mapping[str, Observation]:
        """How the values of the named tensors spread."""
        return observe(
            model,
            keys,
            self.data,
            ends_only=ends_only,
            limit=limit,
            open_session=self.open_session,
            progress=self.progress,
        )

    def moments(
        self, graph: Graph, weights: Sequence[Weight], *, limit: int | None = None, even_large: bool = False
    ) -> Mapping[str, Moments]:
        """Second moments (Gram matrix, mean, peak) of what each weight is multiplied with, by name; without those that
        would be far larger than their weight (but with ``even_large``)."""
        worth = [each for each in weights if even_large or worth_moments(each)]
        return input_moments(
            graph, worth, self.data, limit=limit, open_session=self.open_session, progress=self.progress
        )

    def paired_stages(
        self, reference: Reference, graph: Graph, names: Collection[str], *, jobs: int = 1
    ) -> PairedStages:
        """The same of the reference's inputs beside those of ``graph``, of one weight after another while they change.

        The reference's model remembers what it holds, and what came of a graph that began alike."""
        return PairedStages(reference, graph, names, self.data, self.open_session, jobs)

    def rows(self, graph: Graph, weights: Sequence[Weight], *, limit: int | None = None) -> Mapping[str, InputRows]:
        """Some hundreds of input columns of each weight, by name."""
        return input_rows(
            graph, weights, self.data, limit=limit, open_session=self.open_session, progress=self.progress
        )

    def lookups(self, graph: Graph, weights: Sequence[Weight]) -> Mapping[str, Array]:
        """How often each row of tables that are only looked up was read, by name."""
        return lookup_counts(graph, weights, self.data, open_session=self.open_session, progress=self.progress)

    def inputs(self, graph: Graph, weights: Sequence[Weight]) -> Mapping[str, InputsSeen]:
        """What pruning is to know of each weight's inputs, by name; without those of which the data show nothing."""
        lookups = {name: InputsSeen(lookups=own) for name, own in self.lookups(graph, weights).items()}
        moments = {name: seen_in(own) for name, own in self.moments(graph, weights).items() if np.any(own.peak)}
        return lookups | moments

    def means(self, model: Model, axes: Mapping[str, int], *, limit: int | None = None) -> Mapping[str, Array]:
        """The mean of each channel of the named tensors, along the axis stated for each."""
        return channel_means(
            model, axes, self.data, limit=limit, open_session=self.open_session, progress=self.progress
        )

    def watch(
        self, model: Model, names: Sequence[str], see: Callable[[str, Value], None], *, limit: int | None = None
    ) -> None:
        """Hand over every value of the named tensors."""
        watch(model, names, self.data, see, limit=limit, open_session=self.open_session, progress=self.progress)
