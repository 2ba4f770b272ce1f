"""Kernel matrix times unfolded input is what ONNX Runtime's Conv and ConvTranspose give."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.conv_geometry import window_of
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.numerics.arrays.im2col import unfold
from onnxcomp.runtime import Session

INPUTS = {1: (2, 4, 9), 2: (2, 4, 7, 8), 3: (2, 4, 5, 4, 6)}

CONV = [
    ((6, 4, 3), ""),
    ((6, 4, 3), "strides = [2], dilations = [2], pads = [3, 1]"),
    ((6, 4, 3, 2), "strides = [2, 1], pads = [0, 1, 2, 0]"),
    ((6, 2, 3, 2), "group = 2, dilations = [2, 3], pads = [2, 2, 1, 1]"),
    ((8, 1, 3, 3), "group = 4, strides = [2, 2]"),
    ((6, 4, 2, 3, 1), "strides = [1, 2, 2], dilations = [2, 1, 1], pads = [1, 0, 0, 0, 1, 2]"),
    ((6, 4, 3, 3), 'auto_pad = "VALID", strides = [2, 1]'),
    *(
        ((6, 2, *kernel), f'group = 2, auto_pad = "SAME_{where}", strides = {strides}')
        for where in ("UPPER", "LOWER")  # ONNX Runtime refuses dilations with these
        for kernel, strides in (
            ((4,), [1]), ((2,), [3]), ((1,), [2]), ((3, 2), [2, 3]), ((2, 4), [1, 1]), ((2, 3, 2), [2, 1, 3]),
        )
    ),
]  # fmt: skip
TRANSPOSED = [
    ((4, 3, 3), "strides = [2]"),
    ((4, 3, 3, 2), "strides = [2, 3], pads = [1, 0, 0, 1]"),
    ((4, 3, 2, 3), "group = 2, dilations = [2, 1], strides = [1, 2], pads = [0, 1, 1, 1]"),
    ((4, 2, 2, 2), "group = 4, strides = [2, 2]"),
    ((4, 3, 2, 1, 2), "group = 2, strides = [2, 1, 2]"),
    ((4, 3, 2, 2), "pads = [2, 1, 1, 2]"),
    ((4, 3, 2, 2), 'auto_pad = "VALID", strides = [2, 1]'),
]


def opened(op: str, shape: tuple[int, ...], attributes: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model of one node, and an input for it."""
    dims = ", ".join("NCDEF"[: len(shape)])
    stated = f"<{attributes}>" if attributes else ""
    text = f"g (float[{dims}] x) => (float[{dims.replace(', ', 'o, ')}o] y) {{ y = {op} {stated} (x, w) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w"))
    return proto, rng.standard_normal(INPUTS[len(shape) - 2]).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [("Conv", *case) for case in CONV] + [("ConvTranspose", *case) for case in TRANSPOSED],
)
def test_matrix_times_columns_is_the_output(op: str, shape: tuple[int, ...], attributes: str) -> None:
    proto, x = opened(op, shape, attributes)
    expected = np.asarray(Session(proto.SerializeToString()).run({"x": x})["y"])
    (weight,) = weights(open_graph(load(proto)))
    form = matrix_form(weight)
    window = window_of(weight.roles[0].node, shape[2:])
    assert form is not None and window is not None
    matrices = form.pack(weight.values)
    rows = unfold(x, window(x.shape[2:]), form.groups, most_rows=10**6)
    got = np.matmul(matrices, rows.swapaxes(1, 2)).reshape(form.groups, -1, len(x), math.prod(expected.shape[2:]))
    got = got.transpose(2, 0, 1, 3).reshape(expected.shape)
    # Sums of up to 36 products of unit variance in float32.
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", "strides = [1]"),
        ("Conv", "pads = [1, 1]"),
        ("Conv", "dilations = [1, 1, 1]"),
        ("ConvTranspose", "output_shape = [9, 9]"),
        ("ConvTranspose", 'auto_pad = "SAME_UPPER"'),
    ],
)
def test_attributes_that_do_not_tell_the_padding_give_no_window(op: str, attributes: str) -> None:
    proto, _ = opened(op, (4, 4, 2, 2), attributes)
    (node,) = open_graph(load(proto)).main.graph.nodes
    assert window_of(node, (2, 2)) is None
