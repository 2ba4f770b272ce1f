"""absorb-biases: high biases move on, outputs stay where the Relu cuts nothing, and what stays says why."""

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
from tests.passes.exactly import Rewrite, floats, model, rewrite

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # float32, biases of 50


def with_weights(body: str, **shapes: tuple[int, ...]) -> ModelProto:
    """Initializers of these shapes; a bias called b is high but for its last channel."""
    proto = model(body)
    for seed, (name, shape) in enumerate(shapes.items()):
        values = floats(*shape, seed=seed + 1)
        if name == "b":
            values.reshape(-1)[:-1] = 50 + np.arange(values.size - 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def absorb(proto: ModelProto, tmp_path: Path, x: np.ndarray, **context: object) -> Rewrite:
    """The inputs stay so small that no Relu ever cuts what is left of a high bias."""
    np.savez(tmp_path / "calib.npz", x=x)
    session = Session(proto.SerializeToString())
    data = CalibrationData.open(tmp_path / "calib.npz", session.inputs)
    done = rewrite(proto, "absorb-biases", context=Context(calibration=data, **context))  # type: ignore[arg-type]
    expected, got = (Session(each.to_bytes()).run({"x": x}) for each in (done.before, done.after))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, **ROUNDING)
    return done


def uniform(*shape: int) -> np.ndarray:
    """Within 1.8 standard deviations, so that mean - 3 std is below them all."""
    return np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)


def test_two_matrices_by_hand(tmp_path: Path) -> None:
    proto = model("""g (float[N, 1] x) => (float[N, 1] y)
        <float[1, 2] w = {1, 1}, float[2] b = {10, 0}, float[2, 1] v = {2, 4}, float[1] d = {5}> {
        h = MatMul(x, w) a = Add(h, b) r = Relu(a) p = MatMul(r, v) y = Add(p, d) }""")
    x = np.array([[-1], [1]] * 20, np.float32)  # mean 10 and 0, standard deviation 1
    done = absorb(proto, tmp_path, x)
    np.testing.assert_allclose(done.initializer(done.graph.node[1].input[1]), [10 - 7, 0], rtol=1e-6)
    np.testing.assert_allclose(done.initializer(done.graph.node[4].input[1]), [5 + 2 * 7], rtol=1e-6)
    assert [each.name for each in done.outcome.changed] == ["h"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(groups: int, bias: bool, tmp_path: Path) -> None:
    body = f"""g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) {{
        h = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu(h)
        y = Conv <group = {groups}, kernel_shape = [3, 3]> (r, v{", d" if bias else ""}) }}"""
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "v": (8, 4 // groups, 3, 3), **({"d": (8,)} if bias else {})}
    done = absorb(with_weights(body, **shapes), tmp_path, uniform(8, 4, 6, 6))
    assert done.outcome.changed[0].details["channels"] == 3


def test_all_readers_take_their_part(tmp_path: Path) -> None:
    body = """g (float[N, 4] x) => (float[N, 3] y, float[N, 2] z) {
        h = Gemm(x, w, b) r = Relu(h) y = Gemm <transB = 1> (r, v) z = Gemm(r, u, d) }"""
    done = absorb(with_weights(body, w=(4, 4), b=(4,), v=(3, 4), u=(4, 2), d=(2,)), tmp_path, uniform(40, 4))
    assert len(done.graph.node[2].input) == 3


def test_through_several_nodes_in_a_row(tmp_path: Path) -> None:
    body = """g (float[N, 4] x) => (float[N, 3] y) {
        h = Gemm(x, w, b) r = Relu(h) k = Gemm(r, u, c) s = Relu(k) y = Gemm(s, v, d) }"""
    proto = with_weights(body, w=(4, 4), b=(4,), u=(4, 4), c=(4,), v=(4, 3), d=(3,))
    assert absorb(proto, tmp_path, uniform(40, 4)).outcome.changed


def test_a_new_bias_is_of_the_type_that_is_computed_in(tmp_path: Path) -> None:
    """Not of the weights', which Casts widen."""
    body = """g (float[N, 4] x) => (float[N, 3] y) {
        w32 = Cast <to = 1> (w) v32 = Cast <to = 1> (v) h = Gemm(x, w32, b) r = Relu(h) y = Gemm(r, v32) }"""
    proto = with_weights(body, w=(4, 4), b=(4,), v=(4, 3))
    for tensor in proto.graph.initializer:
        if tensor.name != "b":
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    done = absorb(proto, tmp_path, uniform(40, 4))
    assert done.outcome.changed
    assert done.initializer(done.graph.node[-1].input[2]).dtype == np.float32


SKIPPED = [
    ("r = Relu(h) y = Conv <pads = [1, 1, 1, 1]> (r, v)", "pads what it reads"),
    ('r = Relu(h) y = Conv <auto_pad = "SAME_UPPER"> (r, v)', "pads what it reads"),
    ("r = Relu(h) s = Sigmoid(r) t = Conv(r, v) y = Add(s, t)", "something else"),
    ("r = Relu(h) y = Conv(r, w)", "cannot take a bias"),
]


@pytest.mark.parametrize(("rest", "reason"), SKIPPED)
def test_says_what_is_in_the_way(rest: str, reason: str, tmp_path: Path) -> None:
    body = f"g (float[N, 4, 6, 6] x) => (float[N, 4, H, W] y) {{ h = Conv(x, w, b) {rest} }}"
    done = absorb(with_weights(body, w=(4, 4, 1, 1), b=(4,), v=(4, 4, 1, 1)), tmp_path, uniform(4, 4, 6, 6))
    assert not done.outcome.changed and reason in done.skipped("h")


def test_low_biases_stay(tmp_path: Path) -> None:
    body = "g (float[N, 4] x) => (float[N, 3] y) { h = Gemm(x, w, c) r = Relu(h) y = Gemm(r, v) }"
    done = absorb(with_weights(body, w=(4, 4), c=(4,), v=(4, 3)), tmp_path, uniform(40, 4))
    assert not done.outcome.changed and "high" in done.skipped("h")


@pytest.mark.parametrize("name", ["h", "w", "b", "v", "y"])
def test_leaves_what_is_excluded(name: str, tmp_path: Path) -> None:
    body = "g (float[N, 4] x) => (float[N, 3] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v) }"
    proto = with_weights(body, w=(4, 4), b=(4,), v=(4, 3))
    assert not absorb(proto, tmp_path, uniform(40, 4), exclude=(name,)).outcome.changed


def test_asks_for_calibration() -> None:
    body = "g (float[N, 4] x) => (float[N, 3] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v) }"
    with pytest.raises(CalibrationError, match="needs calibration data"):
        rewrite(with_weights(body, w=(4, 4), b=(4,), v=(4, 3)), "absorb-biases")
