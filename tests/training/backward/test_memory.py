"""What a step takes, stated before it runs."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper, parser

from onnxcomp.model import Model, load
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.backward.memory import ARENA, peak_bytes

FLOAT32 = 4


def chain() -> Model:
    """Three products of elements, of which two are alive at once: x * w -> (N, 1000) -> (N, 1000) -> a number."""
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N,1000] x) => (float loss) { a = Mul(x, w)  b = Tanh(a)  c = Abs(b)
            loss = ReduceSum<keepdims=0>(c) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "w"))
    return load(proto)


def test_what_is_alive_at_once_is_counted() -> None:
    feeds = {"x": np.zeros((50, 1000), np.float32)}
    expected = FLOAT32 * (1000 + 50 * 1000 + ARENA * 2 * 50 * 1000)
    assert abs(peak_bytes(chain(), feeds) - expected) < 100


def test_a_step_takes_in_proportion_to_the_batch() -> None:
    engine = BackwardEngine(chain(), "loss", ["w"], threads=1)
    one, four = (engine.step_bytes({"x": np.zeros((size, 1000), np.float32)}) for size in (100, 400))
    assert 3.9 < four / one < 4.0


def test_another_view_of_the_same_elements_takes_nothing() -> None:
    proto = chain().proto
    with_view = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N,1000] x) => (float loss) {
            a = Mul(x, w)  s = Constant<value_ints=[-1]>()  v = Reshape(a, s)  b = Tanh(v)  c = Abs(b)
            loss = ReduceSum<keepdims=0>(c) }"""
    )
    with_view.graph.initializer.extend(proto.graph.initializer)
    feeds = {"x": np.zeros((50, 1000), np.float32)}
    assert abs(peak_bytes(load(with_view), feeds) - peak_bytes(load(proto), feeds)) < 100
