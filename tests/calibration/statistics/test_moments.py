"""Second moments of what weights are multiplied with, matrix by matrix, of one model and of two side by side."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.calibration.statistics.moments import input_moments
from onnxcomp.calibration.statistics.paired import paired_moments
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.ir.topology import depths
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import weights
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


@pytest.mark.parametrize(("shape", "count", "independent"), [((9, 6), 9, 9), ((4, 9, 6), 36, 12)])
def test_columns_of_one_sample_are_not_all_independent(
    shape: tuple[int, ...], count: int, independent: float, tmp_path: Path
) -> None:
    model = model_of(CHAIN.replace("[N,6]", "[N,6]" if len(shape) == 2 else "[N,9,6]"), w=(6, 6), v=(6, 6))
    graph, found = opened(model)
    data = data_of(model, tmp_path, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    moments = input_moments(graph, [each for each in found if each.name == "v"], data)["v"]
    assert (moments.count, moments.independent_count) == (count, independent)


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
    last = [each for each in found if each.name == "v"]
    moments = paired_moments(Reference(before), graph, last, data_of(before, tmp_path, x))

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


def product_of(text: str, x: np.ndarray, w: np.ndarray, result: tuple[int, ...]) -> Model:
    """A model of one product of x and w."""
    given, made = (",".join(map(str, shape)) for shape in (x.shape, result))
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{given}] x) => (float[{made}] y) {{ y = {text} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return load(proto)


def gram_of_one_batch(model: Model, x: np.ndarray) -> np.ndarray:
    """The second moments of w's inputs where all of x is one batch that is never cut."""
    groups = (Group("0", functools.partial(dict, {"x": x}), WHOLE),)
    specs = Session(model.to_bytes()).inputs
    data = CalibrationData(source="test", inputs=specs, groups=groups, order=np.array([[0, 0]], np.int64))
    return input_moments(*opened(model), data)["w"].gram


@pytest.mark.parametrize(("shape", "result"), [((4,), (5,)), ((4, 3), (5, 3)), ((2, 4, 3), (2, 5, 3))])
def test_a_matrix_on_the_left_meets_columns_and_vectors(shape: tuple[int, ...], result: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    gram = gram_of_one_batch(product_of("MatMul(w, x)", x, np.ones((5, 4), np.float32), result), x)
    columns = x.reshape(-1, 4) if len(shape) == 1 else np.moveaxis(x, -2, -1).reshape(-1, 4)
    expected = sum(np.outer(column, column) for column in columns) / len(columns)
    np.testing.assert_allclose(gram[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "matrices"),
    [((3, 1, 3), (1, 2)), ((3, 2, 3), (1, 2)), ((2, 3), (2,)), ((4, 1, 3, 3), (2, 1)), ((3,), (2, 2)), ((), (3,))],
)
def test_every_matrix_meets_the_rows_that_broadcasting_gives_it(
    inputs: tuple[int, ...], matrices: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*inputs, 4)).astype(np.float32)
    w = rng.standard_normal((*matrices, 4, 5)).astype(np.float32)
    gram = gram_of_one_batch(product_of("MatMul(x, w)", x, w, (x @ w).shape), x)
    stacked = w.reshape(-1, 4, 5)
    power = sum(np.trace(matrix.T @ moment @ matrix) for matrix, moment in zip(stacked, gram, strict=True))
    rows = (x @ w).size / 5 / len(stacked)
    assert power * rows == pytest.approx(float(np.square(x @ w).sum()), rel=1e-4)
