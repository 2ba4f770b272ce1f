"""Inputs of batched products, matrix by matrix, against the products themselves."""

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.moments import input_moments
from onnxcomp.calibration.sample_axes import WHOLE
from onnxcomp.graph.surgery import open_graph
from onnxcomp.graph.weights import weights
from onnxcomp.model import load
from onnxcomp.runtime import Session


def data_of(proto: onnx.ModelProto, x: np.ndarray) -> CalibrationData:
    """One batch that is never cut."""
    groups = (Group("0", functools.partial(dict, {"x": x}), WHOLE),)
    specs = Session(proto.SerializeToString()).inputs
    return CalibrationData(source="test", inputs=specs, groups=groups, order=np.array([[0, 0]], np.int64))


def test_a_matrix_on_the_left_meets_columns_and_vectors() -> None:
    for shape, result in (((4,), "5"), ((4, 3), "5,3"), ((2, 4, 3), "2,5,3")):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        text = f"g (float[{','.join(map(str, shape))}] x) => (float[{result}] y) {{ y = MatMul(w, x) }}"
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((5, 4), np.float32), "w"))
        graph = open_graph(load(proto))
        found = input_moments(graph, weights(graph), data_of(proto, x))["w"]
        columns = x.reshape(-1, 4) if len(shape) == 1 else np.moveaxis(x, -2, -1).reshape(-1, 4)
        expected = sum(np.outer(column, column) for column in columns) / len(columns)
        np.testing.assert_allclose(found.gram[0], expected, rtol=1e-5, atol=1e-6)


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
    shapes = [",".join(map(str, shape)) for shape in (x.shape, (x @ w).shape)]
    text = f"g (float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{ y = MatMul(x, w) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    model = load(proto)
    groups = (Group("0", functools.partial(dict, {"x": x}), WHOLE),)
    specs = Session(model.to_bytes()).inputs
    data = CalibrationData(source="test", inputs=specs, groups=groups, order=np.array([[0, 0]], np.int64))
    graph = open_graph(model)
    gram = input_moments(graph, weights(graph), data)["w"].gram
    stacked = w.reshape(-1, 4, 5)
    power = sum(np.trace(matrix.T @ moment @ matrix) for matrix, moment in zip(stacked, gram, strict=True))
    rows = (x @ w).size / 5 / len(stacked)
    assert power * rows == pytest.approx(float(np.square(x @ w).sum()), rel=1e-4)
