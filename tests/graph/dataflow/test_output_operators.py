"""Which operator computes an output, behind what only moves, casts or stores values."""

import numpy as np
import pytest

from onnxcomp.graph.dataflow.output_operators import SCORING, ends
from tests.verify.models import parsed

W = np.ones((8, 5), np.float32)
ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("y = MatMul(x, w)", "MatMul"),
        ("z = MatMul(x, w) y = Add(z, one)", "MatMul"),
        ("z = MatMul(x, w) y = Add(one, z)", "MatMul"),
        ("c = Constant<value_float = 1.0>() z = MatMul(x, w) y = Add(z, c)", "MatMul"),
        ("z = MatMul(x, w) t = Transpose<perm = [1, 0]>(z) f = Cast<to = 10>(t) y = Cast<to = 1>(f)", "MatMul"),
        ("z = MatMul(x, w) r = MatMul(x, w) y = Add(z, r)", "Add"),
        ("z = MatMul(x, w) y = Softmax(z)", "Softmax"),
        ("z = MatMul(x, w) y = Mul(z, one)", "Mul"),
        ("y = Identity(x)", ""),
        ("y = Identity(one)", "Identity"),
    ],
)
def test_ends_are_seen_past_what_only_moves_values(body: str, end: str) -> None:
    model = parsed(f"g (float[N, 8] x) => (float[N, 5] y) {{ {body} }}", w=W, one=ONE)
    assert ends(model) == {"y": end}


def test_each_output_has_its_own_end() -> None:
    text = "g (float[N, 8] x) => (float[N, 5] y, float[N, 5] z) { z = MatMul(x, w) y = Tanh(z) }"
    assert ends(parsed(text, w=W)) == {"y": "Tanh", "z": "MatMul"}
    assert "MatMul" in SCORING and "Tanh" not in SCORING
