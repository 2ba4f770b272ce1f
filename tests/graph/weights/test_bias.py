"""Where the bias of a linear node stands, and what adding to it does to the output."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.bias import biases, rounded_to
from onnxcomp.model import Model
from tests.graph.weights.test_linear_op import built, floats
from tests.graphs.running import run

CASES = [  # body, shapes of x and w; the node that reads the bias, "" for none
    ("y = Conv(x, w, b)", (1, 4, 6), (3, 4, 3), "Conv"),
    ("y = Conv(x, w)", (1, 4, 6), (3, 4, 3), "Conv"),
    ("y = ConvTranspose <group = 2> (x, w)", (1, 4, 6), (4, 2, 3), "ConvTranspose"),
    ("y = Gemm <beta = 2.0> (x, w, b)", (5, 4), (4, 3), "Gemm"),
    ("h = MatMul(x, w) y = Add(h, b)", (5, 4), (4, 3), "Add"),
    ("h = MatMul(x, w) y = Add(b, h)", (2, 5, 4), (4, 3), "Add"),
    ("y = MatMul(x, w)", (5, 4), (4, 3), ""),
]




@pytest.mark.parametrize(("body", "x", "w", "holder"), CASES)
def test_a_shift_of_the_bias_is_one_of_the_output(body: str, x: list[int], w: list[int], holder: str) -> None:
    proto = built(body, x, w=floats(*w), **({"b": floats(3)} if "b)" in body or "(b" in body else {}))
    graph = open_graph(Model(proto))
    (bias,) = biases(graph)
    assert (bias.holder.op if bias.holder else "") == holder
    before = run(proto, {"x": floats(*x)})["y"]
    shift = np.arange(1.0, 1.0 + before.shape[bias.axis])
    assert bias.add(graph, shift, insert=True) is None
    shape = [1] * before.ndim
    shape[bias.axis] = -1
    after = run(close_graph(graph).proto, {"x": floats(*x)})["y"]
    np.testing.assert_allclose(after, before + shift.reshape(shape), rtol=1e-5, atol=1e-5)


def test_an_add_that_more_reads_than_the_product_is_no_bias() -> None:
    proto = built("h = MatMul(x, w) a = Add(h, b) y = Mul(a, h)", (5, 4), w=floats(4, 3), b=floats(3))
    (bias,) = biases(open_graph(Model(proto)))
    assert bias.holder is None and bias.fault(3) == "no bias is added to it"


@pytest.mark.parametrize(
    ("body", "b", "fault"),
    [
        ("y = Gemm(x, w, b)", (3,), None),
        ("y = Gemm(x, w)", (3,), None),
        ("y = Gemm(x, w, b)", (5, 1), "one number a channel"),
        ("y = Gemm <beta = 2.0> (x, w, b)", (3,), "scales"),
        ("c = Neg(b) y = Gemm(x, w, c)", (3,), "not a constant"),
    ],
)
def test_says_what_is_not_one_number_a_channel(body: str, b: tuple[int, ...], fault: str | None) -> None:
    (bias,) = biases(open_graph(Model(built(body, (5, 4), w=floats(4, 3), b=floats(*b)))))
    found = bias.fault(3)
    assert found is None if fault is None else fault in str(found)


def test_values_too_large_for_a_type_are_none() -> None:
    assert rounded_to(np.array([7e4]), np.dtype(np.float16)) is None
    assert rounded_to(np.array([7e4]), np.dtype(np.float32)) == np.float32(7e4)
