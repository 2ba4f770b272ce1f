"""Half-quadratic grids: the shrinkage against a search over all e, the norm against other grids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.quantizers.affine import fit_grid
from onnxcomp.numerics.quantizers.hqq import NORM, robust_grids, shrunk


def p_norm(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: int) -> float:
    encoding = GridEncoding(dtype="float32", levels=2**bits, scale=scale, zero_point=zero_point)
    errors = encoding.decode(encoding.nearest(values), values.shape) - values
    return float((np.abs(errors.astype(np.float64)) ** NORM).sum())


@pytest.mark.parametrize("error", [-3.0, -0.9, 0.8, 2.5])
def test_large_errors_are_shrunk_to_where_the_penalized_norm_is_least(error: float) -> None:
    penalty = 10.0

    def cost(e: float) -> float:
        return abs(e) ** NORM / NORM + penalty / 2 * (e - error) ** 2

    low, high = sorted((0.1 * error, 1.1 * error))
    best = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x
    # The closed form takes the slope at the error itself, not at the optimum: near for errors of about a step.
    assert shrunk(np.float32([error]), penalty)[0] == pytest.approx(best, abs=0.02)


def test_small_errors_vanish() -> None:
    assert shrunk(np.float32([0.0, 0.05, -0.1]), 10.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_norm_is_less_than_that_of_a_covering_grid(bits: int, symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_t(3, 4000).astype(np.float32)
    plain = p_norm(values, *fit_grid(values, bits=bits, symmetric=symmetric), bits)
    robust = p_norm(values, *fit_grid(values, bits=bits, symmetric=symmetric, fit=robust_grids), bits)
    assert robust < 0.95 * plain


def test_does_not_depend_on_the_unit() -> None:
    values = np.random.default_rng(1).standard_t(3, (16, 64)).astype(np.float32)
    scale, zero_point = fit_grid(values, bits=4, axis=0, fit=robust_grids)
    smaller, same_point = fit_grid(values * np.float32(2.0**-9), bits=4, axis=0, fit=robust_grids)
    assert smaller * np.float32(512) == pytest.approx(scale)
    assert np.array_equal(zero_point, same_point)


def test_groups_are_fitted_alone_and_zeros_bear_it() -> None:
    values = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    values[1] = 0
    scale, _ = fit_grid(values, bits=3, axis=0, fit=robust_grids)
    for row in (0, 2):
        assert scale[row, 0] == fit_grid(values[row], bits=3, fit=robust_grids)[0]
    assert scale[1, 0] == 1
