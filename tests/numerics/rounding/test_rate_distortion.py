"""Codes of little error and few bits, against every choice of them on small problems."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from onnxcomp.numerics.arrays.entropy import code_lengths
from onnxcomp.numerics.quantizers.level_set import Lattice
from onnxcomp.numerics.rounding.coordinate_descent import FREE, Descent, improve_codes
from onnxcomp.numerics.rounding.level_set_fit import Problem
from onnxcomp.numerics.rounding.rate_distortion import likelier_codes
from tests.numerics.rounding.test_coordinate_descent import drawn, moment_of


def grid(shape: tuple[int, ...], step: float, reach: int) -> Lattice:
    unit = np.zeros(shape, np.int32)
    return Lattice(np.arange(2.0 * reach + 1), np.array([step]), np.array([float(reach)]), unit)


def total(problem: Problem, lattice: Lattice, codes: np.ndarray, lengths: np.ndarray, price: np.ndarray) -> float:
    """Error and what bits cost together, by loops."""
    found = float((price[:, :, None] * lengths[codes]).sum())
    values = lattice.values(codes)
    for g, r in np.ndindex(*codes.shape[:2]):
        d = values[g, r] - problem.weights[g, r]
        found += d @ problem.moment[g if len(problem.moment) > 1 else 0] @ d
    return found


def problem_of(shape: tuple[int, int, int], moment: np.ndarray, fixed: np.ndarray | None = None) -> Problem:
    return Problem(drawn(*shape, seed=3), moment, np.dtype(np.float32), fixed)


def traded(
    problem: Problem, lattice: Lattice, codes: np.ndarray, lengths: np.ndarray, price: np.ndarray
) -> np.ndarray:
    return Descent(problem.weights, problem.moment, lattice, problem.fixed).traded(codes, lengths, price)


def test_where_inputs_are_independent_every_code_is_the_best() -> None:
    """Lengths grow with the distance from the shortest code: then it is one of those that are looked at."""
    shape = (2, 5, 6)
    moment = np.stack([np.diag(np.geomspace(0.01, 2, 6)), np.diag(np.geomspace(3, 0.1, 6))])
    problem, lattice = problem_of(shape, moment), grid(shape, 0.9, 3)
    lengths = np.array([3.0, 2.2, 1.0, 0.1, 0.9, 2.5, 3.1])
    price = np.linspace(0.1, 0.8, 10).reshape(2, 5)
    found = traded(problem, lattice, lattice.nearest(problem.weights), lengths, price)
    for place in np.ndindex(*shape):
        own = moment[place[0], place[2], place[2]]
        totals = [own * (0.9 * (code - 3) - problem.weights[place]) ** 2 + price[place[:2]] * lengths[code]
                  for code in range(7)]  # fmt: skip
        assert totals[found[place]] == pytest.approx(min(totals))


@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_never_loses_and_ends_near_the_best(seed: int) -> None:
    shape = (1, 1, 4)
    problem, lattice = problem_of(shape, moment_of(4, seed)), grid(shape, 1.1, 1)
    lengths, price = np.array([1.6, 0.2, 1.8]), np.full((1, 1), 0.5)
    codes = lattice.nearest(problem.weights)
    before = total(problem, lattice, codes, lengths, price)
    for _ in range(10):
        codes = traded(problem, lattice, codes, lengths, price)
        after = total(problem, lattice, codes, lengths, price)
        assert after <= before + 1e-9
        before = after
    every = [np.array(each, np.uint8).reshape(shape) for each in itertools.product(range(3), repeat=4)]
    alone = [total(problem, lattice, each, lengths, price) for each in every if np.count_nonzero(each != codes) <= 1]
    assert before == pytest.approx(min(alone))  # no single change helps


def entropy(codes: np.ndarray) -> float:
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    return float((counts * np.log2(codes.size / counts)).sum())


@pytest.mark.parametrize("trade", [0.5, 2.0, 6.0])
def test_bits_fall_by_more_than_their_price(trade: float) -> None:
    shape = (1, 40, 30)
    problem, lattice = problem_of(shape, moment_of(30, 1)), grid(shape, 0.6, 8)
    codes = improve_codes(problem.weights, problem.moment, lattice, lattice.nearest(problem.weights))
    errors = problem.error(lattice, codes)
    price = trade * 2 * math.log(2) * errors / 30
    found = likelier_codes(problem, lattice, codes, trade=trade)
    assert entropy(found) < entropy(codes)
    paid = float(((problem.error(lattice, found) - errors) / price).sum())
    assert paid < entropy(codes) - entropy(found)


def test_rows_of_little_power_pay_no_more_than_others() -> None:
    """Inputs of a thousandth of the size: the same codes."""
    shape = (2, 6, 8)
    moment = moment_of(8, 4)
    problem = problem_of(shape, np.concatenate([moment, 1e-6 * moment]))
    problem = Problem(np.concatenate([problem.weights[:1]] * 2), problem.moment, problem.dtype)
    lattice = grid(shape, 0.6, 6)
    found = likelier_codes(problem, lattice, lattice.nearest(problem.weights), trade=4.0)
    assert np.array_equal(found[0], found[1])


def test_without_a_trade_the_error_does_not_grow() -> None:
    shape = (2, 10, 12)
    problem, lattice = problem_of(shape, moment_of(12, 2, groups=2)), grid(shape, 0.7, 6)
    codes = lattice.nearest(problem.weights)
    found = likelier_codes(problem, lattice, codes, trade=0.0)
    assert float(problem.error(lattice, found).sum()) < float(problem.error(lattice, codes).sum())


def test_settled_codes_stay() -> None:
    shape = (1, 6, 8)
    fixed = np.where(drawn(*shape, seed=5) > 0.3, 4, FREE).astype(np.int16)
    problem, lattice = problem_of(shape, moment_of(8, 1), fixed), grid(shape, 0.6, 6)
    codes = np.where(fixed == FREE, lattice.nearest(problem.weights), 4).astype(np.uint8)
    found = likelier_codes(problem, lattice, codes, trade=8.0)
    assert (found[fixed != FREE] == 4).all()
    assert (found[fixed == FREE] != codes[fixed == FREE]).any()


def test_rows_that_are_worked_on_apart_share_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 12, 8)
    problem, lattice = problem_of(shape, moment_of(8, 1)), grid(shape, 0.6, 6)
    codes = lattice.nearest(problem.weights)
    whole = likelier_codes(problem, lattice, codes, trade=3.0)
    monkeypatch.setattr("onnxcomp.numerics.rounding.coordinate_descent.CHUNK_VALUES", 16)
    assert np.array_equal(likelier_codes(problem, lattice, codes, trade=3.0), whole)
    assert code_lengths(whole, 13).shape == (13,)
