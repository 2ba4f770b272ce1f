"""input_rows: real columns of what each weight is multiplied with, and how far they reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.input_rows import input_rows
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.runtime import Session
from tests.passes.exactly import floats, model


def test_rows_are_inputs_and_reach_over_all_of_them(tmp_path: Path) -> None:
    body = """g (float[N, 6] x) => (float[N, 3] y, float[N, 3] z, float[N, 2] t) {
        h = Relu(x) y = MatMul(h, w) z = MatMul(h, v) b = Cast <to = 11> (h)
        u = Constant <value = double[6, 2] {1,2,3,4,5,6,7,8,9,10,11,12}> () d = MatMul(b, u) t = Cast <to = 1> (d) }"""
    proto = model(body)
    for name, seed in (("w", 1), ("v", 2)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(6, 3, seed=seed), name))
    x = floats(700, 6, seed=3)
    np.savez(tmp_path / "calib.npz", x=x)
    session = Session(proto.SerializeToString())
    data = CalibrationData.open(tmp_path / "calib.npz", session.inputs)
    graph = open_graph(load(proto))
    seen = input_rows(graph, weights(graph), data)
    assert set(seen) == {"w", "v"}  # u reads float64
    relu = np.maximum(x, 0)
    np.testing.assert_array_equal(seen["w"].low, relu.min(axis=0)[None])
    np.testing.assert_array_equal(seen["w"].high, relu.max(axis=0)[None])
    rows = seen["w"].rows
    assert rows.shape[0] == 1 and 200 <= rows.shape[1] <= 256
    known = {row.tobytes() for row in relu}
    assert all(row.tobytes() in known for row in rows[0])
    late = {row.tobytes() for row in relu[600:]}
    assert any(row.tobytes() in late for row in rows[0]), "taken from all batches"
