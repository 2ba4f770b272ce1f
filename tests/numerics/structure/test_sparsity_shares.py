"""How zeros are shared out, held against trying all shares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.structure.sparsity_shares import MEASURED_AT, shares


def rising(factor: float) -> list[float]:
    """Errors that grow by the square of the share."""
    return [factor * each**2 for each in MEASURED_AT]


def test_alike_weights_get_the_same_share() -> None:
    assert shares([1000, 1000], [rising(0.1)] * 2, 0.6) == pytest.approx([0.6, 0.6], abs=0.01)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.95])
def test_is_the_least_error_of_all_ways(sparsity: float) -> None:
    """Of a large weight and a small one: all shares in steps of a fiftieth that reach as many zeros."""
    sizes, factors = (5000, 1000), (0.01, 0.5)
    found = shares(sizes, [rising(each) for each in factors], sparsity)
    assert np.dot(found, sizes) >= sparsity * sum(sizes) - 2

    def lost(chosen: tuple[float, ...]) -> float:
        """The error by straight lines between the logarithms of what was measured."""
        total = 0.0
        for share, factor in zip(chosen, factors, strict=True):
            places, known = [*MEASURED_AT, 1.0], [*rising(factor), 1.0]
            total += float(np.exp(np.interp(share, places, np.log(known)))) if share >= MEASURED_AT[0] else 0.0
        return total

    ways = itertools.product(np.linspace(0, 1, 51), repeat=2)
    least = min(lost(way) for way in ways if np.dot(way, sizes) >= sparsity * sum(sizes))
    assert lost(tuple(found)) <= 1.1 * least + 1e-3


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_ends_are_exact(sparsity: float) -> None:
    assert shares([10, 30], [rising(0.1), rising(0.2)], sparsity) == [sparsity, sparsity]


def test_weights_that_cost_nothing_go_first() -> None:
    free, dear = [0.0] * len(MEASURED_AT), rising(10.0)
    found = shares([100, 100], [free, dear], 0.45)
    assert found[0] > 0.85 and found[1] < 0.05
