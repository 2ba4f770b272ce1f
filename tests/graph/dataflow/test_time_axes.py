"""time_axes: the axes of inputs along which a model walks or slides, wherever they went before."""

from collections.abc import Mapping

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.graph.dataflow.time_axes import time_axes
from onnxcomp.model import load

TENSORS = {
    "w": np.zeros((1, 32, 5), np.float32),
    "r": np.zeros((1, 32, 8), np.float32),
    "table": np.zeros((50, 5), np.float32),
    "p": np.zeros((5, 5), np.float32),
    "b": np.zeros(5, np.float32),
    "k": np.zeros((4, 5, 3), np.float32),
    "one": np.int64([1]),
    "at": np.int64(1),
    "second": np.int64([1]),
    "same": np.int64([0, 0, -1]),
}
LSTM = "LSTM<hidden_size = 8>"


def axes_of(body: str, inputs: str, functions: str = "") -> Mapping[str, frozenset[int]]:
    opsets = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
    proto = parser.parse_model(f"{opsets} g ({inputs}) => (float[A,B,C] y) {{ {body} }} {functions}")
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name) for name, values in TENSORS.items() if name in body
    )
    return time_axes(load(proto))


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        (f"y = {LSTM}(x, w, r)", "float[A,B,5] x", {"x": {0}}),
        ("y = LSTM<hidden_size = 8, layout = 1>(x, w, r)", "float[A,B,5] x", {"x": {1}}),
        (f"t = Transpose<perm = [1, 0, 2]>(x) y = {LSTM}(t, w, r)", "float[A,B,5] x", {"x": {1}}),
        (f"e = Gather(table, ids) y = {LSTM}(e, w, r)", "int64[A,B] ids", {"ids": {0}}),
        (f"m = MatMul(x, p) a = Add(b, m) c = Relu(a) y = {LSTM}(c, w, r)", "float[A,B,5] x", {"x": {0}}),
        (f"s = Squeeze(x, one) y = {LSTM}(s, w, r)", "float[A,1,B,5] x", {"x": {0}}),
        (f"s = Unsqueeze(x, one) y = {LSTM}(s, w, r)", "float[A,5] x", {"x": {0}}),
        (f"s = Reshape(x, same) y = {LSTM}(s, w, r)", "float[A,B,5,1] x", {"x": {0}}),
        (f"a, h = {LSTM}(x, w, r) s = Squeeze(a, one) y = {LSTM}(s, w2, r)", "float[A,B,5] x", {"x": {0}}),
        (f"c = Concat<axis = 2>(x, z) y = {LSTM}(c, w, r)", "float[A,B,2] x, float[A,B,3] z", {"x": {0}, "z": {0}}),
        ("y = CumSum(x, at)", "float[A,B,C] x", {"x": {1}}),
        ("y = Conv(x, k)", "float[A,5,T] x", {"x": {2}}),
        ("t = Transpose<perm = [0, 2, 1]>(x) y = Conv(t, k)", "float[A,T,5] x", {"x": {1}}),
        ("""y = Scan<num_scan_inputs = 1, scan_input_axes = [1], body = b (float[A] u) => (float[A] v)
            { v = Identity(u) }>(x)""", "float[A,B] x", {"x": {1}}),
        ("""s = Shape(x) n = Gather(s, at) y = Loop(n, c) <body = b (int64 i, bool d) => (bool e, float[A] v)
            { e = Identity(d) v = Identity(o) }>""", "float[A,B] x, bool c, float[A] o", {"x": {1}}),
        ("""y = Loop(n, c) <body = b (int64 i, bool d) => (bool e, float[A] v)
            { e = Identity(d) j = Add(i, at) v = Gather<axis = 1>(x, j) }>""",
         "float[A,B] x, bool c, int64 n", {"x": {1}}),
        (f"""y = If(c) <then_branch = t () => (float[A,B,C] u) {{ u = {LSTM}(x, w, r) }},
            else_branch = e () => (float[A,B,C] v) {{ v = Identity(x) }}>""", "float[A,B,5] x, bool c", {"x": {0}}),
        ("y = MatMul(x, p)", "float[A,B,5] x", {}),
        (f"s = Reshape(x, n) y = {LSTM}(s, w, r)", "float[A,B,5] x, int64[3] n", {}),  # mixed: nothing is known
        (f"t = Transpose(ids) y = {LSTM}(t, w, r)", "float ids", {}),
    ],
)  # fmt: skip
def test_axes_that_the_model_runs_along(body: str, inputs: str, expected: dict[str, set[int]]) -> None:
    assert axes_of(body, inputs) == expected


def test_local_functions_are_followed() -> None:
    functions = f'<domain: "own", opset_import: ["" : 17]> f (a, w, r) => (b) {{ b = {LSTM}(a, w, r) }}'
    assert axes_of("y = own.f(x, w, r)", "float[A,B,5] x", functions) == {"x": {0}}
