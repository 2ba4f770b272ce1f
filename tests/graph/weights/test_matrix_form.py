"""Packed matrices times input columns, both by hand, are what ONNX Runtime gives; readers must agree on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights import matrix_form as module
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form, worth_moments
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import load
from tests.graphs.running import run

Array = np.ndarray
LINEAR = [  # body, shapes of x, w and y
    ("y = MatMul(x, w)", (5, 4), (4, 3), (5, 3)),
    ("y = MatMul(x, w)", (2, 5, 4), (4, 3), (2, 5, 3)),
    ("y = MatMul(x, w)", (2, 3, 5, 4), (2, 3, 4, 6), (2, 3, 5, 6)),
    ("y = Gemm (x, w)", (5, 4), (4, 3), (5, 3)),
    ("y = Gemm <transB = 1> (x, w)", (5, 4), (3, 4), (5, 3)),
    ("y = Gemm <transA = 1> (x, w)", (4, 5), (4, 3), (5, 3)),
    ("y = Gemm <transA = 1, transB = 1> (x, w)", (4, 5), (3, 4), (5, 3)),
    ("t = Transpose (w) y = MatMul(x, t)", (5, 4), (3, 4), (5, 3)),
    ("t = Transpose (w) y = Gemm <transB = 1> (x, t)", (5, 4), (4, 3), (5, 3)),
    ("t = Transpose <perm = [2, 0, 1]> (w) y = MatMul(x, t)", (2, 5, 4), (4, 6, 2), (2, 5, 6)),
    ("i = Identity (w) y = MatMul(x, i)", (5, 4), (4, 3), (5, 3)),
    ("y = MatMul(w, x)", (4, 5), (3, 4), (3, 5)),
    ("y = Gemm (w, x)", (4, 5), (3, 4), (3, 5)),
    ("y = Gemm <transB = 1> (w, x)", (5, 4), (3, 4), (3, 5)),
    ("t = Transpose (w) y = MatMul(t, x)", (4, 5), (4, 3), (3, 5)),
]


def opened(body: str, x: tuple[int, ...], w: tuple[int, ...], rank: int) -> tuple[onnx.ModelProto, Weight]:
    """A model of x and the weight w, and that weight."""
    declared = ["float[" + ",".join(map(str, x)) + "] x", "float[" + ",".join("abcdef"[:rank]) + "] y"]
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({declared[0]}) => ({declared[1]}) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(drawn(w, 0), "w"))
    (weight,) = weights(open_graph(load(proto)))
    return proto, weight


def drawn(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def form_of(weight: Weight) -> MatrixForm:
    form = matrix_form(weight)
    assert form is not None
    return form


def assert_times_columns(matrices: Array, columns: Array, expected: Array) -> None:
    """matrices: (groups, outputs, K), columns: (groups, K, n), expected: (groups, outputs, n)."""
    assert matrices.shape == (*expected.shape[:2], columns.shape[1])
    np.testing.assert_allclose(np.einsum("gok,gkn->gon", matrices, columns), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("body", "x_shape", "w_shape", "y_shape"), LINEAR)
def test_products(body: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> None:
    proto, weight = opened(body, x_shape, w_shape, len(y_shape))
    x, y = drawn(x_shape, 1), run(proto, {"x": drawn(x_shape, 1)})["y"]
    assert y.shape == y_shape
    matrices = form_of(weight).pack(weight.values)
    length = 4  # what is summed over has this size in every case, and no free axis has
    if weight.roles[0].input_index == 0:
        assert_times_columns(matrices, (x if x.shape[0] == length else x.T)[None], y[None])
        return
    rows = x if x.shape[-1] == length else x.T
    groups = len(matrices)
    columns = rows.reshape(groups, -1, length).swapaxes(1, 2)
    assert_times_columns(matrices, columns, y.reshape(groups, -1, y.shape[-1]).swapaxes(1, 2))


def pixels(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, shape))


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 2), (4, 3)])
def test_transposed_convolution(groups: int, stride: int) -> None:
    body = f"y = ConvTranspose <group = {groups}, strides = [{stride}, {stride}]> (x, w)"
    proto, weight = opened(body, (1, 4, 3, 5), (4, 3, 2, 3), 4)
    x = drawn((1, 4, 3, 5), 1)
    y = run(proto, {"x": x})["y"][0]
    columns = np.zeros((4, 2, 3, *y.shape[1:]), np.float32)
    for channel, a, b, i, j in pixels((4, 2, 3, 3, 5)):  # x[i, j] reaches y[stride i + a, stride j + b]
        columns[channel, a, b, stride * i + a, stride * j + b] = x[0, channel, i, j]
    matrices = form_of(weight).pack(weight.values)
    assert_times_columns(
        matrices, columns.reshape(groups, 4 // groups * 6, -1), y.reshape(groups, 3, y.shape[1] * y.shape[2])
    )


def test_kernel_that_is_kept_with_its_channels_last() -> None:
    body = "t = Transpose <perm = [3, 2, 0, 1]> (w) y = Conv <group = 2> (x, t)"
    proto, weight = opened(body, (1, 4, 5, 6), (2, 3, 2, 8), 4)
    x = drawn((1, 4, 5, 6), 1)
    y = run(proto, {"x": x})["y"][0]
    columns = np.zeros((4, 2, 3, 4, 4), np.float32)
    for channel, a, b, i, j in pixels(columns.shape):
        columns[channel, a, b, i, j] = x[0, channel, i + a, j + b]
    assert_times_columns(form_of(weight).pack(weight.values), columns.reshape(2, 12, 16), y.reshape(2, 4, 16))


def test_both_weights_of_a_recurrent_node() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3,1,4] x) => (float[3,2,1,5] y)'
        '{ y = LSTM <direction = "bidirectional", hidden_size = 5> (x, w, r) }'
    )
    for seed, (name, columns) in enumerate((("w", 4), ("r", 5))):
        proto.graph.initializer.append(numpy_helper.from_array(drawn((2, 20, columns), seed), name))
    by_name = {each.name: form_of(each).pack(each.values) for each in weights(open_graph(load(proto)))}
    x = drawn((3, 1, 4), 7)
    expected = run(proto, {"x": x})["y"]
    for direction, steps in enumerate(([0, 1, 2], [2, 1, 0])):
        hidden = cell = np.zeros(5)
        for step in steps:
            gates = by_name["w"][direction] @ x[step, 0] + by_name["r"][direction] @ hidden
            opens, lets_out, forgets = 1 / (1 + np.exp(-gates[:15].reshape(3, 5)))
            cell = forgets * cell + opens * np.tanh(gates[15:])
            hidden = lets_out * np.tanh(cell)
            np.testing.assert_allclose(expected[step, direction, 0], hidden, rtol=1e-4, atol=1e-5)


EVERY = [
    *((body, x, w, len(y)) for body, x, w, y in LINEAR),
    ("y = Conv <group = 2> (x, w)", (1, 4, 5, 6), (6, 2, 3, 2), 4),
    ("t = Transpose <perm = [3, 2, 0, 1]> (w) y = Conv (x, t)", (1, 4, 5, 6), (2, 3, 4, 8), 4),
    ("y = ConvTranspose <group = 2> (x, w)", (1, 4, 5, 6), (4, 3, 3, 2), 4),
    ("t = Transpose <perm = [1, 2, 0]> (w) y = ConvTranspose <group = 2> (x, t)", (1, 4, 9), (2, 4, 3), 3),
]


@pytest.mark.parametrize(("body", "x", "w", "rank"), EVERY)
def test_unpacking_puts_every_value_back(body: str, x: tuple[int, ...], w: tuple[int, ...], rank: int) -> None:
    _, weight = opened(body, x, w, rank)
    numbered = np.arange(np.prod(w)).reshape(w)
    matrices = form_of(weight).pack(numbered)
    assert sorted(matrices.ravel()) == list(range(numbered.size))
    back = form_of(weight).unpack(matrices)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, numbered)


@pytest.mark.parametrize(
    ("body", "x", "w"),
    [
        ("a = MatMul(x, w) y = Gemm <transB = 1> (a, w)", (4, 4), (4, 4)),  # along rows and along columns
        ("a = MatMul(x, w) y = MatMul(w, a)", (4, 4), (4, 4)),
        ("a = MatMul(x, w) y = Add(a, w)", (4, 4), (4, 4)),  # a reader without a matrix
        ("s = Constant <value = int64[2] {4, 3}> () r = Reshape (w, s) y = MatMul(x, r)", (5, 4), (3, 4)),
        ("y = MatMul(w, x)", (2, 4, 5), (2, 3, 4)),
        ("y = Gemm <transA = 1> (w, x)", (4, 5), (4, 3)),
    ],
)
def test_no_form_where_readers_disagree_or_none_is_known(body: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    _, weight = opened(body, x, w, len(x))
    assert matrix_form(weight) is None
    assert not worth_moments(weight)


def test_readers_that_agree_share_a_form() -> None:
    _, twice = opened("a = MatMul(x, w) y = Gemm (a, w)", (4, 4), (4, 4), 2)
    _, once = opened("y = MatMul(x, w)", (4, 4), (4, 4), 2)
    assert form_of(twice) == form_of(once)


def test_convolutions_of_different_groups_disagree() -> None:
    body = "a = Conv <group = 2> (x, w) c = Slice (x, zero, two, one) b = Conv (c, w) y = Add(a, b)"
    constants = "".join(f"{name} = Constant <value = int64[1] {{{value}}}> () " for name, value in
                        (("zero", 0), ("one", 1), ("two", 2)))  # fmt: skip
    proto, weight = opened(constants + body, (1, 4, 3, 3), (4, 2, 1, 1), 4)
    assert run(proto, {"x": drawn((1, 4, 3, 3), 1)})["y"].shape == (1, 4, 3, 3)
    assert len(weight.roles) == 2
    assert matrix_form(weight) is None


def test_moments_may_be_some_times_as_many_as_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MOMENTS", 100)
    for rows, worth in ((10, True), (16, True), (17, False)):  # 16 x 16 moments are 8 times 16 x 2 values
        _, weight = opened("y = MatMul(x, w)", (1, rows), (rows, 2), 2)
        assert worth_moments(weight) is worth
    _, depthwise = opened("y = Conv <group = 11> (x, w)", (1, 11, 3, 3), (11, 1, 3, 3), 4)
    assert not worth_moments(depthwise)  # 11 groups of 9 x 9 for 99 values
