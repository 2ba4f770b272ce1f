"""onnxcomp.verify.guard: each node's own error, where the model's outputs do not show it."""

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.verify.guard import CONSTANT_SHARE, Guard
from tests.verify.models import CPU, opened, parsed

RNG = np.random.default_rng(2)
X = RNG.normal(size=(40, 6)).astype(np.float32)
FIRST = RNG.normal(size=(6, 4)).astype(np.float32)
SECOND = RNG.normal(size=(6, 4)).astype(np.float32)
BLIND = "g (float[N, 6] x) => (float[N, 4] y) { a = MatMul(x, v) b = MatMul(x, w) s = Mul(b, none) y = Add(a, s) }"


def test_a_node_that_no_output_shows_has_its_own_error(tmp_path: Path) -> None:
    def model(second: np.ndarray):  # type: ignore[no-untyped-def]
        return parsed(BLIND, v=FIRST, w=second, none=np.zeros(1, np.float32))

    guard = Guard(model(SECOND), opened(model(SECOND), tmp_path, x=X), CPU)
    errors = guard.errors(model(0.5 * SECOND))
    made = X[:32].astype(np.float64) @ SECOND
    assert errors["v"] == 0
    assert errors["w"] == pytest.approx(np.square(0.5 * made).mean() / made.var(), rel=1e-5)


def test_what_hardly_varies_is_held_to_a_share_of_its_power(tmp_path: Path) -> None:
    text = "g (float[N, 6] x) => (float[N, 4] y) { z = MatMul(x, none) y = Gemm(z, w, c) }"
    none = np.zeros((6, 6), np.float32)

    def model(offset: float):  # type: ignore[no-untyped-def]
        return parsed(text, none=none, w=FIRST, c=np.full(4, offset, np.float32))

    guard = Guard(model(10.0), opened(model(10.0), tmp_path, x=X), CPU)
    assert guard.errors(model(10.1))["w"] == pytest.approx(0.1**2 / (100 * CONSTANT_SHARE), rel=1e-3)


def test_nodes_under_other_names_are_left_out(tmp_path: Path) -> None:
    text = "g (float[N, 6] x) => (float[N, 4] y) { a = MatMul(x, w) y = Relu(a) }"
    other = text.replace(" a ", " b ").replace("(a)", "(b)")
    original = parsed(text, w=FIRST)
    guard = Guard(original, opened(original, tmp_path, x=X), CPU)
    assert guard.errors(parsed(other, w=0 * FIRST)) == {}
