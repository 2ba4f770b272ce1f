"""How often rows of tables are looked up, by counting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.lookup_counts import lookup_counts
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.runtime import Session

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, 3] x) => (float[N, 3, 4] y, float[4, N, 3] z, float[N, 3, 5] v) {
  y = Gather(rows, x)
  z = Gather<axis = -1>(columns, x)
  read = Gather(both, x)
  v = MatMul(read, turned)
  turned = Transpose(both)
}"""


def test_counts_indices_of_each_axis_from_either_end(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    proto.graph.node.insert(0, proto.graph.node.pop(4))
    for name, shape in (("rows", (5, 4)), ("columns", (4, 5)), ("both", (5, 4))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = load(proto)
    ids = np.array([[0, 1, -1], [4, -5, 0], [2, 2, 2]], np.int64)
    np.savez(tmp_path / "calib.npz", x=ids)
    data = CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)
    graph = open_graph(model)
    found = lookup_counts(graph, weights(graph), data)
    counts = [3, 1, 3, 0, 2]
    assert {name: each.tolist() for name, each in found.items()} == {"rows": counts, "columns": counts}
