"""smooth-activations: outliers move into weights, outputs stay within float rounding, and what stays says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Session
from tests.passes.exactly import Rewrite, check_same, floats, model, rewrite

ROUNDING = {"rtol": 1e-3, "atol": 1e-3}  # float32, sums of outliers of some hundreds


def with_weights(body: str, *, opset: int = 17, **shapes: tuple[int, ...]) -> ModelProto:
    """Initializers of these shapes; gains called g have one outlier, channel 1."""
    proto = model(body, opset=opset)
    for seed, (name, shape) in enumerate(shapes.items()):
        values = floats(*shape, seed=seed + 1)
        if name.startswith("g"):
            values = np.abs(values) + 0.5
            values.reshape(-1)[1] = 100
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def smooth(proto: ModelProto, tmp_path: Path, *, exclude: tuple[str, ...] = (), **options: object) -> Rewrite:
    session = Session(proto.SerializeToString())
    x = session.inputs[0]
    values = floats(64, *[int(each) for each in x.shape[1:]], seed=9)
    np.savez(tmp_path / "calib.npz", **{x.name: values})
    data = CalibrationData.open(tmp_path / "calib.npz", session.inputs)
    done = rewrite(proto, "smooth-activations", context=Context(calibration=data, exclude=exclude), **options)
    check_same(done, {x.name: values[:4]}, **ROUNDING)
    return done


NORM = """g (float[N, 5, 8] x) => (float[N, 5, 4] q, float[N, 5, 4] k) {
    n = LayerNormalization(x, g, b) q = MatMul(n, w) k = MatMul(n, v) }"""
SHAPES = {"g": (8,), "b": (8,), "w": (8, 4), "v": (8, 4)}


def test_folds_into_a_layer_normalization_with_one_factor_for_all_readers(tmp_path: Path) -> None:
    proto = with_weights(NORM, **SHAPES)
    done = smooth(proto, tmp_path)
    assert done.ops == ["LayerNormalization", "MatMul", "MatMul"]
    old = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    s = old["g"] / done.initializer("g")
    assert s[1] == s.max() and s[1] > 5
    np.testing.assert_allclose(done.initializer("b"), old["b"] / s, rtol=1e-5)
    for name in ("w", "v"):
        np.testing.assert_allclose(done.initializer(name), old[name] * s[:, None], rtol=1e-5)
    details = done.outcome.changed[0].details
    assert details["error"] < 0.9 * details["error_before"]


def test_a_given_migration_is_the_paper_s_formula(tmp_path: Path) -> None:
    proto = with_weights(NORM, **SHAPES)
    old = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    done = smooth(proto, tmp_path, migration=0.5)
    x = floats(64, 5, 8, seed=9).astype(np.float64)
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    normal = (x - x.mean(axis=-1, keepdims=True)) / spread * old["g"] + old["b"]
    peaks = np.abs(normal).max(axis=(0, 1))
    weight = np.maximum(np.abs(old["w"]).max(axis=1), np.abs(old["v"]).max(axis=1))
    expected = np.sqrt(peaks / weight)
    expected /= np.exp(np.log(expected).mean())
    np.testing.assert_allclose(old["g"] / done.initializer("g"), expected, rtol=1e-4)


def test_folds_into_a_decomposed_normalization(tmp_path: Path) -> None:
    body = """g (float[N, 5, 8] x) => (float[N, 5, 4] y) {
        m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean <axes = [-1]> (p) s = Sqrt(v)
        n = Div(d, s) a = Mul(n, g) c = Add(a, b) y = MatMul(c, w) }"""
    done = smooth(with_weights(body, g=(8,), b=(8,), w=(8, 4)), tmp_path)
    assert [each.name for each in done.outcome.changed] == ["a"]


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (
            """g (float[N, 8, 4, 4] x) => (float[N, 3, 4, 4] y) {
            n = BatchNormalization(x, g, b, m, v) r = Relu(n) y = Conv(r, w) }""",
            {"g": (8,), "b": (8,), "m": (8,), "v": (8,), "w": (3, 8, 1, 1)},
        ),
        (
            """g (float[N, 8, 4, 4] x) => (float[N, 3, 2, 2] y) {
            n = InstanceNormalization(x, g, b) r = Relu(n) y = Conv <kernel_shape = [3, 3]> (r, w) }""",
            {"g": (8,), "b": (8,), "w": (3, 8, 3, 3)},
        ),
        (
            "g (float[N, 6] x) => (float[N, 3] y) { a = Mul(x, e) h = MatMul(a, u) k = Mul(h, g) r = Relu(k)"
            " y = Gemm <transB = 1> (r, w) }",
            {"e": (6,), "u": (6, 8), "g": (8,), "w": (3, 8)},
        ),
    ],
)
def test_folds_into_what_makes_the_channels(body: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    proto = with_weights(body, **shapes)
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(8, np.float32), "v"))
    ops = [node.op_type for node in proto.graph.node]
    done = smooth(proto, tmp_path)
    assert done.outcome.changed and done.ops == ops


def test_reads_the_input_projection_of_a_recurrent_node(tmp_path: Path) -> None:
    body = """g (float[5, 3, 8] x) => (float[5, 1, 3, 4] y) {
        n = LayerNormalization(x, g) y = LSTM <hidden_size = 4> (n, w, r) }"""
    proto = with_weights(body, g=(8,), w=(1, 16, 8), r=(1, 16, 4))
    session = Session(proto.SerializeToString())
    np.savez(tmp_path / "calib.npz", x=floats(5, 3, 8))
    data = CalibrationData.open(tmp_path / "calib.npz", session.inputs, run=session.run)
    done = rewrite(proto, "smooth-activations", context=Context(calibration=data))
    assert [each.name for each in done.outcome.changed] == ["n"]
    check_same(done, {"x": floats(5, 3, 8)}, **ROUNDING)


RESIDUAL = """g (float[N, 5, 8] x) => (float[N, 5, 8] y) {
    n = LayerNormalization(x, g, b) h = MatMul(n, w) k = MatMul(n, v) z = Add(h, k) y = Add(z, n) }"""


def test_leaves_what_something_else_reads_unless_a_mul_may_be_inserted(tmp_path: Path) -> None:
    proto = with_weights(RESIDUAL, g=(8,), b=(8,), w=(8, 8), v=(8, 8))
    assert not smooth(proto, tmp_path).outcome.changed
    done = smooth(proto, tmp_path, insert=True)
    assert sorted(done.ops) == ["Add", "Add", "LayerNormalization", "MatMul", "MatMul", "Mul"]
    assert done.graph.node[1].op_type == "Mul" and done.node("MatMul").input[0] == done.graph.node[1].output[0]
    assert [each.name for each in done.outcome.changed] == ["h"]


def test_inserts_before_some_readers_only_when_others_are_excluded(tmp_path: Path) -> None:
    proto = with_weights(RESIDUAL, g=(8,), b=(8,), w=(8, 8), v=(8, 8))
    done = smooth(proto, tmp_path, insert=True, exclude=("w",))
    assert [each.name for each in done.outcome.changed] == ["k"]
    products = [node for node in done.graph.node if node.op_type == "MatMul"]
    assert products[0].input[0] == "n" and products[1].input[0] != "n"


def test_says_when_it_gains_too_little(tmp_path: Path) -> None:
    body = """g (float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, u) r = Relu(h) y = MatMul(r, w) }"""
    proto = with_weights(body)
    alike = np.ones((8, 8)) * np.linspace(1, 1.02, 8)
    signs = np.sign(floats(8, 4, seed=1))
    for name, values in (("u", alike), ("w", signs)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    done = smooth(proto, tmp_path)
    assert not done.outcome.changed and "gains too little" in done.skipped("h")


def test_asks_for_calibration() -> None:
    with pytest.raises(CalibrationError, match="needs calibration data"):
        rewrite(with_weights(NORM, **SHAPES), "smooth-activations")
