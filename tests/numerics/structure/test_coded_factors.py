"""Factors on grids against loops: every value a whole multiple of its row's scale, the outputs as near as foreseen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.structure.coded_factors import (
    coded_bytes,
    coded_factors,
    directions,
    mean_feedback,
    outer_bits,
    rounding_error,
)
from onnxcomp.numerics.structure.lowrank import Spectrum

Floats = NDArray[np.float64]
RNG = np.random.default_rng(3)


def problem(rows: int = 60, columns: int = 90, inner: int = 12) -> tuple[NDArray[np.float32], Floats]:
    """A matrix and the second moments of inputs that have ``inner`` strong directions."""
    matrix = (RNG.standard_normal((rows, columns)) / 9).astype(np.float32)
    inputs = RNG.standard_normal((4000, inner)) @ RNG.standard_normal((inner, columns))
    inputs += 0.3 * RNG.standard_normal((4000, columns))
    return matrix, inputs.T @ inputs / len(inputs)


def error_of(matrix: NDArray[np.float32], product: Floats, moment: Floats) -> float:
    """Relative and squared, output by output."""
    lost, power = 0.0, 0.0
    for row, near in zip(matrix.astype(np.float64), product, strict=True):
        lost += (row - near) @ moment @ (row - near)
        power += row @ moment @ row
    return lost / power


def made(matrix: NDArray[np.float32], moment: Floats, rank: int, bits: int) -> float:
    left, right = Spectrum(matrix[None], moment[None], 60).factors(matrix[None], rank)
    coded = coded_factors(matrix, (left[0], right[0]), moment, bits)
    assert coded is not None
    return error_of(matrix, np.matmul(coded[0].values, coded[1].values, dtype=np.float64), moment)


def test_every_value_is_a_whole_multiple_of_the_scale_of_its_row() -> None:
    matrix, moment = problem()
    left, right = Spectrum(matrix[None], moment[None], 20).factors(matrix[None], 20)
    coded = coded_factors(matrix, (left[0], right[0]), moment, 3)
    assert coded is not None
    for factor, bits, shape in zip(coded, (outer_bits(3), 3), ((60, 20), (20, 90)), strict=True):
        assert factor.values.shape == shape and factor.values.dtype == np.float32
        assert factor.encoding.scale is not None
        for row, scale in zip(factor.values, factor.encoding.scale.reshape(-1), strict=True):
            steps = row / scale
            assert np.allclose(steps, np.rint(steps), atol=1e-3) and len(np.unique(np.rint(steps))) <= 2**bits


@pytest.mark.parametrize(("rank", "bits"), [(8, 4), (16, 4), (30, 5), (16, 6)])
def test_outputs_are_as_near_as_foreseen(rank: int, bits: int) -> None:
    matrix, moment = problem()
    powers, norms = directions(matrix, moment)
    tail = powers[rank:].sum() / powers.sum()
    foreseen = tail + rounding_error(powers, norms, rank, mean_feedback(moment), bits)
    # Rounding of few values that are no normal distribution: within half of the foreseen either way.
    assert made(matrix, moment, rank, bits) == pytest.approx(foreseen, rel=0.5)


def test_the_second_factor_makes_up_for_what_rounding_the_first_one_loses() -> None:
    matrix, moment = problem()
    left, right = Spectrum(matrix[None], moment[None], 16).factors(matrix[None], 16)
    coded = coded_factors(matrix, (left[0], right[0]), moment, 3)
    assert coded is not None
    apart = np.matmul(left[0], coded[1].encoding.decode(coded[1].encoding.nearest(right[0]), right[0].shape))
    together = np.matmul(coded[0].values, coded[1].values, dtype=np.float64)
    assert error_of(matrix, together, moment) < 0.7 * error_of(matrix, apart.astype(np.float64), moment)


def test_a_diagonal_moment_counts_as_the_matrix_that_it_is_the_diagonal_of() -> None:
    matrix, _ = problem()
    weights = RNG.uniform(0.1, 4.0, matrix.shape[1])
    wide = [directions(matrix, each) for each in (weights, np.diag(weights))]
    np.testing.assert_allclose(wide[0][0], wide[1][0], rtol=1e-9)
    assert mean_feedback(weights) == pytest.approx(mean_feedback(np.diag(weights)), rel=1e-5)


def test_bytes_are_those_of_codes_and_scales() -> None:
    # 20 x 90 codes of 4 bits, 60 x 20 of 6, and 80 scales of two bytes.
    assert coded_bytes(60, 90, 20, 4) == 900 + 900 + 160
