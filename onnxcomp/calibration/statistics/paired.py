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
from onnxcomp.calibration.statistics.moments import ROWS_PER_COLUMN, Source, rows_of, sources_by_name
from onnxcomp.calibration.statistics.watch import OpenSession, watch_both
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.runtime import Session, Value

MOST_ROWS = 8192  # columns of a weight's inputs; of large matrices more
ENOUGH_PER_COLUMN = 64  # of a small matrix
LEAST_BYTES = 2**20  # of columns that are multiplied together: of few rows the product is little more than its sum
MOST_BYTES = 2**23


@dataclass(frozen=True)
class PairedMoments:
    """gram, cross: (groups or 1, K, K) float32, G and C above. mean, mean_before: (groups or 1, K) of x' and of x."""

    gram: Array
    cross: Array
    mean: Array
    mean_before: Array


class PairedSums:
    """The sums of one source, of columns that come batch by batch and are multiplied some batches at a time."""

    def __init__(self) -> None:
        self.fault = False
        self._gram: Any = 0.0
        self._cross: Any = 0.0
        self._total: Any = 0.0
        self._total_before: Any = 0.0
        self._count = 0
        self._waiting: list[tuple[Array, Array]] = []
        self._waiting_bytes = 0

    def add(self, before: Array, after: Array) -> None:
        """Take in rows (groups, rows, K) of both models."""
        if self.fault or before.shape != after.shape:
            self.fault = True
            return
        self._count += after.shape[1]
        self._waiting.append((before, after))
        self._waiting_bytes += after.nbytes
        if self._waiting_bytes >= max(LEAST_BYTES, min(MOST_BYTES, 4 * after.shape[0] * after.shape[2] ** 2)):
            self._multiply()

    def totals(self) -> tuple[Array, Array, Array, Array, int] | None:
        """The sums of products, with themselves and with the original's, and of columns, now and in the original, and
        the number of columns; None where there are none, or the values are no finite numbers."""
        if self._waiting and not self.fault:
            self._multiply()
        if self.fault or not self._count:
            return None
        is_finite = np.isfinite(self._gram).all() and np.isfinite(self._cross).all()
        if not is_finite:
            return None
        return self._gram, self._cross, self._total, self._total_before, self._count

    def _multiply(self) -> None:
        before, after = (_joined(each) for each in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_bytes = [], 0
        with np.errstate(invalid="ignore", over="ignore"):
            self._gram = self._gram + np.matmul(after.swapaxes(1, 2), after)
            self._cross = self._cross + np.matmul(before.swapaxes(1, 2), after)
            self._total = self._total + after.sum(axis=1, dtype=np.float64)
            self._total_before = self._total_before + before.sum(axis=1, dtype=np.float64)


def _joined(parts: Sequence[Array]) -> Array:
    """Columns one after another, in the order in memory that the parts have."""
    if len(parts) == 1:
        return parts[0]
    if is_turned(parts[0]):
        return np.concatenate([each.swapaxes(1, 2) for each in parts], axis=2).swapaxes(1, 2)
    return np.concatenate(parts, axis=1)


def is_turned(rows: Array) -> bool:
    """Whether the rows (groups, rows, K) of one column are neighbours in memory, and not the columns of one row."""
    return rows.strides[1] < rows.strides[2]


def of_weights(
    sources: Mapping[str, Sequence[Source]], sums: Mapping[Hashable, PairedSums]
) -> dict[str, PairedMoments]:
    """The moments of weights, by name, from the sums of their sources by key; without those at fault."""
    keys = {name: dict.fromkeys(each.key for each in own) for name, own in sources.items()}
    found = {name: _together([sums[key] for key in own]) for name, own in keys.items()}
    return {name: each for name, each in found.items() if each is not None}


def _together(parts: Sequence[PairedSums]) -> PairedMoments | None:
    """The moments over all sources of a weight; None where one of them is at fault."""
    totals = [found for each in parts if (found := each.totals()) is not None]
    if not totals or len(totals) < len(parts):
        return None
    count = np.float32(sum(each[4] for each in totals))
    sums: list[Any] = [sum(each[index] for each in totals) for index in range(4)]
    return PairedMoments(*(each / count for each in sums))


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
    sources = sources_by_name(graph, weights)
    sources = {name: found for name, found in sources.items() if all(each.tensor in known for each in found)}
    wanted = {each.key: each for found in sources.values() for each in found}
    by_tensor: dict[str, list[Source]] = {}
    for each in wanted.values():
        by_tensor.setdefault(each.tensor, []).append(each)
    sums: dict[Hashable, PairedSums] = {key: PairedSums() for key in wanted}
    samples = max(1, data.sample_count)

    def see(name: str, before: Value, after: Value) -> None:
        for source in by_tensor[name]:
            then = reference.as_now(name, before) if isinstance(before, np.ndarray) else None
            if not (is_plain(then) and is_plain(after)):
                sums[source.key].fault = True
                continue
            sums[source.key].add(columns_of(source, then, samples), columns_of(source, after, samples))

    watch_both(original, graph.model, list(by_tensor), data, see, open_session=open_session)
    return of_weights(sources, sums)


def columns_of(source: Source, value: Array, samples: int) -> Array:
    """The columns (groups, rows, K) that are taken of one batch's value, out of ``samples`` in all."""
    enough = max(ROWS_PER_COLUMN * source.length, min(MOST_ROWS, ENOUGH_PER_COLUMN * source.length))
    return source.cut(value, rows_of(value, samples, enough))


def is_plain(value: Value | None) -> TypeGuard[Array]:
    """Whether a value is an array of the type that moments are made of."""
    return isinstance(value, np.ndarray) and value.dtype == np.float32
