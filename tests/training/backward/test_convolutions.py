"""Rules of convolutions and pooling, held to finite differences with shapes known and open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.backward.drawn import THOROUGH, normal
from tests.training.backward.finite_differences import check_rule

LINEAR = 0.5  # an operator that is linear in each input is so whatever the step


@pytest.mark.parametrize(
    ("data", "kernel", "attrs"),
    [
        ((2, 3, 7, 6), (4, 3, 3, 2), {}),
        ((2, 3, 7, 6), (4, 3, 3, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
        ((2, 4, 9, 9), (6, 2, 3, 3), {"group": 2, "strides": [2, 2]}),
        ((2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((2, 4, 9, 8), (8, 1, 3, 3), {"group": 4, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((2, 4, 9, 8), (3, 4, 2, 2), {"auto_pad": "VALID", "strides": [3, 3]}),
        ((2, 4, 9), (3, 4, 3), {"strides": [3]}),
        ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
        ((2, 3, 5, 5), (4, 3, 1, 1), {}),
        ((2, 3, 5, 5), (4, 3, 1, 1), {"strides": [2, 2]}),
    ],
)
def test_conv(data: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> None:
    check_rule("Conv", [normal(*data), normal(*kernel), normal(kernel[0])], known=[1], **attrs)


@settings(max_examples=100 if THOROUGH else 8, deadline=None, derandomize=True)
@given(
    size=st.integers(5, 8),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    group=st.sampled_from([1, 2, 4]),
)
def test_conv_of_any_form(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], group: int
) -> None:
    operands = [normal(2, 4, size), normal(4, 4 // group, kernel), None]
    check_rule(
        "Conv",
        operands,
        strides=[stride],
        dilations=[dilation],
        pads=list(pads),
        group=group,
        known=[1],
        by_runtime=LINEAR,
    )


@pytest.mark.parametrize(
    ("data", "kernel", "attrs"),
    [
        ((2, 3, 5, 4), (3, 4, 3, 3), {}),
        ((2, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 0, 1], "output_padding": [1, 0]}),
        ((2, 4, 5), (4, 2, 3), {"group": 2, "strides": [2]}),
        ((2, 4, 5), (4, 1, 3), {"group": 4, "dilations": [2]}),
    ],
)
def test_conv_transpose(data: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> None:
    bias = normal(kernel[1] * attrs.get("group", 1))
    check_rule("ConvTranspose", [normal(*data), normal(*kernel), bias], known=[1], by_runtime=LINEAR, **attrs)


@pytest.mark.parametrize("attrs", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [9, 8]}])
def test_conv_transpose_of_a_stated_size(attrs: dict[str, Any]) -> None:
    operands = [normal(2, 3, 5, 4), normal(3, 4, 3, 3), normal(4)]
    check_rule("ConvTranspose", operands, strides=[2, 2], by_runtime=LINEAR, dynamic=False, **attrs)


POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 6, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 7, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 7), {"kernel_shape": [3]}),
]


@pytest.mark.parametrize(("shape", "attrs"), POOLS)
def test_max_pool(shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    check_rule("MaxPool", [normal(*shape)], **attrs)


@pytest.mark.parametrize("counts_padding", [0, 1])
@pytest.mark.parametrize(("shape", "attrs"), POOLS)
def test_average_pool(shape: tuple[int, ...], attrs: dict[str, Any], counts_padding: int) -> None:
    check_rule("AveragePool", [normal(*shape)], count_include_pad=counts_padding, by_runtime=LINEAR, **attrs)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op: str) -> None:
    check_rule(op, [normal(2, 3, 4, 5)])
