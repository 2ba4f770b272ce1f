"""Terms are computed without harm to the data that they rest on."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.expression import (
    Given,
    Term,
    binary,
    cast,
    evaluate,
    gather,
    literal,
    parameter,
    reshape,
)  # fmt: skip

ONE, TWO = np.ones((2, 3)), np.full((2, 3), 2.0)
DATA = {
    "literal": literal(ONE),
    "parameter": parameter("p", ONE),
    "given": Given(ONE.shape, ONE.dtype, ONE),
    "view": reshape(literal(ONE.reshape(-1)), (2, 3)),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_data_are_not_overwritten(kind: str, op: str) -> None:
    term = binary(op, binary(op, DATA[kind], literal(TWO)), literal(TWO))
    expected = {"Add": 5, "Sub": -3, "Mul": 4}[op]
    for _ in range(2):
        assert (evaluate(term) == expected).all()
        assert (ONE == 1).all() and (TWO == 2).all()


def test_a_part_that_is_used_twice_is_not_overwritten() -> None:
    part = binary("Add", literal(ONE), literal(TWO))
    term = binary("Mul", binary("Add", part, literal(TWO)), part)
    assert (evaluate(term) == 15).all()
    assert (evaluate(binary("Mul", part, part)) == 9).all()


@pytest.mark.parametrize(
    ("term", "shape", "dtype"),
    [
        (binary("Mul", cast(literal(np.ones(3, np.int8)), np.float32), literal(TWO[:, :1])), (2, 3), np.float64),
        (binary("Add", gather(literal(np.arange(3.0)), literal(1)), literal(2.0)), (), np.float64),
    ],
)
def test_results_that_fit_no_operand_get_an_array_of_their_own(term: Term, shape: tuple[int, ...], dtype: type) -> None:
    found = evaluate(term)
    assert found.shape == shape and found.dtype == dtype


def test_parameters_may_have_other_values() -> None:
    term = binary("Mul", parameter("p", np.ones(2)), literal(3.0))
    assert evaluate(term, {"p": np.array([2.0, 4.0])}).tolist() == [6, 12]
    assert evaluate(term, {"q": np.array([2.0, 4.0])}).tolist() == [3, 3]
