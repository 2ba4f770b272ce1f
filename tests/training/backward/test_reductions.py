"""Rules of reductions, softmax, normalizations and losses, held to finite differences with shapes known and open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.backward.drawn import Array, normal, positive, some_of, whole
from tests.training.backward.finite_differences import check_rule

REDUCTIONS = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
FLOAT32 = {"by_runtime": 1e-2, "tolerance": 1e-2}  # onnx's evaluator computes these in float32


@pytest.mark.parametrize(
    ("kind", "axes", "keeps"),
    some_of([(kind, *form) for kind in REDUCTIONS for form in (([1], 0), ([-1, 0], 1), (None, 0), (None, 1))], 3),
)
def test_reductions(kind: str, axes: list[int] | None, keeps: int) -> None:
    check_rule(f"Reduce{kind}", [normal(2, 3, 4), None if axes is None else whole(*axes)], keepdims=keeps)


def test_reduce_log_sum() -> None:
    check_rule("ReduceLogSum", [positive(2, 3, 4), whole(1)])


@pytest.mark.parametrize("zeros", [1, 2])
def test_product_around_zeros(zeros: int) -> None:
    data = normal(2, 4)
    data[0, :zeros] = 0.0
    check_rule("ReduceProd", [data, whole(1)])


def test_no_axes_may_mean_nothing() -> None:
    check_rule("ReduceSum", [normal(2, 3)], noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_of_either_meaning(op: str, axis: int, opset: int) -> None:
    check_rule(op, [normal(2, 3, 4)], axis=axis, opset=opset, by_runtime=1e-2, tolerance=1e-2)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5, 3)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    check_rule("BatchNormalization", [normal(*shape), normal(3), normal(3), normal(3), positive(3)])


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("LayerNormalization", [normal(2, 3, 4), normal(4), normal(4)], {}),
        ("LayerNormalization", [normal(2, 3, 4), normal(3, 4)], {"axis": 1}),
        ("InstanceNormalization", [normal(2, 3, 4, 5), normal(3), normal(3)], {}),
        ("LpNormalization", [normal(3, 4)], {}),
        ("LpNormalization", [positive(3, 4)], {"p": 1, "axis": 0}),
        ("LRN", [normal(2, 6, 3, 3)], {"size": 3, "alpha": 0.5}),
        ("GroupNormalization", [normal(2, 4, 3, 3), normal(4), normal(4)], {"num_groups": 2, "opset": 21, **FLOAT32}),
        ("RMSNormalization", [normal(2, 3, 4), normal(4)], {"opset": 23}),
        ("MeanVarianceNormalization", [normal(2, 3, 4, 4)], FLOAT32),
    ],
)
def test_normalizations(op: str, inputs: list[Array], attrs: dict[str, Any]) -> None:
    check_rule(op, inputs, **attrs)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("SoftmaxCrossEntropyLoss", [normal(3, 5), whole(1, 4, 0)], {}),
        (
            "SoftmaxCrossEntropyLoss",
            [normal(3, 5, 2), np.array([[1, 4], [0, 1], [2, 2]]), positive(5)],
            {"reduction": "sum"},
        ),
        ("NegativeLogLikelihoodLoss", [normal(3, 5), whole(1, 4, 0)], {}),
        ("Attention", [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)], {"opset": 23}),
        ("RotaryEmbedding", [normal(1, 2, 3, 4), normal(1, 3, 2), normal(1, 3, 2)], {"opset": 23, "fixed": [1, 2]}),
    ],
)
def test_what_onnx_defines_by_other_operators(op: str, inputs: list[Array], attrs: dict[str, Any]) -> None:
    check_rule(op, inputs, **attrs)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Gelu", [normal(3, 4)], {}),
        ("BiasGelu", [normal(3, 4), normal(4)], {}),
        ("FastGelu", [normal(3, 4), normal(4)], {}),
        ("QuickGelu", [normal(3, 4)], {}),
        ("SkipLayerNormalization", [normal(2, 3, 4), normal(2, 3, 4), normal(4), normal(4), normal(4)], {}),
        ("SkipSimplifiedLayerNormalization", [normal(2, 3, 4), normal(2, 3, 4), normal(4)], {}),
        ("FusedMatMul", [normal(4, 3), normal(5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5}),
        ("FusedGemm", [normal(3, 4), normal(4, 5), normal(5)], {"activation": "Relu"}),
        ("FusedConv", [normal(2, 3, 5, 5), normal(4, 3, 3, 3), normal(4)], {"activation": "Relu", "known": [1]}),
        ("MultiHeadAttention", [normal(2, 3, 8), normal(2, 5, 8), normal(2, 5, 8)], {"num_heads": 2}),
        (
            "Attention",
            [normal(2, 3, 8), normal(8, 24), normal(24), np.array([[1, 1, 0], [1, 1, 1]], np.int32)],
            {"num_heads": 2, "known": [1]},
        ),
    ],
)
def test_operators_of_onnx_runtime(op: str, inputs: list[Array], attrs: dict[str, Any]) -> None:
    check_rule(op, inputs, domain="com.microsoft", **FLOAT32, **attrs)
