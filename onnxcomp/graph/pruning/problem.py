"""A weight to be pruned: its matrices, what is known of their inputs, and what its zeros cost the outputs.

values -> matrices (g, r, k) -> which stay and what they become (``numerics.structure``) -> values
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.numerics.rounding.gram import shrunk_by_count
from onnxcomp.numerics.structure.patterns import OfEach, Pattern
from onnxcomp.numerics.structure.pruned_matrices import Criterion, PrunedMatrices


@dataclass(frozen=True)
class Sparse:
    """values: of the weight's shape and type. zeros: their share. error: of the outputs, relative and squared; of the
    values where nothing is known of the inputs."""

    values: Array
    zeros: float
    error: float


@dataclass(frozen=True)
class InputsSeen:
    """What data show of a weight's inputs; None: nothing.

    gram: (g or 1, k, k), their second moments in the weight's matrix form; mean: (g or 1, k); count: about how many
    independent ones there were. lookups: (n,) how often each index of the channel axis is looked up, of a weight that
    is read in no other way. squares: of the weight's shape, E g^2 of the gradients of what the model loses;
    lack: why there are none, where they were asked for.
    """

    gram: Array | None = None
    mean: Array | None = None
    count: float = math.inf
    lookups: Array | None = None
    squares: Array | None = None
    lack: str = ""


class PruningProblem:
    """One weight and what is known of what it is multiplied with."""

    def __init__(self, weight: Weight, seen: InputsSeen | None = None) -> None:
        self._weight = weight
        self._form = matrix_form(weight)
        seen = seen or InputsSeen()
        moment, lookups = None, seen.lookups
        if seen.gram is not None and seen.mean is not None and self._form is not None:
            moment = shrunk_by_count(seen.gram, seen.mean, seen.count)
        power = None if lookups is None else (lookups + 1.0) / (lookups.sum() + lookups.size)
        squares = None if seen.squares is None else self._pack(seen.squares)
        self._matrices = PrunedMatrices(self._pack(np.asarray(weight.values)), moment, power, seen.mean, squares)

    def pruned(self, criterion: Criterion, pattern: Pattern) -> Sparse:
        """The weight after pruning. Zeros that are there stay zero."""
        values = self._unpack(self._matrices.pruned(criterion, pattern)).astype(self._weight.dtype)
        values[values == 0] = 0  # and not -0.0
        zeros = 1 - np.count_nonzero(values) / max(1, values.size)
        return Sparse(values, zeros, self._matrices.error(self._pack(values)))

    def errors(self, criterion: Criterion, sparsities: Sequence[float]) -> list[float]:
        """What each of these shares of zeros costs the outputs, squared and relative to how much they vary, told by a
        sample."""
        return self._matrices.errors(criterion, sparsities)

    # --- a weight that has no matrix form: columns are its summed axis, or what is looked up, or it is one row ---

    def _pack(self, values: Array) -> Array:
        if self._form is not None:
            return self._form.pack(values)
        axis = self._columns_axis
        return (values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, -1)).reshape(
            1, -1, values.size if axis is None else values.shape[axis]
        )

    def _unpack(self, matrices: Array) -> Array:
        if self._form is not None:
            return self._form.unpack(matrices)
        axis, shape = self._columns_axis, self._weight.shape
        if axis is None:
            return matrices.reshape(shape)
        moved = matrices.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis])
        return np.ascontiguousarray(np.moveaxis(moved, -1, axis))

    @property
    def _columns_axis(self) -> int | None:
        return self._weight.channel_axis if self._weight.kinds == {"embedding"} else self._weight.input_axis


def of_each(weight: Weight, n: int, m: int) -> OfEach | str:
    """The pattern of n in each m along the weight's inputs, or why it has none."""
    form, axis = matrix_form(weight), weight.input_axis
    if axis is None:
        return "its readers have no summed axis in common"
    inner, length = 1, weight.shape[axis]
    if form is not None and form.kind in ("conv", "conv_transpose"):
        inner = math.prod(form.shape[2:])
        length = form.pack(np.broadcast_to(np.int8(0), weight.shape)).shape[2] // inner
    if length < m:
        return f"its outputs have {length} inputs, fewer than {m}"
    return OfEach(n, m, inner)
