"""unit_elimination against least squares done anew for every set of units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.numerics.structure.unit_elimination import ALONE, UnitReader, eliminated, without


def reader(rows: int, owners: list[int], seed: int) -> UnitReader:
    rng = np.random.default_rng(seed)
    width = len(owners)
    inputs = rng.standard_normal((400, width)) @ rng.standard_normal((width, width))
    matrix = rng.standard_normal((rows, width))
    moment = inputs.T @ inputs / len(inputs)
    return UnitReader(matrix, moment, np.array(owners), float(np.trace(matrix @ moment @ matrix.T)))


def least_error(each: UnitReader, gone: set[int]) -> float:
    """The relative error of the best matrix that does not read these units: by the normal equations."""
    kept = np.array([unit not in gone for unit in each.owners.tolist()])
    best = each.matrix @ each.moment[:, kept] @ np.linalg.inv(each.moment[np.ix_(kept, kept)])
    power = np.trace(each.matrix @ each.moment @ each.matrix.T)
    return float((power - np.trace(best @ each.moment[kept] @ each.matrix.T)) / power)


@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 2, ALONE], [2, 0, 1, 0]])
def test_errors_are_those_of_least_squares(owners: list[int]) -> None:
    each = reader(3, owners, 1)
    count = max(owners) + 1
    found = eliminated([each], count)
    assert sorted(found.order.tolist()) == list(range(count))
    for gone in range(count + 1):
        expected = least_error(each, set(found.order[:gone].tolist())) if gone < count or ALONE in owners else 1.0
        assert found.errors[gone] == pytest.approx(expected, abs=1e-9)


def test_each_step_drops_the_unit_that_adds_least() -> None:
    readers = [reader(3, [0, 1, 1, 2, 3], 2), reader(2, [3, 2, 1, 0, 0], 3)]
    found = eliminated(readers, 4)
    gone: set[int] = set()
    for unit in found.order[:3].tolist():
        added = {one: sum(least_error(each, gone | {one}) for each in readers) for one in range(4) if one not in gone}
        assert unit == min(added, key=added.__getitem__)
        gone.add(unit)


def test_first_two_are_the_best_pair_where_inputs_are_apart() -> None:
    """Of uncorrelated inputs no unit makes up for another, so that backward elimination is the optimum."""
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((3, 6))
    each = UnitReader(matrix, np.diag(rng.random(6) + 0.1), np.arange(6), 1.0)
    pairs = {frozenset(pair): least_error(each, set(pair)) for pair in itertools.combinations(range(6), 2)}
    assert frozenset(eliminated([each], 6).order[:2].tolist()) == min(pairs, key=pairs.__getitem__)


def test_a_copy_goes_at_no_error() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((300, 4))
    inputs[:, 3] = 2 * inputs[:, 1]
    moment = inputs.T @ inputs / 300 + 1e-9 * np.eye(4)
    found = eliminated([UnitReader(rng.standard_normal((2, 4)), moment, np.arange(4), 1.0)], 4)
    assert found.order[0] in (1, 3)
    assert found.errors[1] < 1e-6 < found.errors[2]


def test_several_units_a_step_end_with_the_same_error() -> None:
    each = reader(4, list(range(40)), 6)
    assert eliminated([each], 40, steps=4).errors[-1] == pytest.approx(1.0, abs=1e-6)
    assert sorted(eliminated([each], 40, steps=4).order.tolist()) == list(range(40))


def test_without_is_the_least_squares_fit_to_the_original() -> None:
    rng = np.random.default_rng(7)
    before = rng.standard_normal((500, 5))
    after = before + 0.3 * rng.standard_normal((500, 5))
    matrix = rng.standard_normal((3, 5))
    dropped = np.array([False, True, False, False, True])
    fitted = np.linalg.lstsq(after[:, ~dropped], before @ matrix.T, rcond=None)[0].T
    made = without(matrix, after.T @ after, before.T @ after, dropped, amount=1e-12)
    assert not made[:, dropped].any()
    np.testing.assert_allclose(made[:, ~dropped], fitted, rtol=1e-6)


def test_without_data_to_tell_the_weights_stay() -> None:
    matrix = np.random.default_rng(8).standard_normal((3, 4))
    dropped = np.array([True, False, False, False])
    made = without(matrix, np.zeros((4, 4)), np.zeros((4, 4)), dropped, amount=0.01)
    np.testing.assert_allclose(made[:, 1:], matrix[:, 1:])
