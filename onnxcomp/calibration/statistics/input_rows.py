"""Some hundreds of real input columns of each weight, and how far each of their elements reaches.

Where ``moments`` sums up what rounding a weight costs, these show what rounding its inputs costs as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.moments import Unfold, sources_by_name
from onnxcomp.calibration.statistics.watch import OpenSession, Progress, silent, watch
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.runtime import Session, Value

KEPT_ELEMENTS = 2**19  # of a weight's columns together
MOST_ROWS, LEAST_ROWS = 256, 64
SEEN_ELEMENTS = 2**22  # of one batch, for the reach


@dataclass
class InputRows:
    """rows: (groups, rows, K) float32, input columns laid down; low, high: (groups, K), the least and the greatest.

    groups is 1 where all matrices of the weight see the same columns.
    """

    low: Array
    high: Array
    parts: list[Array] = field(default_factory=list)

    @property
    def rows(self) -> Array:
        return np.concatenate(self.parts, axis=1)


class _Collector:
    def __init__(self, cut: Unfold, length: int, groups: int, samples: int) -> None:
        self._cut = cut
        self._samples = samples
        self._most = max(LEAST_ROWS, min(MOST_ROWS, KEPT_ELEMENTS // max(1, length * groups)))
        self._seen_rows = max(self._most, SEEN_ELEMENTS // max(1, length * groups))
        self.kept = 0
        self.found: InputRows | None = None
        self.fault = False

    def see(self, value: Value) -> None:
        """Take in one batch's value of the tensor."""
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or not np.isfinite(value).all():
            self.fault = True
            return
        rows = self._cut(value, self._seen_rows)
        if not rows.size:
            return
        low, high = rows.min(axis=1), rows.max(axis=1)
        if self.found is None:
            self.found = InputRows(low, high)
        self.found.low, self.found.high = np.minimum(self.found.low, low), np.maximum(self.found.high, high)
        self._keep(self.found, rows, min(value.shape[0], self._samples) if value.ndim else 1)

    def _keep(self, found: InputRows, rows: Array, batch: int) -> None:
        """As many rows as fall to the batch's share of the samples."""
        share = min(self._most - self.kept, -(-self._most * batch // self._samples))
        if share > 0:
            chosen = np.linspace(0, rows.shape[1] - 1, min(share, rows.shape[1])).astype(np.int64)
            found.parts.append(rows[:, chosen])
            self.kept += len(chosen)


def input_rows(
    graph: Graph,
    weights: Sequence[Weight],
    data: CalibrationData,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, InputRows]:
    """Rows for the weights of ``graph.model``, by name; those of equal inputs share them.

    Left out are weights with more than one reader, in subgraphs and functions, with inputs that are not float32 or
    not finite, and without inputs in the data.
    Raises TargetError or VerificationError where the model does not load or run.
    """
    sources = {name: found[0] for name, found in sources_by_name(graph, weights).items() if len(found) == 1}
    samples = max(1, data.sample_count if limit is None else min(limit, data.sample_count))
    collectors: dict[Hashable, _Collector] = {}
    by_tensor: dict[str, list[_Collector]] = {}
    for each in sources.values():
        if each.key not in collectors:
            made = collectors[each.key] = _Collector(each.cut, each.length, each.matrices, samples)
            by_tensor.setdefault(each.tensor, []).append(made)

    def see(name: str, value: Value) -> None:
        for each in by_tensor[name]:
            each.see(value)

    if by_tensor:
        watch(graph.model, list(by_tensor), data, see, limit=limit, open_session=open_session, progress=progress)
    seen = {name: collectors[each.key] for name, each in sources.items()}
    return {name: each.found for name, each in seen.items() if each.found is not None and not each.fault}
