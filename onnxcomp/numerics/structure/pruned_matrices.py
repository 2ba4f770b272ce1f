"""Prune matrices by a criterion: which values stay, what they become, and what that costs the outputs.

    minimize    sum over rows of (W - D) H (W - D)^T + lambda |D|_0

H is the second moment of the inputs; where these have nothing in common, or nothing is known, it is a diagonal of what
each input's errors count. lambda is not asked for: it is the slope of the error at the sparsity that is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.rounding.coordinate_descent import row_errors
from onnxcomp.numerics.rounding.gram import output_worth
from onnxcomp.numerics.structure.masked_least_squares import best_under_mask
from onnxcomp.numerics.structure.patterns import AtLeast, Pattern, ShareOfAll
from onnxcomp.numerics.structure.saliency import SALIENCIES
from onnxcomp.numerics.structure.sparse_fit import SparseFit

Array = NDArray[Any]

SEARCHED = "second-order"  # whose masks are found along with the values
BY_GRADIENTS = "fisher"
IMPORTANCES = ("auto", *SALIENCIES, BY_GRADIENTS)
MOST_GROWTH = 1e3  # of the largest value: what grows more was fitted to inputs that hardly occur
SAMPLED = 2**14  # values of the rows that tell what a share of zeros costs
LEAST_ROWS = 16
LEAST_VARYING = 1e-3  # of the outputs' power


@dataclass(frozen=True)
class Criterion:
    """importance: of ``IMPORTANCES``; auto takes second-order where inputs are known. compensate: whether the values
    that stay make up for the others, where inputs are known."""

    importance: str = "auto"
    compensate: bool = True

    @property
    def draws_on_data(self) -> bool:
        """Whether what is known of inputs makes a difference."""
        return self.compensate or self.importance != "magnitude"

    def of(self, *, known: bool) -> str:
        """The importance that is meant where inputs are known, or not."""
        return (SEARCHED if known else "magnitude") if self.importance == "auto" else self.importance


class PrunedMatrices:
    """Matrices W (g, r, k) to be pruned. Zeros that are there stay.

    moment: H (g or 1, k, k), positive definite. power: its diagonal (k,), where there is nothing else.
    None: not known; at most one is given. mean: (g or 1, k) of the inputs. squares: (g, r, k) E g^2, g the gradient of
    what the model loses.
    """

    def __init__(
        self,
        matrices: Array,
        moment: Array | None = None,
        power: Array | None = None,
        mean: Array | None = None,
        squares: Array | None = None,
    ) -> None:
        values = np.asarray(matrices)
        self._matrices = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
        self._moment, self._power, self._mean, self._squares = moment, power, mean, squares

    def pruned(self, criterion: Criterion, pattern: Pattern) -> Array:
        """D (g, r, k) float32 or float64. A threshold is one of saliencies as they are at first; other masks are found
        along with the values where the criterion says so."""
        if criterion.importance == BY_GRADIENTS:
            return self._by_gradients(criterion, pattern)
        importance = criterion.of(known=self._moment is not None or self._power is not None)
        allowed = self._matrices != 0
        if self._moment is None:
            return np.where(pattern.kept(self._separate_worth(importance)) & allowed, self._matrices, 0.0)
        if criterion.compensate and importance == SEARCHED and not isinstance(pattern, AtLeast):
            return self._sane(self._search.fitted(pattern, allowed)[0])
        kept = pattern.kept(SALIENCIES[importance](self._matrices, self._moment)) & allowed
        if not criterion.compensate:
            return np.where(kept, self._matrices, 0.0)
        return self._sane(best_under_mask(self._matrices, self._moment, kept))

    def _by_gradients(self, criterion: Criterion, pattern: Pattern) -> Array:
        """As second-order, each output's error counting by what the model loses by it. Where inputs are not known the
        values go that cost least by themselves, E (g w)^2; where gradients are not, as importance = auto says."""
        if self._squares is None:
            return self.pruned(replace(criterion, importance="auto"), pattern)
        if self._moment is None:
            kept = pattern.kept(np.abs(self._matrices) * np.sqrt(self._squares))
            return np.where(kept & (self._matrices != 0), self._matrices, 0.0)
        found = self._weighed.pruned(replace(criterion, importance=SEARCHED), pattern)
        return np.where(found != 0, found / self._worth if criterion.compensate else self._matrices, 0.0)

    @functools.cached_property
    def _worth(self) -> Array:
        """(g, r, 1) what an error of each output counts, as a factor of the error."""
        assert self._squares is not None and self._moment is not None
        worth: Array = np.sqrt(output_worth(self._squares, self._moment))[:, :, None]
        return worth

    @functools.cached_property
    def _weighed(self) -> PrunedMatrices:
        return PrunedMatrices(self._matrices * self._worth, self._moment, None, self._mean)

    def error(self, values: Array) -> float:
        """How far the outputs of D are from those of W, squared and relative to their power."""
        whole = self._cost(self._matrices)
        return self._cost(np.asarray(values, np.float64) - self._matrices) / whole if whole > 0 else 0.0

    def errors(self, criterion: Criterion, sparsities: Sequence[float]) -> list[float]:
        """What each of these shares of zeros costs, squared and relative to how much the outputs vary: a mean of theirs
        says nothing. Told by some of the rows. By gradients: what the model loses, so that weights compare."""
        sample = self._sample()
        if criterion.importance == BY_GRADIENTS and sample._squares is not None:
            times = self._matrices.size / sample._matrices.size
            return [times * sample._loss(sample.pruned(criterion, ShareOfAll(each))) for each in sparsities]
        varying = sample._varying_share()
        return [sample.error(sample.pruned(criterion, ShareOfAll(each))) / varying for each in sparsities]

    def _loss(self, values: Array) -> float:
        """What the model loses by D, to second order and twice."""
        difference = np.asarray(values, np.float64) - self._matrices
        if self._moment is None:
            return float(np.sum(self._squares * np.square(difference)))
        return self._cost(difference * self._worth)

    def _varying_share(self) -> float:
        """The share of the outputs' power that is not their mean's."""
        whole = self._cost(self._matrices)
        if self._mean is None or not whole > 0:
            return 1.0
        means = np.matmul(self._matrices, np.asarray(self._mean, np.float64)[:, :, None])
        return max(LEAST_VARYING, 1 - float(np.square(means).sum()) / whole)

    def _separate_worth(self, importance: str) -> Array:
        size: Array = np.abs(self._matrices)
        return size if importance == "magnitude" or self._power is None else size * np.sqrt(self._power)

    def _cost(self, difference: Array) -> float:
        if self._moment is not None:
            return float(row_errors(difference, self._moment).sum())
        power = 1.0 if self._power is None else self._power
        return float(np.sum(power * np.square(difference)))

    def _sane(self, fitted: Array) -> Array:
        """The values that were fitted, or those from before under their mask where one is out of all measure."""
        limit = MOST_GROWTH * np.abs(self._matrices).max(initial=0.0)
        is_sane = np.abs(fitted).max(initial=0.0) <= limit
        return fitted if is_sane else np.where(fitted != 0, self._matrices, 0.0)

    @functools.cached_property
    def _search(self) -> SparseFit:
        assert self._moment is not None
        return SparseFit(self._matrices, self._moment)

    def _sample(self) -> PrunedMatrices:
        """Rows spread evenly over all groups, or over some where there are many."""
        groups, rows, columns = self._matrices.shape
        if groups * rows * columns <= SAMPLED:
            return self
        most = max(LEAST_ROWS, SAMPLED // columns)
        some = _evenly(groups, most)
        taken = self._matrices[some][:, _evenly(rows, max(1, most // some.size))]
        moment, mean = (each if each is None or len(each) == 1 else each[some] for each in (self._moment, self._mean))
        squares = None if self._squares is None else self._squares[some][:, _evenly(rows, max(1, most // some.size))]
        return PrunedMatrices(taken, moment, self._power, mean, squares)


def _evenly(count: int, most: int) -> Array:
    taken = min(count, most)
    return (2 * np.arange(taken) + 1) * count // (2 * taken)
