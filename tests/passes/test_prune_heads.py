"""prune-heads: a head goes with its queries, keys and values."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.model import load
from onnxcomp.runtime import Session
from tests.passes.exactly import floats, model, rewrite

ATTENTION = """g (float[N, L, 8] x) => (float[N, L, 8] y)
    <int64[4] apart = {0, -1, 4, 3}, int64[3] joined = {0, -1, 12}> {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) vb = Add(v, b)
    qh = Reshape(q, apart) qt = Transpose <perm = [0, 2, 1, 3]> (qh)
    kh = Reshape(k, apart) kt = Transpose <perm = [0, 2, 3, 1]> (kh)
    vh = Reshape(vb, apart) vt = Transpose <perm = [0, 2, 1, 3]> (vh)
    s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)
    ot = Transpose <perm = [0, 2, 1, 3]> (o) oj = Reshape(ot, joined) y = MatMul(oj, wo) }"""


def attention(output: np.ndarray | None = None) -> onnx.ModelProto:
    proto = model(ATTENTION)
    held = {"wq": floats(8, 12), "wk": floats(8, 12, seed=1), "wv": floats(8, 12, seed=2), "b": floats(12, seed=3),
            "wo": floats(12, 8, seed=4) if output is None else output}  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in held.items())
    return proto


def test_heads_that_nothing_reads_go_and_no_output_changes() -> None:
    output = floats(12, 8, seed=4)
    output[3:6] = output[9:12] = 0  # of heads 1 and 3
    proto = attention(output)
    done = rewrite(proto, "prune-heads", ratio=0.5, importance="reconstruction")
    kept = [0, 1, 2, 6, 7, 8]
    for name in ("wq", "wk", "wv"):
        before = numpy_helper.to_array(next(each for each in proto.graph.initializer if each.name == name))
        np.testing.assert_array_equal(done.initializer(name), before[:, kept])
    np.testing.assert_array_equal(done.initializer("wo"), output[kept])
    feeds = {"x": floats(2, 5, 8, seed=9)}
    wanted, got = (Session(each.to_bytes()).run(feeds)["y"] for each in (done.before, done.after))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_says_how_many_heads_there_were() -> None:
    done = rewrite(attention(), "prune-heads", ratio=0.25)
    assert [each.what for each in done.outcome.changed] == ["1 of 4 heads cut"]


def test_leaves_channels_to_the_other_pass() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 2] y) { a = MatMul(x, w) h = Relu(a) y = MatMul(h, v) }")
    for name, shape in (("w", (4, 6)), ("v", (6, 2))):
        proto.graph.initializer.append(numpy_helper.from_array(floats(*shape), name))
    assert not rewrite(proto, "prune-heads").outcome.changed
    assert load(proto).proto.graph.initializer[0].dims[1] == 6
