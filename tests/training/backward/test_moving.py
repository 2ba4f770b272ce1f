"""Rules of what moves, cuts, joins and resizes, held to finite differences with shapes known and open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.backward.drawn import Array, normal, number, some_of, whole
from tests.training.backward.finite_differences import check_rule

SIDES = whole(0, 1, 2, 1, 0, 0)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Reshape", [normal(2, 3, 4), whole(4, -1)], {}),
        ("Flatten", [normal(2, 3, 4)], {}),
        ("Squeeze", [normal(2, 1, 3), whole(1)], {}),
        ("Unsqueeze", [normal(2, 3), whole(0)], {}),
        ("Transpose", [normal(2, 3, 4)], {}),
        ("Transpose", [normal(2, 3, 4)], {"perm": [1, 2, 0]}),
        ("Expand", [normal(3, 1), whole(2, 1, 4)], {}),
        ("Tile", [normal(2, 3), whole(2, 3)], {}),
        ("Trilu", [normal(2, 4, 4)], {}),
        ("Trilu", [normal(4, 5), np.array(1)], {"upper": 0}),
        ("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2}),
        ("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2, "mode": "CRD"}),
        ("SpaceToDepth", [normal(2, 2, 4, 6)], {"blocksize": 2}),
        ("Compress", [normal(4, 3), np.array([1, 0, 1, 1], bool)], {"axis": 0}),
        ("ReverseSequence", [normal(4, 3), whole(1, 2, 4)], {}),
        ("CenterCropPad", [normal(3, 4), whole(2, 6)], {}),
        ("CumSum", [normal(2, 3, 4), np.array(1)], {}),
        ("CumSum", [normal(2, 3, 4), np.array(1)], {"exclusive": 1, "reverse": 1}),
    ],
)
def test_movers(op: str, inputs: list[Array], attrs: dict[str, Any]) -> None:
    check_rule(op, inputs, **attrs)


@pytest.mark.parametrize("axis", [0, -1])
def test_concat(axis: int) -> None:
    shapes = [(2, 3), (1, 3)] if axis == 0 else [(2, 3), (2, 1), (2, 2)]
    check_rule("Concat", [normal(*shape) for shape in shapes], axis=axis)


@pytest.mark.parametrize(
    ("inputs", "outputs", "attrs"),
    [
        ([normal(5, 3), whole(2, 3)], 2, {}),
        ([normal(6, 3), whole(2, 3, 1)], [0, 2], {}),
        ([normal(3, 6)], 3, {"axis": 1, "num_outputs": 3}),
    ],
)
def test_split_of_which_not_all_parts_count(inputs: list[Array], outputs: Any, attrs: dict[str, Any]) -> None:
    check_rule("Split", inputs, outputs=outputs, **attrs)


@pytest.mark.parametrize(
    "inputs",
    [
        [whole(1, -4), whole(3, 100), whole(0, 2)],
        [whole(-1, 0), whole(-100, 100), whole(0, 2), whole(-2, 2)],
        [whole(1), whole(3)],
    ],
)
def test_slice(inputs: list[Array]) -> None:
    check_rule("Slice", [normal(4, 5, 6), *inputs])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode: str) -> None:
    check_rule("Pad", [normal(2, 3, 4), SIDES], opset=19, mode=mode)


def test_pad_by_a_trained_number() -> None:
    check_rule("Pad", [normal(2, 3, 4), SIDES, number(0.5)])


def test_pad_that_cuts() -> None:
    check_rule("Pad", [normal(2, 3, 4), whole(1, -1), None, whole(2)], by_runtime=0.5)


@pytest.mark.parametrize(
    ("shape", "indices", "axis"),
    [
        ((5, 3), whole(0, 2, -1, 2), 0),
        ((5, 3), np.array([[0, 2], [-1, 2]], np.int32), 1),
        ((5, 3, 2), np.array(1), 1),
    ],
)
def test_gather_adds_what_is_taken_twice(shape: tuple[int, ...], indices: Array, axis: int) -> None:
    check_rule("Gather", [normal(*shape), indices], axis=axis)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("GatherElements", [normal(3, 4), np.array([[0, 1, 0, 2], [2, -1, 0, 1]])], {}),
        ("GatherND", [normal(3, 4, 2), np.array([[0, 1], [2, 3], [0, 1]])], {}),
        ("GatherND", [normal(2, 4, 2), np.array([[1], [3]])], {"batch_dims": 1}),
        ("ScatterElements", [normal(3, 4), np.array([[0, 1, 2, 0]]), normal(1, 4)], {}),
        (
            "ScatterElements",
            [normal(3, 4), np.array([[0, 0], [1, 1], [2, 2]]), normal(3, 2)],
            {"axis": 1, "reduction": "add"},
        ),
        ("ScatterND", [normal(4, 3), np.array([[1], [3]]), normal(2, 3)], {}),
        ("ScatterND", [normal(4, 3), np.array([[1], [1]]), normal(2, 3)], {"reduction": "add"}),
    ],
)
def test_gathering_and_scattering(op: str, inputs: list[Array], attrs: dict[str, Any]) -> None:
    check_rule(op, inputs, **attrs)


@pytest.mark.parametrize("attrs", [{}, {"axis": 0, "largest": 0}])
def test_top_k_values(attrs: dict[str, Any]) -> None:
    check_rule("TopK", [normal(4, 5), whole(2)], outputs=[0], **attrs)


@pytest.mark.parametrize(
    ("mode", "place"),
    some_of(
        [
            (mode, place)
            for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
            for mode in ("nearest", "linear", "cubic")
        ],
        4,
    ),
)
def test_resize(mode: str, place: str) -> None:
    for scales, sizes in ([1, 1, 2, 1.5], None), (None, [2, 3, 3, 7]):
        operands = [
            normal(2, 3, 4, 5),
            None,
            None if scales is None else np.array(scales, np.float32),
            None if sizes is None else whole(*sizes),
        ]
        check_rule("Resize", operands, fixed=[2], by_runtime=0.5, mode=mode, coordinate_transformation_mode=place)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5, 3)])
def test_resize_along_any_number_of_axes(shape: tuple[int, ...]) -> None:
    scales = np.array([1, 1, *(2 for _ in shape[2:])], np.float32)
    check_rule("Resize", [normal(*shape), None, scales], fixed=[2], mode="linear")


def test_resize_smoothed_along_some_axes() -> None:
    operands = [normal(2, 3, 6, 6), None, np.array([0.5, 0.5], np.float32)]
    check_rule("Resize", operands, fixed=[2], axes=[2, 3], mode="linear", antialias=1)
