"""Second moments of what weights are multiplied with, of one model and of two side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.moments import input_moments
from onnxcomp.calibration.paired import paired_moments
from onnxcomp.graph.order import depths
from onnxcomp.graph.surgery import Graph, open_graph
from onnxcomp.graph.weights import weights
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,6] x) => (float[N,6] y) {
  a = MatMul(x, w)
  b = Relu(a)
  c = MatMul(b, w)
  d = Add(b, c)
  y = MatMul(d, v)
}"""


def model_of(text: str, *, seed: int = 0, **shapes: tuple[int, ...]) -> Model:
    proto = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return load(proto)


def data_of(model: Model, folder: Path, x: np.ndarray) -> CalibrationData:
    np.savez(folder / "calib.npz", x=x)
    return CalibrationData.open(folder / "calib.npz", Session(model.to_bytes()).inputs)


def opened(model: Model) -> tuple[Graph, list]:
    graph = open_graph(model)
    return graph, weights(graph)


def drawn(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((50, 6)).astype(np.float32)


def test_a_weight_of_two_readers_has_the_columns_of_both(tmp_path: Path) -> None:
    model, x = model_of(CHAIN, w=(6, 6), v=(6, 6)), drawn()
    graph, found = opened(model)
    moments = input_moments(graph, found, data_of(model, tmp_path, x))
    w = np.asarray(next(each for each in found if each.name == "w").values)
    hidden = np.maximum(x @ w, 0)
    columns = np.concatenate([x, hidden]).astype(np.float64)
    np.testing.assert_allclose(moments["w"].gram[0], columns.T @ columns / 100, rtol=1e-4)
    np.testing.assert_allclose(moments["w"].mean[0], columns.mean(axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moments["w"].peak[0], np.abs(columns).max(axis=0), rtol=1e-5)
    assert moments["w"].count == 100


def test_inputs_that_are_not_finite_give_no_moments(tmp_path: Path) -> None:
    model, x = model_of(CHAIN, w=(6, 6), v=(6, 6)), drawn()
    x[3, 2] = np.inf
    graph, found = opened(model)
    assert "w" not in input_moments(graph, found, data_of(model, tmp_path, x))


def test_the_model_remembers_its_moments(tmp_path: Path) -> None:
    model, x = model_of(CHAIN, w=(6, 6), v=(6, 6)), drawn()
    data = data_of(model, tmp_path, x)
    first = input_moments(*opened(model), data)

    def refused(source: object) -> Session:
        raise AssertionError("opened again")

    again = input_moments(*opened(model), data, open_session=refused)  # type: ignore[arg-type]
    assert again["w"] is first["w"]


def test_weights_in_branches_are_left_out(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,6] x) => (float[N,6] y) <bool c = {1}> {
      y = If (c) <then_branch = t () => (float[N,6] p) { p = MatMul(x, w) },
                  else_branch = e () => (float[N,6] q) { q = Identity(x) }>
    }"""
    model = model_of(text, w=(6, 6))
    graph, found = opened(model)
    assert [each.name for each in found] == ["w"]
    assert not input_moments(graph, found, data_of(model, tmp_path, drawn()))


def test_paired_moments_hold_the_original_beside_the_changed_model(tmp_path: Path) -> None:
    before, x = model_of(CHAIN, w=(6, 6), v=(6, 6)), drawn()
    after = model_of(CHAIN, seed=5, w=(6, 6), v=(6, 6))
    graph, found = opened(after)
    moments = paired_moments(before, graph, [each for each in found if each.name == "v"], data_of(before, tmp_path, x))

    def inputs_of_v(model: Model) -> np.ndarray:
        w = np.asarray(next(each for each in opened(model)[1] if each.name == "w").values).astype(np.float64)
        hidden = np.maximum(x @ w, 0)
        return hidden + hidden @ w

    old, new = inputs_of_v(before), inputs_of_v(after)
    np.testing.assert_allclose(moments["v"].gram[0], new.T @ new / 50, rtol=1e-3)
    np.testing.assert_allclose(moments["v"].cross[0], old.T @ new / 50, rtol=1e-3, atol=1e-3)


def test_depth_counts_the_nodes_on_the_longest_way() -> None:
    graph, _ = opened(model_of(CHAIN, w=(6, 6), v=(6, 6)))
    nodes = {node.outputs[0].name: node for node in graph.main.graph.nodes}
    depth = depths(graph, {id(node) for node in nodes.values() if node.op == "MatMul"})
    assert {name: depth[id(node)] for name, node in nodes.items()} == {"a": 0, "b": 1, "c": 1, "d": 2, "y": 2}
