"""shorten-vectors: which vectors are rounded, to what, and which stay."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass


def shortened(body: str, **arrays: np.ndarray) -> tuple[Model, Model, Outcome]:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,32] y) {{ {body} }}'
    proto = parser.parse_model(text)
    for name, values in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    model = load(proto)
    after, outcome = apply_pass(model, get_pass("shorten-vectors")(), Context())
    return model, after, outcome


def constant(model: Model, name: str) -> np.ndarray:
    return np.asarray(constants_by_key(open_graph(model))[name].values)


VECTOR = np.linspace(-1, 1, 32) / 3


def test_bias_becomes_what_float16_holds() -> None:
    _, after, outcome = shortened("y = Gemm(x, w, b)", w=np.ones((32, 32)), b=VECTOR)
    assert [each.name for each in outcome.changed] == ["b"]
    expected = [float(np.float16(np.float32(value))) for value in VECTOR]
    assert constant(after, "b").tolist() == expected
    assert constant(after, "b").dtype == np.float32


def test_matrices_stay() -> None:
    _, after, outcome = shortened("y = MatMul(x, w)", w=np.full((32, 32), 1 / 3))
    assert not outcome.changed and constant(after, "w")[0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [(VECTOR * 1e6, "beyond the range"), (VECTOR * 1e-6, "all its values"), (VECTOR * np.inf, "not finite")],
)
def test_leaves_what_float16_does_not_hold(values: np.ndarray, reason: str) -> None:
    values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    before, after, outcome = shortened("y = Add(x, b)", b=values)
    assert reason in outcome.skipped[0].reason
    np.testing.assert_array_equal(constant(after, "b"), constant(before, "b"))


def test_variances_and_short_vectors_stay() -> None:
    body = "a = BatchNormalization(x, s, b, m, v)\n y = Mul(a, k)"
    arrays = dict.fromkeys("sbmv", VECTOR + 1) | {"k": np.array([1 / 3])}
    _, _, outcome = shortened(body, **arrays)
    assert {each.name for each in outcome.changed} == {"s", "b"}


def test_a_vector_read_elsewhere_too_stays() -> None:
    _, _, outcome = shortened("a = Add(x, b)\n c = Sqrt(b)\n y = Add(a, c)", b=VECTOR + 1)
    assert not outcome.changed
