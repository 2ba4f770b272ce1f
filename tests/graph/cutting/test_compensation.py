"""compensation against least squares on the samples themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.graph.cutting.compensation import compensated, movable_bias
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from tests.passes.exactly import floats, model


def moments(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    count = len(after)
    return {
        "gram": (after.T @ after / count)[None],
        "cross": (before.T @ after / count)[None],
        "mean": after.mean(axis=0)[None],
        "mean_before": before.mean(axis=0)[None],
    }


def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((600, 6)) @ rng.standard_normal((6, 6)) + 2.0
    return before, before + 0.2 * rng.standard_normal((600, 6)) + 0.5


DROPPED = np.array([[False, True, False, False, True, False]])


def test_with_a_bias_it_is_the_fit_with_an_intercept() -> None:
    before, after = samples()
    matrix = np.random.default_rng(1).standard_normal((3, 6))
    kept = np.column_stack([after[:, ~DROPPED[0]], np.ones(len(after))])
    fitted = np.linalg.lstsq(kept, before @ matrix.T, rcond=None)[0]
    made = compensated(matrix[None], DROPPED, **moments(before, after), amount=1e-12)
    np.testing.assert_allclose(made.matrices[0][:, ~DROPPED[0]], fitted[:-1].T, rtol=1e-5)
    assert made.shift is not None
    np.testing.assert_allclose(made.shift, fitted[-1], rtol=1e-5)


def test_without_a_bias_it_is_the_fit_through_the_origin() -> None:
    before, after = samples()
    matrix = np.random.default_rng(1).standard_normal((3, 6))
    fitted = np.linalg.lstsq(after[:, ~DROPPED[0]], before @ matrix.T, rcond=None)[0]
    known = moments(before, after) | {"mean": None, "mean_before": None}
    made = compensated(matrix[None], DROPPED, **known, amount=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(made.matrices[0][:, ~DROPPED[0]], fitted.T, rtol=1e-5)
    assert made.shift is None


def test_where_nothing_changed_and_nothing_goes_the_weights_stay() -> None:
    before, _ = samples()
    matrix = np.random.default_rng(1).standard_normal((3, 6))
    made = compensated(matrix[None], np.zeros((1, 6), bool), **moments(before, before))
    np.testing.assert_allclose(made.matrices[0], matrix, rtol=1e-6)
    np.testing.assert_allclose(made.shift, 0, atol=1e-6)


@pytest.mark.parametrize(("body", "has_bias"), [
    ("a = MatMul(x, w) y = Add(a, b)", True),
    ("y = Gemm(x, w, b)", True),
    ("y = Gemm <beta = 2.0> (x, w, b)", False),
    ("y = MatMul(x, w)", False),
    ("a = MatMul(x, w) c = Add(a, b) y = Mul(c, b)", False),
])  # fmt: skip
def test_only_a_bias_that_nothing_else_reads_is_moved(body: str, has_bias: bool) -> None:
    proto = model(f"g (float[N, 4] x) => (float[N, 3] y) {{ {body} }}")
    for name, shape in (("w", (4, 3)), ("b", (3,))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(*shape), name))
    graph = open_graph(load(proto))
    (weight,) = weights(graph)
    assert (movable_bias(graph, weight) is not None) == has_bias
