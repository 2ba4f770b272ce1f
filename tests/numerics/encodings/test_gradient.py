"""Gradients agree with finite differences, for every encoding and every operator between parameter and result."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.expression import (
    OPERATORS,
    Array,
    Term,
    binary,
    cast,
    concat,
    counting,
    cumsum,
    evaluate,
    first,
    gather,
    literal,
    matmul,
    parameter,
    reshape,
    scatter,
    transpose,
)  # fmt: skip
from onnxcomp.numerics.encodings.gradient import DERIVATIVES, INTEGERS_ONLY, WITHOUT_INPUTS, gradient, parameters
from tests.numerics.encodings.encoded import NAMES, SHAPE, sample

STEP = 1e-6  # of a central difference: its error is some 1e-9 in float64 with values near 1


def differences(term: Term, adjoint: Array) -> dict[str, Array]:
    """d sum(adjoint * term) / d parameter, one element after another."""
    found = {}
    for name, values in parameters(term).items():
        slopes = np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = values.copy()
                moved[place] += step
                ends.append(np.sum(adjoint * evaluate(term, {name: moved})))
            slopes[place] = (ends[0] - ends[1]) / (2 * STEP)
        found[name] = slopes
    return found


def assert_agrees(term: Term) -> None:
    adjoint = np.random.default_rng(3).normal(size=term.shape)
    found, expected = gradient(term, adjoint), differences(term, adjoint)
    assert found.keys() == expected.keys() != set()
    for name, values in found.items():
        assert values.shape == expected[name].shape and values.dtype == np.float64
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "grid without a scale"])
def test_of_every_encoding(name: str) -> None:
    each = sample(name)
    assert_agrees(each.encoding.trainable(each.codes, SHAPE))


def free(*shape: int, name: str = "p") -> Term:
    return parameter(name, np.random.default_rng(len(name)).normal(size=shape))


CONSTANT = literal(np.random.default_rng(9).normal(size=(4, 3)))
TERMS = {
    "Add": binary("Add", CONSTANT, free(3)),
    "Sub from": binary("Sub", free(4, 1), CONSTANT),
    "Sub": binary("Sub", CONSTANT, free(1, 3)),
    "Mul": binary("Mul", free(4, 1), CONSTANT),
    "Mul of two": binary("Mul", free(4, 1), free(1, 3, name="other")),
    "square": binary("Mul", CONSTANT, CONSTANT),
    "MatMul": matmul(free(2, 4), CONSTANT),
    "MatMul by": matmul(CONSTANT, free(3, 2)),
    "Gather": gather(free(5), literal(np.array([[0, 4, 4], [2, 0, 4]]))),
    "Gather of rows": gather(free(5, 2, 3), literal(np.array([[0, 4], [4, 4]], np.uint8))),
    "Reshape": reshape(free(4, 3), (2, 6)),
    "Transpose": transpose(free(2, 3, 4), (2, 0, 1)),
    "Slice": first(free(5, 2), 3),
    "Concat": concat([free(2), literal(np.ones(3)), free(4, name="other")]),
    "CumSum": cumsum(free(5)),
    "Scatter updates": scatter(literal(np.zeros(5)), literal(np.array([4, 0, 0])), free(3)),
    "Scatter data": scatter(free(5), literal(np.array([4, 0])), free(2, name="other")),
}
TERMS["square"] = binary("Mul", TERMS["Slice"], TERMS["Slice"])


@pytest.mark.parametrize("name", TERMS)
def test_of_every_operator(name: str) -> None:
    assert_agrees(TERMS[name])


def test_every_operator_has_a_derivative_or_is_known_to_need_none() -> None:
    assert set(OPERATORS) == {*DERIVATIVES, *INTEGERS_ONLY, *WITHOUT_INPUTS}
    assert INTEGERS_ONLY.isdisjoint(DERIVATIVES)


def test_goes_straight_through_a_cast_to_a_short_type() -> None:
    values = np.array([0.1, 0.2], np.float32)
    term = cast(binary("Mul", parameter("p", values), literal(np.float32(3))), np.float16)
    found = gradient(term, np.array([1.0, 10.0], np.float32))["p"]
    assert found.dtype == np.float32 and found.tolist() == [3, 30]


def test_of_other_arrays_than_its_own() -> None:
    term = binary("Mul", parameter("a", np.ones(2)), parameter("b", np.ones(2)))
    assert gradient(term, np.ones(2), {"b": np.array([5.0, 7.0])})["a"].tolist() == [5, 7]


@pytest.mark.parametrize(
    ("term", "what"),
    [
        (binary("Div", parameter("p", np.ones(2, np.int32)), literal(2, np.int32)), "Div"),
        (cast(parameter("p", np.ones(2)), np.int32), "Cast"),
        (gather(literal(np.ones(2)), parameter("p", np.zeros(2, np.int32))), "Gather"),
        (scatter(literal(np.ones(2)), parameter("p", np.zeros(2, np.int32)), literal(np.ones(2))), "ScatterElements"),
    ],
)
def test_names_the_operator_that_no_gradient_goes_through(term: Term, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        gradient(term, np.ones(2))


def test_codes_need_no_derivative() -> None:
    index = binary("Mod", counting(4), literal(2, np.int32))
    term = gather(parameter("p", np.ones(2)), index)
    assert gradient(term, np.arange(4.0))["p"].tolist() == [2, 4]


def test_refuses_two_parameters_of_one_name() -> None:
    with pytest.raises(ValueError, match="named p"):
        parameters(binary("Add", free(2), free(2)))
