"""Which of many vectors are merged, pair after pair, at the least sum of squared distances from their means.

Ward's agglomeration: merging clusters a and b adds  |a| |b| / (|a| + |b|) * |mean(a) - mean(b)|^2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.structure.unit_elimination import Elimination

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Merging:
    """Vectors that go one after another, each into one that stays.

    elimination: the order in which they go, and the distances then, relative to the vectors' power about their mean.
    into: (n,) where each went when it went; the last of all, which stays, into itself.
    """

    elimination: Elimination
    into: Array

    def homes(self, gone: Array) -> Array:
        """(n,) the vector that stands for each when these (any of the first ones of the order) are gone."""
        homes = np.arange(self.into.size)
        is_gone = np.zeros(self.into.size, np.bool_)
        is_gone[gone] = True
        for each in self.elimination.order[::-1]:  # where one goes is settled before those that went into it
            if is_gone[each]:
                homes[each] = homes[self.into[each]]
        return homes


def merged(vectors: Array) -> Merging:
    """The merging of (n, d) vectors; of two clusters the larger one's vector stays, or the one with more power."""
    from scipy.cluster.hierarchy import linkage

    count = len(vectors)
    vectors = np.asarray(vectors, np.float64)
    total = max(float(np.square(vectors - vectors.mean(axis=0)).sum()), np.finfo(np.float64).tiny)
    powers = np.square(vectors).sum(axis=1)
    heads = list(range(count))  # of each cluster, the vector that stands for it
    sizes = [1] * count
    order, into, errors = [], np.arange(count), [0.0]
    for first, second, distance, size in linkage(vectors, "ward") if count > 1 else ():
        one, other = sorted((int(first), int(second)), key=lambda at: (sizes[at], powers[heads[at]]))
        order.append(heads[one])
        into[heads[one]] = heads[other]
        heads.append(heads[other])
        sizes.append(int(size))
        errors.append(errors[-1] + distance**2 / 2 / total)
    order.append(heads[-1])
    return Merging(Elimination(np.array(order), np.array([*errors, max(1.0, errors[-1])])), into)
