"""Multiply-accumulates, against counts made by hand."""

from __future__ import annotations

import onnx
import pytest

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.macs import Macs, count_macs
from onnxcomp.model import load

HEAD = '<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>'

CASES = {
    # 4 output channels, 6 x 6 outputs, 3 input channels, 3 x 3 kernel
    "conv": ("g (float[1,3,8,8] x, float[4,3,3,3] w) => (float y) { y = Conv (x, w) }", 4 * 36 * 27),
    "conv in groups": (
        "g (float[1,4,8,8] x, float[4,1,3,3] w) => (float y) { y = Conv <group = 4> (x, w) }", 4 * 36 * 9,
    ),
    "conv with a stride": (
        "g (float[1,3,8,8] x, float[4,3,2,2] w) => (float y) { y = Conv <strides = [2,2]> (x, w) }", 4 * 16 * 12,
    ),
    # every one of the 3 x 5 x 5 inputs meets 4 x 2 x 2 weights
    "conv transpose": (
        "g (float[1,3,5,5] x, float[3,4,2,2] w) => (float y) { y = ConvTranspose (x, w) }", 75 * 16,
    ),
    "matmul": ("g (float[2,3,4] x, float[4,5] w) => (float y) { y = MatMul (x, w) }", 6 * 4 * 5),
    "gemm transposed": (
        "g (float[4,3] x, float[5,4] w) => (float y) { y = Gemm <transA = 1, transB = 1> (x, w) }", 3 * 4 * 5,
    ),
    # 7 steps, batch 2, 4 gates of 8 units that read 3 inputs and 8 states
    "lstm": (
        "g (float[7,2,3] x, float[1,32,3] w, float[1,32,8] r) => (float y) { y = LSTM <hidden_size = 8> (x, w, r) }",
        7 * 2 * 32 * 11,
    ),
    "einsum": (
        'g (float[2,3] x, float[3,4] w) => (float y) { y = Einsum <equation = "ij,jk->ik"> (x, w) }', 24,
    ),
    "batch that is open": ("g (float[N,3] x, float[3,5] w) => (float y) { y = MatMul (x, w) }", 15),
    "nothing": ("g (float[2,3] x) => (float y) { y = Relu (x) }", None),
}  # fmt: skip


def counted(text: str) -> list[Macs | None]:
    graph = open_graph(load(onnx.parser.parse_model(f"{HEAD} {text}")))
    return list(count_macs(graph).values())


@pytest.mark.parametrize("name", CASES)
def test_counts_what_a_hand_counts(name: str) -> None:
    text, expected = CASES[name]
    assert counted(text) == ([] if expected is None else [Macs(expected, False)])


def test_open_dimensions_count_as_one_and_are_said() -> None:
    [found] = counted("g (float[N,T,3] x, float[3,5] w) => (float y) { y = MatMul (x, w) }")
    assert found == Macs(15, True)


def test_a_dimension_of_minus_one_is_open() -> None:
    model = onnx.parser.parse_model(f"{HEAD} g (float[2,3] x, float[3,5] w) => (float y) {{ y = MatMul (x, w) }}")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert list(count_macs(open_graph(load(model))).values()) == [Macs(15, False)]


def test_unknown_shapes_are_unknown() -> None:
    assert counted("g (float x, float w) => (float y) { y = MatMul (x, w) }") == [None]
