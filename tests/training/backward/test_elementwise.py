"""Rules of elementwise operators, held to finite differences with shapes known and open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.backward.drawn import THOROUGH, normal, number, positive, some_of
from tests.training.backward.finite_differences import check_rule

ANYWHERE = """
    Abs Asinh Atan Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu Shrink
    Sigmoid Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu
"""


@pytest.mark.parametrize("op", ANYWHERE.split())
def test_functions_of_one_tensor(op: str) -> None:
    check_rule(op, [normal(3, 5)], opset=20, dynamic=THOROUGH)


@pytest.mark.parametrize("op", ["Log", "Reciprocal", "Sqrt"])
def test_functions_of_positive_numbers(op: str) -> None:
    check_rule(op, [positive(3, 4)], dynamic=THOROUGH)


@pytest.mark.parametrize("op", ["Asin", "Acos", "Atanh"])
def test_functions_of_what_is_below_one(op: str) -> None:
    check_rule(op, [np.tanh(normal(3, 4))], dynamic=THOROUGH)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Celu", {"alpha": 0.7}),
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("LeakyRelu", {"alpha": 0.2}),
        ("Selu", {"alpha": 1.2, "gamma": 0.9}),
        ("Shrink", {"lambd": 0.2, "bias": 0.1}),
        ("ThresholdedRelu", {"alpha": 0.3}),
        ("Gelu", {"approximate": "tanh"}),
        ("Cast", {"to": 1}),
    ],
)
def test_attributes_of_functions(op: str, attrs: dict[str, Any]) -> None:
    check_rule(op, [normal(4, 5)], opset=20, dynamic=THOROUGH, **attrs)


def test_swish_has_a_slope() -> None:
    check_rule("Swish", [normal(3, 4)], opset=24, alpha=1.3)


@pytest.mark.parametrize("op", some_of(["Mul", "Sub", "Max", "Sum"], 3))
@pytest.mark.parametrize("shapes", [((2, 3, 4), (3, 1)), ((4,), (2, 1, 4)), ((2, 3), (2, 3)), ((), (2, 3))])
def test_broadcasting_is_undone(op: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    check_rule(op, [normal(*shape) for shape in shapes])


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max"])
def test_any_number_of_operands(op: str) -> None:
    check_rule(op, [normal(2, 3), normal(3), normal(1, 3)])


def test_div() -> None:
    check_rule("Div", [normal(2, 3, 4), positive(3, 1)])


def test_pow_of_base_and_exponent() -> None:
    check_rule("Pow", [positive(2, 3), normal(3)])


@pytest.mark.parametrize("exponent", [number(2.0), number(3.0), number(0.0), np.array(2, np.int64)])
def test_pow_of_any_base_to_a_fixed_exponent(exponent: Any) -> None:
    base = normal(2, 3)
    base[0, 0] = 0.0
    check_rule("Pow", [base, exponent], fixed=[1])


def test_where() -> None:
    check_rule("Where", [normal(2, 3) > 0, normal(2, 3), normal(3)])


def test_clip_gives_its_bounds_what_lies_beyond() -> None:
    check_rule("Clip", [normal(4, 5), number(-0.5), number(0.7)])


def test_clip_without_a_lower_bound() -> None:
    check_rule("Clip", [normal(4, 5), None, number(0.7)])


def test_prelu() -> None:
    check_rule("PRelu", [normal(2, 3, 4), normal(3, 1)])
