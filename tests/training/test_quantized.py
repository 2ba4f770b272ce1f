"""Quantized models while they are trained: floats in the place of integers, and integers again."""

import numpy as np
import onnx
import pytest

from onnxcomp.graph.ir.reader import close_graph
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.trainable.coded import TrainedRounding
from onnxcomp.runtime import Session
from onnxcomp.training.quantized import (
    activation_scales,
    integer_biases,
    integer_weights,
    put_integers,
    show_floats,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 1, 6, 6)).astype(np.float32)
CONV = """<ir_version: 8, opset_import: ["" : 13]> g (float[N, 1, 6, 6] x) => (float[N, 2, 2, 2] y) {
    xq = QuantizeLinear(x, sx, zx)  xf = DequantizeLinear(xq, sx, zx)
    wf = DequantizeLinear<axis = 0>(w, sw, zw)  bf = DequantizeLinear<axis = 0>(b, sb)
    c = Conv(xf, wf, bf)
    cq = QuantizeLinear(c, sc, zc)  cf = DequantizeLinear(cq, sc, zc)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(cf)
    pq = QuantizeLinear(p, sp, zc)  y = DequantizeLinear(pq, sp, zc) }"""


def network() -> Model:
    """A Conv in int8 as exporters write it; each scale is a constant of its own, those around MaxPool are equal."""
    proto = onnx.parser.parse_model(CONV)
    sw = np.array([0.01, 0.02], np.float32)
    constants = {
        "w": RNG.integers(-100, 101, (2, 1, 3, 3)).astype(np.int8),
        "sw": sw,
        "zw": np.zeros(2, np.int8),
        "sx": np.float32(0.03),
        "zx": np.uint8(128),
        "b": np.array([50, -700], np.int32),
        "sb": sw * np.float32(0.03),
        "sc": np.float32(0.05),
        "sp": np.float32(0.05),
        "zc": np.uint8(100),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return load(proto)


def run(model: Model) -> np.ndarray:
    return Session(model.to_bytes(), config={"session.disable_quant_qdq": "1"}).run({"x": X})["y"]


def value(model: Model, name: str) -> np.ndarray:
    return next(onnx.numpy_helper.to_array(each) for each in model.proto.graph.initializer if each.name == name)


def read(model: Model, op: str, place: int) -> list[str]:
    return [node.input[place] for node in model.proto.graph.node if node.op_type == op]


def test_what_is_quantized_is_found() -> None:
    model = network()
    graph, codes = open_plain(model), value(model, "w")
    (weight,), (bias,) = integer_weights(graph), integer_biases(graph)
    assert (weight.name, bias.name) == ("w", "b")
    np.testing.assert_allclose(weight.values, codes * np.array([0.01, 0.02]).reshape(2, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(bias.values, [50 * 0.0003, -700 * 0.0006], rtol=1e-5)
    assert weight.encoding.levels == 2 * np.abs(codes.astype(int)).max() + 1  # symmetric stays that


def test_scales_that_must_agree_are_one() -> None:
    scales = activation_scales(open_plain(network()))
    assert [(each.name, len(each.places)) for each in scales] == [("sx", 2), ("sc", 4)]


def test_a_copy_with_floats_computes_the_same() -> None:
    model = network()
    graph = open_plain(model)
    show_floats(graph, ["w as floats", "b as floats", "sx", "sc"])
    shown = close_graph(graph)
    assert {"w as floats", "b as floats"} <= {each.name for each in shown.proto.graph.initializer}
    assert not {"w", "b", "sp"} & {each.name for each in shown.proto.graph.initializer}
    np.testing.assert_allclose(run(shown), run(model), atol=1e-5)


def test_trained_floats_become_integers_in_the_units_of_now() -> None:
    model = network()
    graph = open_plain(model)
    weight = integer_weights(graph)[0]
    form = TrainedRounding(weight.encoding, weight.values)
    arrays = form.start()
    arrays["scale"] = arrays["scale"] * np.float32(1.25)
    arrays["shadow"] = arrays["shadow"] * np.float32(1.1)
    values, encoding = form.settled(arrays)
    made = {
        "w as floats": (values, encoding),
        "b as floats": (np.array([0.3, -0.6], np.float32), None),
        "sx": (np.asarray(0.04, np.float32), None),
        "sc": (np.asarray(0.06, np.float32), None),
    }
    assert put_integers(graph, made) == set(made)
    after = close_graph(graph)
    np.testing.assert_allclose(value(after, "sw"), [0.0125, 0.025], rtol=1e-6)
    np.testing.assert_allclose(
        value(after, "w") * value(after, "sw").reshape(2, 1, 1, 1), values, rtol=1e-6
    )
    unit = 0.04 * np.array([0.0125, 0.025])
    np.testing.assert_array_equal(value(after, "b"), np.rint(np.array([0.3, -0.6]) / unit))
    np.testing.assert_allclose(value(after, "sb"), unit, rtol=1e-6)
    for name in set(read(after, "QuantizeLinear", 1)[1:]):
        assert value(after, name) == np.float32(0.06)
    assert value(after, "w").dtype == np.int8 and value(after, "b").dtype == np.int32
    assert after.size_bytes <= model.size_bytes + 200


def test_a_bias_follows_scales_though_it_is_not_trained() -> None:
    graph = open_plain(network())
    put_integers(graph, {"sx": (np.asarray(0.06, np.float32), None)})
    after = close_graph(graph)
    np.testing.assert_array_equal(value(after, "b"), [25, -350])
    np.testing.assert_allclose(value(after, "sb"), 0.06 * np.array([0.01, 0.02]), rtol=1e-6)


def test_a_scale_that_others_read_too_is_not_changed_for_them() -> None:
    proto = onnx.ModelProto.FromString(network().to_bytes())
    for node in proto.graph.node:  # a weight's scale that is also something else's
        if node.op_type == "DequantizeLinear" and node.input[0] == "b":
            node.input[1] = "sw"
    graph = open_plain(load(proto))
    weight = integer_weights(graph)[0]
    assert isinstance(weight.encoding, GridEncoding) and weight.encoding.scale is not None
    made = np.asarray(weight.encoding.scale * np.float32(2))
    encoding = weight.encoding.with_arrays({"scale": made})
    weight.put(graph, weight.values * np.float32(2), encoding)
    after = close_graph(graph)
    np.testing.assert_allclose(value(after, "sw"), [0.01, 0.02])
    assert read(after, "DequantizeLinear", 1)[1] != "sw"


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127)])
def test_an_asymmetric_weight_may_use_all_integers(dtype: str, low: int, high: int) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]> g (float[N, 3] x) => (float[N, 2] y) {
        f = DequantizeLinear(w, s, z)  y = MatMul(x, f) }"""
    )
    codes = np.array([[low, high], [3, 5], [7, 1]]).astype(dtype)
    for name, each in (("w", codes), ("s", np.float32(0.5)), ("z", np.asarray(3).astype(dtype))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(each), name))
    graph = open_plain(load(proto))
    (weight,) = integer_weights(graph)
    np.testing.assert_array_equal(weight.values, (codes.astype(np.float32) - 3) * np.float32(0.5))
    assert weight.encoding.encode(weight.values) is not None
    weight.put(graph, weight.values, weight.encoding)
    np.testing.assert_array_equal(value(close_graph(graph), "w"), codes)


def test_blocks_of_scales_are_read() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 3] y) {
        f = DequantizeLinear<axis = 0, block_size = 2>(w, s)  y = MatMul(x, f) }"""
    )
    codes, scale = RNG.integers(-8, 8, (4, 3)).astype(np.int8), RNG.uniform(0.5, 2, (2, 3)).astype(np.float32)
    for name, each in (("w", codes), ("s", scale)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(each, name))
    (weight,) = integer_weights(open_plain(load(proto)))
    np.testing.assert_allclose(weight.values, codes * np.repeat(scale, 2, axis=0), rtol=1e-6)
    form = TrainedRounding(weight.encoding, weight.values)
    np.testing.assert_array_equal(form.settled(form.start())[0], weight.values)
    assert form.pull(form.start(), np.ones((4, 3), np.float32))["scale"].shape == (2, 1, 3)
