"""The cheapest way to part the points of a directed graph in two sides.

    minimum_cut(3, [(0, 1, 5), (1, 2, 2)], source=0, sink=2)  ->  [True, True, False]

By the theorem of Ford and Fulkerson the cheapest cut is as wide as the greatest flow; what the source still
reaches when that flow runs is its side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNCUT = 2**29  # of an edge that must not be cut; scipy sums capacities in 32 bits

Edge = tuple[int, int, int]


def minimum_cut(count: int, edges: Sequence[Edge], *, source: int, sink: int) -> NDArray[np.bool_]:
    """For each of ``count`` points, whether it is on the source's side of a cheapest cut, the smallest such side.

    edges: (from, to, capacity); several between the same points add up. The edges that go from the source's
    side to the sink's cost their capacity. Raises ValueError where no cut is cheaper than ``UNCUT``.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    capacity = _capacities(count, edges)
    flow = maximum_flow(csr_array(capacity), source, sink)
    if flow.flow_value >= UNCUT:
        raise ValueError("source and sink cannot be parted")
    left = csr_array(capacity - flow.flow)
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    side = np.zeros(count, bool)
    side[reached] = True
    return side


def _capacities(count: int, edges: Sequence[Edge]) -> Any:
    """The capacities as a sparse matrix of int32."""
    from scipy.sparse import coo_array

    rows, columns, widths = np.array(list(edges) or [(0, 0, 0)], np.int64).T
    summed = coo_array((widths, (rows, columns)), shape=(count, count)).tocsr()
    summed.sum_duplicates()
    summed.data = np.minimum(summed.data, UNCUT)
    return summed.astype(np.int32)
