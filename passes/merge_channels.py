"""Channels that compute nearly the same become one: their mean, read by the sum of what read them.

y = W2 f(W1 x + b)    becomes    y = (W2 M) f(N W1 x + N b),   N: means over clusters of channels, M: their sums
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract import parameter
from onnxcomp.contract.cutting_pass import CuttingPass
from onnxcomp.contract.cutting_task import LIKENESS
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.cutting.folding import merging_obstacle
from onnxcomp.graph.cutting.readers import Consumers


@dataclass(frozen=True, kw_only=True)
class MergeChannels(CuttingPass):
    """Merge channels and hidden units that compute nearly the same.

    Units of a dependency group merge by the likeness of all that makes them, pair after pair. This needs no data; with
    data, how many go of each group is chosen by what the outputs lose, and what reads them is solved anew. Deviations
    from the paper: Ward's agglomeration instead of k-means, and no repair of a BatchNormalization's statistics: data,
    where there are some, do more.
    """

    paper = "https://arxiv.org/abs/2502.10216"

    importance: str = parameter(LIKENESS, choices=(LIKENESS,), help="what units go by: how near others are to them")

    def is_own(self, group: DependencyGroup) -> bool:
        return group.kind == "channels"

    def obstacle(self, found: Dependencies, group: DependencyGroup, consumers: Consumers) -> str | None:
        return merging_obstacle(found, group, consumers.of(group))
