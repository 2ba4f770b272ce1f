"""Moments of what a weight's node reads in the original beside what it reads after nodes before it were changed.

    G = mean of x' x'^T,  C = mean of x x'^T     x from the original, x' from the changed model, same samples

The weight that gives the original's outputs from the changed inputs best is  W C G^-1, and what a rounding of it
costs is weighed by G: Li et al. 2025, GPTAQ, https://arxiv.org/abs/2504.02692.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.moments import Source, rows_of, sources_of
from onnxcomp.calibration.statistics.watch import OpenSession, watch_both
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.runtime import Session, Value


@dataclass(frozen=True)
class PairedMoments:
    """gram, cross: (groups or 1, K, K) float32, G and C above."""

    gram: Array
    cross: Array


@dataclass
class _Sums:
    gram: Any = 0.0
    cross: Any = 0.0
    count: int = 0
    fault: bool = False

    def add(self, before: Array, after: Array) -> None:
        """Take in rows (groups, rows, K) of both models."""
        if before.shape != after.shape or not (np.isfinite(before).all() and np.isfinite(after).all()):
            self.fault = True
        if self.fault:
            return
        self.gram = self.gram + np.matmul(after.swapaxes(1, 2), after)
        self.cross = self.cross + np.matmul(before.swapaxes(1, 2), after)
        self.count += after.shape[1]


def paired_moments(
    reference: Reference,
    graph: Graph,
    weights: Sequence[Weight],
    data: CalibrationData,
    *,
    open_session: OpenSession = Session,
) -> Mapping[str, PairedMoments]:
    """The moments of the weights of ``graph.model``, by name, where both models have the tensor that they read; those
    of the reference in the sizes and units of now.

    Raises TargetError or VerificationError where a model does not load or run.
    """
    original = reference.model
    known = {name for node in original.proto.graph.node for name in node.output}
    known |= {each.name for each in original.proto.graph.input}
    sources = {each.name: sources_of(graph, each) for each in weights}
    sources = {name: found for name, found in sources.items() if all(each.tensor in known for each in found)}
    wanted = {each.key: each for found in sources.values() for each in found}
    by_tensor: dict[str, list[Source]] = {}
    for each in wanted.values():
        by_tensor.setdefault(each.tensor, []).append(each)
    sums: dict[Hashable, _Sums] = {key: _Sums() for key in wanted}
    samples = max(1, data.sample_count)

    def see(name: str, before: Value, after: Value) -> None:
        for source in by_tensor[name]:
            then = reference.as_now(name, before) if isinstance(before, np.ndarray) else None
            if not (_is_plain(then) and _is_plain(after)):
                sums[source.key].fault = True
                continue
            most = rows_of(source, after, samples)
            sums[source.key].add(source.cut(then, most), source.cut(after, most))

    watch_both(original, graph.model, list(by_tensor), data, see, open_session=open_session)
    found: dict[str, PairedMoments] = {}
    for name, own in sources.items():
        parts = [sums[each.key] for each in {each.key: each for each in own}.values()]
        if parts and all(each.count and not each.fault for each in parts):
            count = np.float32(sum(each.count for each in parts))
            gram = sum(each.gram for each in parts) / count
            found[name] = PairedMoments(gram, sum(each.cross for each in parts) / count)
    return found


def _is_plain(value: Value | None) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray) and value.dtype == np.float32
