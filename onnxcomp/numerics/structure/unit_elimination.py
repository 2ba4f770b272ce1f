"""Which units of a matrix's inputs are dropped at the least error, when those that stay make up for them.

    min over S and V of  E |W x - V x_S|^2   =   tr(W H W^T) - tr(W H_:S (H_SS)^-1 H_S: W^T),    H = E[x x^T]

A unit is a set of columns that go together: the window of one channel, a head. With the inverse of H over what is left,
dropping the columns b adds  tr(W_b ([H^-1]_bb)^-1 W_b^T)  and leaves  W - W_b ([H^-1]_bb)^-1 [H^-1]_b:  and an inverse
without b by the same elimination: Optimal Brain Surgeon (Hassibi and Stork 1992) with units for weights, as in Optimal
Brain Compression (https://arxiv.org/abs/2208.11580).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Array = NDArray[Any]

STEPS = 64  # units are dropped this many at a time, as a share of those left; one by one where they are fewer
LEAST = float(np.finfo(np.float32).tiny)
ALONE = -1  # in ``owners``: a column that is of no unit, and stays


@dataclass(frozen=True, eq=False)
class UnitReader:
    """A matrix that reads the units.

    matrix: (rows, K). moment: (K, K), positive definite, of its inputs. owners: (K,) the unit (from 0) of each column,
    or ALONE. power: of its outputs, by which an error counts.
    """

    matrix: Array
    moment: Array
    owners: Array
    power: float = 1.0


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which units go, and the error (relative, squared, summed over the readers) with so many gone.

    order: (n,) the first to go first. errors: (n + 1,), rising from 0.
    """

    order: Array
    errors: Array


def eliminated(readers: Sequence[UnitReader], count: int, *, steps: int = STEPS) -> Elimination:
    """The order in which ``count`` units are dropped, each time those that add least to the error of all readers."""
    parts = [_Part(each, count) for each in readers]
    left = np.ones(count, np.bool_)
    order: list[int] = []
    errors = [0.0]
    with threadpool_limits(1):
        while left.any():
            units = np.flatnonzero(left)
            scores = sum((each.scores(units) for each in parts), np.zeros(units.size))
            together = max(1, units.size // steps)
            chosen = units[np.argsort(scores, kind="stable")[:together]]
            added = sum(each.drop(chosen) for each in parts)
            order += chosen.tolist()
            # Those of one step go at once; between them the error is taken to rise evenly.
            errors += [errors[-1] + max(0.0, added) * share / chosen.size for share in range(1, chosen.size + 1)]
            left[chosen] = False
    return Elimination(np.array(order, np.int64), np.maximum.accumulate(np.array(errors)))


class _Part:
    """What is left of one reader."""

    def __init__(self, reader: UnitReader, count: int) -> None:
        dtype = np.float64 if len(reader.moment) <= 1024 else np.float32
        self._matrix: Array = np.array(reader.matrix, dtype)
        self._inverse: Array = np.linalg.inv(np.asarray(reader.moment, dtype))
        self._power = max(reader.power, LEAST)
        columns = np.argsort(reader.owners, kind="stable")
        starts = np.searchsorted(reader.owners[columns], np.arange(count + 1))
        self._columns = [columns[starts[i] : starts[i + 1]] for i in range(count)]
        self._left = np.ones(len(reader.owners), np.bool_)

    def scores(self, units: Array) -> Array:
        """What dropping each unit alone would add."""
        found = np.zeros(units.size)
        sizes = np.array([self._columns[unit].size for unit in units])
        for size in np.unique(sizes[sizes > 0]).tolist():
            at = np.flatnonzero(sizes == size)
            columns = np.stack([self._columns[unit] for unit in units[at]])  # (n, size)
            blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
            held = self._matrix[:, columns].transpose(1, 2, 0)  # (n, size, rows)
            found[at] = np.sum(held * np.linalg.solve(blocks, held), axis=(1, 2)) / self._power
        return found

    def drop(self, units: Array) -> float:
        """Drop units; the error that this adds."""
        columns = np.concatenate([self._columns[unit] for unit in units])
        if not columns.size:
            return 0.0
        held = self._matrix[:, columns]
        shares = np.linalg.solve(self._inverse[np.ix_(columns, columns)], held.T).T  # W_b ([H^-1]_bb)^-1
        added = float(np.sum(shares * held, dtype=np.float64)) / self._power
        rows = self._inverse[columns]
        self._matrix -= shares @ rows
        self._inverse -= rows.T @ np.linalg.solve(rows[:, columns], rows)
        self._left[columns] = False
        if 2 * np.count_nonzero(self._left) <= self._left.size:
            self._close_up()
        return added

    def _close_up(self) -> None:
        """Leave out the columns that are gone, which are not asked for again."""
        kept = np.flatnonzero(self._left)
        place = np.cumsum(self._left) - 1
        self._matrix = np.ascontiguousarray(self._matrix[:, kept])
        self._inverse = np.ascontiguousarray(self._inverse[np.ix_(kept, kept)])
        self._columns = [place[each] if self._left[each].all() else each[:0] for each in self._columns]
        self._left = np.ones(kept.size, np.bool_)


def without(matrix: Array, gram: Array, cross: Array, dropped: Array, *, amount: float) -> Array:
    """V (r, K), zero in the dropped columns, of least E|W x - V x'|^2 for W (r, K), gram = E[x' x'^T] and
    cross = E[x x'^T], both (K, K); amount: of shrinkage towards W.

    dropped: (K,) of bool. The pull towards W is that of a ridge: amount * mean(diag gram) * |V_S - W_S|^2.
    """
    kept = np.flatnonzero(~dropped)
    ridge = amount * max(float(np.trace(gram)) / max(1, len(gram)), LEAST)
    moment = np.asarray(gram, np.float64)[np.ix_(kept, kept)] + ridge * np.eye(kept.size)
    weights = np.asarray(matrix, np.float64)
    wanted = weights @ np.asarray(cross, np.float64)[:, kept] + ridge * weights[:, kept]
    made = np.zeros(weights.shape)
    if kept.size:
        made[:, kept] = np.linalg.solve(moment, wanted.T).T
    return made
