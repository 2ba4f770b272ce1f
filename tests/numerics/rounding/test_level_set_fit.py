"""Scales and levels fitted to the output error, against a general least-squares solver."""

import numpy as np
import pytest

from onnxcomp.numerics.quantizers.level_set import Lattice
from onnxcomp.numerics.rounding import coordinate_descent as rounding
from onnxcomp.numerics.rounding.level_set_fit import Problem, fit_codes, refined, refit_levels, refit_scales
from tests.numerics.rounding.test_coordinate_descent import drawn, moment_of

FLOAT32 = np.dtype(np.float32)
UNITS = {
    "tensor": lambda shape: np.zeros(shape, np.int64),
    "row": lambda shape: np.broadcast_to(np.arange(shape[0] * shape[1]).reshape(*shape[:2], 1), shape),
    "block": lambda shape: (np.arange(np.prod(shape)) // 4).reshape(shape),
    "column": lambda shape: np.broadcast_to(np.arange(shape[2]), shape),
    # Two by two columns that are not neighbours, as the blocks of a convolution's kernel lie.
    "strided": lambda shape: (np.arange(shape[0] * shape[1])[:, None] * 4 + np.arange(shape[2]) % 4).reshape(shape),
}


def problem_of(shape: tuple[int, int, int], seed: int = 0) -> Problem:
    return Problem(drawn(*shape, seed=seed), moment_of(shape[2], seed, shape[0]), FLOAT32)


def lattice_of(problem: Problem, kind: str, level: np.ndarray, offset: float) -> Lattice:
    unit = UNITS[kind](problem.weights.shape)
    size = unit.max() + 1
    return Lattice(level, np.full(size, 0.7), np.full(size, offset), unit)


def solved_scales(problem: Problem, lattice: Lattice, codes: np.ndarray) -> np.ndarray:
    """The scales of least output error: |L^T (q(s) - w)| with H = L L^T, as one system for all units."""
    columns = []
    root = np.linalg.cholesky(problem.moment)
    base = lattice.level[codes] - lattice.offset[lattice.unit]
    for unit in range(lattice.scale.size):
        columns.append((np.where(lattice.unit == unit, base, 0) @ root).ravel())
    target = (problem.weights @ root).ravel()
    return np.linalg.lstsq(np.array(columns).T, target, rcond=None)[0]


@pytest.mark.parametrize("kind", ["tensor", "row"])
def test_scales_of_whole_rows_are_the_least_squares_solution(kind: str) -> None:
    problem = problem_of((2, 3, 12))
    lattice = lattice_of(problem, kind, np.arange(8.0), 4.0)
    codes = lattice.nearest(problem.weights)
    found = refit_scales(problem, lattice, codes).scale
    assert found == pytest.approx(solved_scales(problem, lattice, codes), rel=1e-5)


@pytest.mark.parametrize("kind", ["block", "column", "strided"])
def test_scales_that_share_rows_come_to_the_solution_in_turns(kind: str) -> None:
    problem = problem_of((2, 3, 12))
    lattice = lattice_of(problem, kind, np.arange(8.0), 4.0)
    codes = lattice.nearest(problem.weights)
    error = problem.error(lattice, codes).sum()
    for _ in range(2000):
        lattice = refit_scales(problem, lattice, codes)
        assert problem.error(lattice, codes).sum() <= error * (1 + 1e-6)
        error = problem.error(lattice, codes).sum()
    solved = solved_scales(problem, lattice, codes)
    assert (solved > 0).all(), "the drawn problem has a solution that is allowed"
    assert lattice.scale == pytest.approx(solved, rel=2e-2)


def test_scales_stay_where_units_lie_across_rows_and_columns() -> None:
    problem = problem_of((1, 2, 4))
    unit = np.array([[[0, 0, 1, 1], [1, 1, 0, 0]]])
    lattice = Lattice(np.arange(4.0), np.ones(2), np.full(2, 2.0), unit)
    assert refit_scales(problem, lattice, lattice.nearest(problem.weights)) is lattice


def test_levels_are_the_least_squares_solution_and_zero_stays() -> None:
    problem = problem_of((2, 4, 15))
    lattice = lattice_of(problem, "row", np.array([-1.5, -0.4, 0.0, 0.6, 1.7]), 0.0)
    codes = lattice.nearest(problem.weights)
    found, renamed = refit_levels(problem, lattice, codes)
    root = np.linalg.cholesky(problem.moment)
    free = [0, 1, 3, 4]
    columns = [(np.where(codes == each, lattice.scale[lattice.unit], 0) @ root).ravel() for each in free]
    solved = np.linalg.lstsq(np.array(columns).T, (problem.weights @ root).ravel(), rcond=None)[0]
    assert found.values(renamed)[codes == 2].tolist() == [0.0] * int(np.sum(codes == 2))
    assert sorted([*solved, 0.0]) == pytest.approx(found.level, rel=1e-4)
    for level, code in zip(solved, free, strict=True):
        assert found.level[renamed[codes == code]] == pytest.approx(level, rel=1e-4)


def test_levels_that_would_become_one_stay() -> None:
    problem = problem_of((1, 2, 6))
    lattice = lattice_of(problem, "tensor", np.array([0.5, 1.0]), 0.0)
    same = Problem(np.full((1, 2, 6), 0.7), np.eye(6)[None], FLOAT32)
    codes = np.array([[[0, 1] * 3] * 2], np.uint8)
    assert refit_levels(same, lattice, codes)[0] is lattice


@pytest.mark.parametrize("kind", UNITS)
def test_fitting_leaves_less_error_than_the_first_scales(kind: str) -> None:
    problem = problem_of((1, 6, 24))
    lattice = lattice_of(problem, kind, np.arange(8.0), 4.0)
    codes, found = fit_codes(problem, lattice)
    first = rounding.round_matrices(problem.weights, problem.moment, lattice)
    assert problem.error(found, codes).sum() < problem.error(lattice, first).sum()
    assert (found.scale > 0).all()


def test_scales_stay_within_the_range_of_the_type() -> None:
    weights = np.full((1, 1, 4), 60000.0)
    problem = Problem(weights, np.eye(4)[None], np.dtype(np.float16))
    lattice = Lattice(np.arange(4.0), np.array([20000.0]), np.zeros(1), np.zeros((1, 1, 4), np.int64))
    codes, found = refined(problem, lattice, np.full((1, 1, 4), 2, np.uint8), scales=True)
    assert np.isfinite(found.values(np.full((1, 1, 4), 3)).astype(np.float16)).all()
    assert found.values(codes).tolist() != [[[40000.0] * 4]]
