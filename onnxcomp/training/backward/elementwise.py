"""Derivatives of what is computed element by element."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.graph.ir.query import constant_value, trains
from onnxcomp.training.backward.rules import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import FLOATS

SQUARE = 2.0


@rule("Add", broadcasts=True)
def add(at: At) -> Adjoints:
    return at.dy, at.dy


@rule("Sub", broadcasts=True)
def sub(at: At) -> Adjoints:
    return at.dy, -at.dy


@rule("Mul", broadcasts=True)
def mul(at: At) -> Adjoints:
    a, b = at.inputs
    return at.dy * b, at.dy * a


@rule("Div", broadcasts=True)
def div(at: At) -> Adjoints:
    _, b = at.inputs
    by_first = at.dy / b
    return by_first, -(by_first * at.y)


@rule("Pow", broadcasts=True)
def power(at: At) -> Adjoints:
    a, b = at.inputs
    stated = constant_value(b.tensor)
    if stated is not None and np.all(stated == SQUARE):  # a product is many times as fast as Pow
        return at.dy * (a * 2.0), None
    exponent = b.cast(a.data_type)
    below = at.write.alike(0.0, exponent).where(exponent.equals(0.0), exponent - 1.0)
    by_base = at.dy * exponent * at.op("Pow", a, below)
    if b.data_type not in FLOATS:
        return by_base, None
    return by_base, (at.dy * at.y * at.op("Log", a)).cast(b.data_type)


@rule("Sum", broadcasts=True)
def total(at: At) -> Adjoints:
    return [at.dy] * len(at.inputs)


@rule("Mean", broadcasts=True)
def mean(at: At) -> Adjoints:
    return [at.dy * (1.0 / len(at.inputs))] * len(at.inputs)


@rule("Max", "Min", broadcasts=True)
def extreme(at: At) -> Adjoints:
    """What ties shares the adjoint equally."""
    reached = [each.equals(at.y).cast(at.y.data_type) for each in at.inputs]
    count = reached[0]
    for each in reached[1:]:
        count = count + each
    share = at.dy / count
    return [share * each for each in reached]


@rule("Where", broadcasts=True)
def where(at: At) -> Adjoints:
    condition = at.x
    return None, at.dy.where(condition), at.write.alike(0.0, at.dy).where(condition, at.dy)


@rule("Identity", "Dropout")
def identity(at: At) -> Adjoints:
    if at.node.op == "Dropout" and trains(at.node):
        raise NoRuleError("it may be in training mode")
    return at.dy


@rule("Cast", "CastLike")
def cast(at: At) -> Adjoints:
    """A whole number from a float has no derivative; the adjoint of a quantized number is a float."""
    if at.y.data_type not in FLOATS:
        return ()
    return at.dy.cast(at.x.data_type) if at.x.data_type in FLOATS else at.dy


@rule("Floor", "Ceil", "Round", "Sign", "Hardmax")
def steps(at: At) -> Adjoints:
    return ()


@rule("Neg")
def neg(at: At) -> Adjoints:
    return -at.dy


@rule("Abs")
def absolute(at: At) -> Adjoints:
    return at.dy * at.op("Sign", at.x)


@rule("Exp")
def exp(at: At) -> Adjoints:
    return at.dy * at.y


@rule("Log")
def log(at: At) -> Adjoints:
    return at.dy / at.x


@rule("Sqrt")
def sqrt(at: At) -> Adjoints:
    return at.dy * 0.5 / at.y


@rule("Reciprocal")
def reciprocal(at: At) -> Adjoints:
    return -at.dy * (at.y * at.y)


@rule("Sin")
def sin(at: At) -> Adjoints:
    return at.dy * at.op("Cos", at.x)


@rule("Cos")
def cos(at: At) -> Adjoints:
    return -at.dy * at.op("Sin", at.x)


@rule("Tan")
def tan(at: At) -> Adjoints:
    return at.dy * (at.y * at.y + 1.0)


@rule("Asin")
def asin(at: At) -> Adjoints:
    return at.dy / at.op("Sqrt", 1.0 - at.x * at.x)


@rule("Acos")
def acos(at: At) -> Adjoints:
    return -at.dy / at.op("Sqrt", 1.0 - at.x * at.x)


@rule("Atan")
def atan(at: At) -> Adjoints:
    return at.dy / (at.x * at.x + 1.0)


@rule("Sinh")
def sinh(at: At) -> Adjoints:
    return at.dy * at.op("Cosh", at.x)


@rule("Cosh")
def cosh(at: At) -> Adjoints:
    return at.dy * at.op("Sinh", at.x)


@rule("Asinh")
def asinh(at: At) -> Adjoints:
    return at.dy / at.op("Sqrt", at.x * at.x + 1.0)


@rule("Acosh")
def acosh(at: At) -> Adjoints:
    return at.dy / at.op("Sqrt", at.x * at.x - 1.0)


@rule("Atanh")
def atanh(at: At) -> Adjoints:
    return at.dy / (1.0 - at.x * at.x)


@rule("Erf")
def erf(at: At) -> Adjoints:
    return at.dy * (at.op("Exp", -(at.x * at.x)) * (2.0 / math.sqrt(math.pi)))
