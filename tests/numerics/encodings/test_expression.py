"""Formulas compute what ONNX defines, or refuse."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.expression import binary, evaluate, literal


def test_integers_are_divided_toward_zero() -> None:
    left = np.array([7, -7, 8, -8, 0, 6, -6], np.int32)
    made = evaluate(binary("Div", literal(left), literal(np.array(3, np.int32))))
    assert made.tolist() == [2, -2, 2, -2, 0, 2, -2] and made.dtype == np.int32
    assert evaluate(binary("Div", literal(left), literal(np.array(-3, np.int32)))).tolist() == [-2, 2, -2, 2, 0, -2, 2]


def test_the_rest_has_the_sign_of_the_divisor() -> None:
    left = np.array([7, -7], np.int32)
    assert evaluate(binary("Mod", literal(left), literal(np.array(3, np.int32)))).tolist() == [1, 2]


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_floats_are_not_divided(op: str) -> None:
    with pytest.raises(ValueError, match="integers only"):
        binary(op, literal(1.0), literal(8.0))
