"""Rounding by output error against a search over every choice of codes on small problems."""

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.quantizers.level_set import Lattice
from onnxcomp.numerics.rounding import coordinate_descent as rounding
from onnxcomp.numerics.rounding.coordinate_descent import (
    FREE,
    improve_codes,
    round_matrices,
    row_errors,
    successive_codes,
)

LEVELS = {
    "grid": (np.arange(4.0), 2.0),
    "codebook": (np.array([-1.3, -0.2, 0.35, 1.6]), 0.0),
}


@pytest.fixture(autouse=True)
def gradual_for_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "GRADUAL_VALUES", 1)
    monkeypatch.setattr(rounding, "GRADUAL_ROWS", 1)


def moment_of(size: int, seed: int, groups: int = 1) -> np.ndarray:
    """The second moment of strongly correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((groups, 40, size)) @ rng.standard_normal((size, size)) + 0.5
    return inputs.swapaxes(1, 2) @ inputs / 40 + 0.01 * np.eye(size)


def lattice_for(weights: np.ndarray, kind: str = "grid") -> Lattice:
    """A scale for each row of (g, r, k)."""
    level, offset = LEVELS[kind]
    scale = np.abs(weights).max(axis=2).reshape(-1) / 2
    unit = np.broadcast_to(np.arange(scale.size).reshape(*weights.shape[:2], 1), weights.shape)
    return Lattice(level, scale, np.full(scale.size, offset), unit)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def errors(lattice: Lattice, codes: np.ndarray, weights: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """d H d^T of each row, by a loop."""
    values = lattice.values(codes)
    rows = np.empty(weights.shape[:2])
    for g, r in np.ndindex(*rows.shape):
        d = values[g, r] - weights[g, r]
        rows[g, r] = d @ moment[g if len(moment) > 1 else 0] @ d
    return rows


def least_errors(lattice: Lattice, weights: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """The least error of each row over every choice of codes."""
    best = np.full(weights.shape[:2], np.inf)
    for choice in itertools.product(range(lattice.level.size), repeat=weights.shape[2]):
        codes = np.broadcast_to(np.array(choice), weights.shape)
        best = np.minimum(best, errors(lattice, codes, weights, moment))
    return best


@pytest.mark.parametrize("kind", LEVELS)
def test_is_close_to_the_best_of_all_choices(kind: str) -> None:
    found, least, nearest = [], [], []
    for seed in range(12):
        weights, moment = drawn(1, 4, 5, seed=seed), moment_of(5, seed)
        lattice = lattice_for(weights, kind)
        found.append(errors(lattice, round_matrices(weights, moment, lattice), weights, moment))
        nearest.append(errors(lattice, lattice.nearest(weights), weights, moment))
        least.append(least_errors(lattice, weights, moment))
    ratio = np.array(found) / np.array(least)
    assert ratio.min() > 1 - 1e-9
    assert np.median(ratio) < 1 + 1e-9, "most rows reach the optimum"
    assert np.exp(np.log(ratio).mean()) < 1.15
    assert np.sum(nearest) > 1.5 * np.sum(found), "the problems are hard enough to tell"


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("shared", [False, True])
def test_no_single_change_helps(kind: str, shared: bool) -> None:
    weights = drawn(2, 3, 70)
    moment = moment_of(70, 1, 1 if shared else 2)
    lattice = lattice_for(weights, kind)
    codes = round_matrices(weights, moment, lattice)
    least = errors(lattice, codes, weights, moment)
    for column, level in itertools.product(range(70), range(4)):
        changed = codes.copy()
        changed[:, :, column] = level
        assert (errors(lattice, changed, weights, moment) >= least * (1 - 1e-9)).all()


def test_uncorrelated_inputs_leave_the_nearest_levels() -> None:
    weights = drawn(2, 5, 20)
    lattice = lattice_for(weights)
    moment = np.diag(np.linspace(0.5, 3, 20))[None]
    assert np.array_equal(round_matrices(weights, moment, lattice), lattice.nearest(weights))


def test_settled_codes_stay_and_the_others_make_up_for_them() -> None:
    weights, moment = drawn(1, 6, 30), moment_of(30, 3)
    is_settled = np.random.default_rng(5).random(weights.shape) < 0.3
    lattice = lattice_for(weights)
    settled = np.where(is_settled, 2, FREE).astype(np.int16)
    codes = round_matrices(weights, moment, lattice, fixed=settled)
    assert (codes[is_settled] == 2).all()
    start = np.where(is_settled, 2, lattice.nearest(weights))
    assert errors(lattice, codes, weights, moment).sum() < 0.3 * errors(lattice, start, weights, moment).sum()
    assert (improve_codes(weights, moment, lattice, start, fixed=settled)[is_settled] == 2).all()


def test_improving_never_makes_a_row_worse() -> None:
    weights, moment = drawn(1, 8, 40), moment_of(40, 2)
    lattice = lattice_for(weights, "codebook")
    start = np.random.default_rng(0).integers(0, 4, weights.shape).astype(np.uint8)
    after = errors(lattice, improve_codes(weights, moment, lattice, start), weights, moment)
    assert (after < errors(lattice, start, weights, moment)).all()


def test_gradual_rounding_beats_successive_rounding_where_there_are_many_inputs() -> None:
    weights, moment = drawn(1, 16, 150), moment_of(150, 4)
    lattice = lattice_for(weights)
    successive = errors(lattice, successive_codes(weights, moment, lattice), weights, moment)
    both = errors(lattice, round_matrices(weights, moment, lattice), weights, moment)
    assert (both <= successive * (1 + 1e-9)).all()
    assert both.sum() < 0.95 * successive.sum()


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moment = drawn(3, 7, 20), moment_of(20, 6, 3)
    lattice = lattice_for(weights)
    whole = round_matrices(weights, moment, lattice)
    for size in (60, 300):  # some rows of a group; some groups
        monkeypatch.setattr(rounding, "CHUNK_VALUES", size)
        assert np.array_equal(round_matrices(weights, moment, lattice), whole)
        assert row_errors(weights, moment) == pytest.approx(
            errors(lattice, whole, lattice.values(whole) - weights, moment)
        )
