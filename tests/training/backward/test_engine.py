"""The engine as a whole: what it is asked, what it refuses, what it hands back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcomp.errors import ParameterError
from onnxcomp.model import Model, load
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.engine import NoGradientError
from tests.training.backward.finite_differences import check_model

RNG = np.random.default_rng(3)


def written(text: str, **values: Any) -> Model:
    """A model of ONNX text, with these initializers."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 21, "custom": 1]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return load(proto)


def single(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def gradients(model: Model, names: list[str], feeds: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return BackwardEngine(model, "loss", names, threads=1).loss_and_gradients(feeds, values)[1]


def test_the_derivative_that_a_hand_can_check() -> None:
    model = written(
        "g (float[N] x) => (float loss) { y = Mul(x, w)  loss = ReduceSum<keepdims=0>(y) }",
        w=np.array([1.0, 1.0], np.float32),
    )
    engine = BackwardEngine(model, "loss", ["w"], threads=1)
    feeds, values = {"x": np.array([3.0, 4.0], np.float32)}, {"w": np.array([10.0, 1.0], np.float32)}
    loss, found = engine.loss_and_gradients(feeds, values)
    assert loss == 34.0
    assert found["w"].tolist() == [3.0, 4.0]
    assert engine.forward(feeds, values)["loss"] == 34.0


def test_float64_in_and_out() -> None:
    model = written(
        "g (double[2] x) => (double loss) { y = Mul(x, w) z = Tanh(y) loss = ReduceSum<keepdims=0>(z) }",
        w=np.ones(2),
    )
    values = {"w": np.array([0.3, 0.7])}
    found = gradients(model, ["w"], {"x": np.ones(2)}, values)["w"]
    np.testing.assert_allclose(found, 1.0 / np.cosh(values["w"]) ** 2, rtol=1e-14)


def test_what_the_loss_does_not_depend_on_has_zeros() -> None:
    model = written(
        """g (float[N,2] x) => (float loss, float[N,2] beside) {
            beside = Mul(x, dead)  rounded = Round(w)  y = Mul(x, rounded)  z = Mul(y, live)
            loss = ReduceSum<keepdims=0>(z) }""",
        dead=single(2),
        w=single(2),
        live=single(2),
    )
    values = {"dead": single(2), "w": single(2) * 5, "live": single(2)}
    found = gradients(model, ["dead", "w", "live"], {"x": single(3, 2)}, values)
    assert not found["dead"].any()
    assert not found["w"].any()
    assert found["live"].any()
    assert {name: each.shape for name, each in found.items()} == {"dead": (2,), "w": (2,), "live": (2,)}


def test_weights_behind_other_nodes_and_read_twice() -> None:
    model = written(
        """g (float[N,4] x) => (float loss) {
            same = Identity(w)  turned = Transpose(same)  part = Slice(turned, from, to)
            joined = Concat<axis=0>(part, other)  wide = Reshape(joined, shape)
            a = MatMul(x, wide)  b = Tanh(a)  back = Transpose(wide)  c = MatMul(b, back)
            loss = ReduceMean<keepdims=0>(c)
        }""",
        w=single(3, 4),
        other=single(2, 3),
        **{"from": np.array([1]), "to": np.array([3]), "shape": np.array([4, 3])},
    )
    values = {"w": single(3, 4), "other": single(2, 3)}
    check_model(model.proto, values, {"x": single(5, 4)})


def test_constant_nodes_and_local_functions() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[N,2] x) => (float loss) {
            w = Constant<value = float[2] {0.5, -0.25}>()
            y = local.scaled(x, w)  loss = ReduceSum<keepdims=0>(y) }
        <domain: "local", opset_import: ["": 18]> scaled (a, b) => (c) { d = Mul(a, b)  c = Mul(d, d) }"""
    )
    x, w = single(3, 2), single(2)
    found = gradients(load(proto), ["w"], {"x": x}, {"w": w})["w"]
    np.testing.assert_allclose(found, 2.0 * w * (x**2).sum(0), rtol=1e-5)


def test_operators_without_a_rule_are_named_and_nothing_runs() -> None:
    model = written(
        """g (float[N,2] x) => (float loss) {
            y = Mul(x, w)  z = custom.Odd(y)  d = Det(z)  loss = ReduceSum<keepdims=0>(d) }""",
        w=single(2),
    )
    reasons = BackwardEngine.unsupported(model, "loss", ["w"])
    assert set(reasons) == {"Det", "custom::Odd"}
    with pytest.raises(NoGradientError, match="Det"):
        BackwardEngine(model, "loss", ["w"])


def test_operators_beside_the_way_need_no_rule() -> None:
    model = written(
        """g (float[N,2,2] x) => (float loss) {
            d = Det(x)  y = Mul(d, w)  loss = ReduceSum<keepdims=0>(y) }""",
        w=single(),
    )
    assert not BackwardEngine.unsupported(model, "loss", ["w"])
    x = single(3, 2, 2)
    found = gradients(model, ["w"], {"x": x}, {"w": single()})["w"]
    np.testing.assert_allclose(found, np.linalg.det(x).sum(), rtol=1e-4)


@pytest.mark.parametrize(("loss", "names"), [("nothing", ["w"]), ("loss", ["nothing"])])
def test_names_that_the_model_lacks(loss: str, names: list[str]) -> None:
    model = written("g (float[2] x) => (float loss) { y = Mul(x, w) loss = ReduceSum<keepdims=0>(y) }", w=single(2))
    with pytest.raises(ParameterError, match="nothing"):
        BackwardEngine(model, loss, names)


def test_initializers_that_are_inputs_too() -> None:
    proto = written(
        "g (float[2] x) => (float loss) { y = Mul(x, w) loss = ReduceSum<keepdims=0>(y) }", w=single(2)
    ).proto
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    x = single(2)
    np.testing.assert_array_equal(gradients(load(proto), ["w"], {"x": x}, {"w": single(2)})["w"], x)


def test_float16_weights_behind_a_cast() -> None:
    model = written(
        "g (float[2] x) => (float loss) { v = Cast<to=1>(w) y = Mul(x, v) loss = ReduceSum<keepdims=0>(y) }",
        w=single(2).astype(np.float16),
    )
    x = single(2)
    found = gradients(model, ["w"], {"x": x}, {"w": single(2).astype(np.float16)})["w"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, x, rtol=1e-3)


def test_a_model_of_opset_7_with_axes_as_attributes() -> None:
    proto = parser.parse_model(
        """<ir_version: 4, opset_import: ["": 7]>
        g (float[N,3,1] x) => (float loss) {
            a = Squeeze<axes=[2]>(x)  b = Gemm(a, w, c)  d = Clip<min=-0.5, max=0.5>(b)  e = Softmax<axis=1>(d)
            f = Slice<axes=[1], starts=[0], ends=[2]>(e)  h = Pad<pads=[0,1,0,0]>(f)
            loss = ReduceMean<keepdims=0>(h) }"""
    )
    values = {"w": single(3, 4), "c": single(4)}
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())
    check_model(proto, values, {"x": single(5, 3, 1)})
