"""Opening a graph and closing it again gives the model that was opened, to the byte."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import numpy_helper

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from tests.conformance.cases import node_cases, weight_cases
from tests.graph.contents import CONTENTS
from tests.graphs import draw_models, models


def differing_parts(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """Name the fields that differ, for a readable failure."""
    if before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True):
        return []
    return [
        f"{left.DESCRIPTOR.name}.{field.name}"
        for left, right in ((before, after), (before.graph, after.graph))
        for field in left.DESCRIPTOR.fields
        if str(getattr(left, field.name)) != str(getattr(right, field.name))
    ] or ["the bytes"]


def assert_round_trips(proto: onnx.ModelProto) -> None:
    model = load(proto)
    closed = close_graph(open_graph(model))
    assert differing_parts(proto, whole(closed)) == []
    assert differing_parts(proto, whole(model)) == [], "the model that was opened has changed"


def whole(model: Model) -> onnx.ModelProto:
    """The model with its data in it."""
    return onnx.load_from_string(model.to_bytes())


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_keeps_every_kind_of_content(name: str) -> None:
    assert_round_trips(CONTENTS[name]())


def test_keeps_node_tests() -> None:
    for case in node_cases().cases:
        assert_round_trips(case.model)


def test_keeps_node_tests_with_weights() -> None:
    for case in weight_cases().cases:
        assert_round_trips(case.model)


def test_keeps_drawn_models() -> None:
    for model in draw_models(400, seed=11):
        assert_round_trips(model)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_keeps_any_model(model: onnx.ModelProto) -> None:
    assert_round_trips(model)


def test_keeps_external_data_where_it_is(tmp_path: Path) -> None:
    proto = draw_models(1, seed=2)[0]
    values = np.arange(3000, dtype=np.float32).reshape(50, 60)
    proto.graph.initializer.append(numpy_helper.from_array(values, "large"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=64)
    model = load(path)
    stored = onnx.ModelProto()
    stored.CopyFrom(model.proto)
    graph = open_graph(model)
    constant = next(each for each in graph.main.constants if each.name == "large")
    np.testing.assert_array_equal(constant.values, values)
    assert differing_parts(stored, close_graph(graph).proto) == []


def test_reads_every_constant_of_drawn_models() -> None:
    for proto in draw_models(100, seed=4):
        graph = open_graph(load(proto))
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        for constant in graph.main.constants:
            if constant.name in held:
                np.testing.assert_array_equal(constant.values, held[constant.name])


def test_changing_one_weight_leaves_the_rest_alone() -> None:
    changed = 0
    for proto in draw_models(150, seed=8):
        graph = open_graph(load(proto))
        constant = next(
            (each for each in graph.main.constants if each.dtype == np.float32 and each.shape), None
        )
        if constant is None:
            continue
        constant.values = np.full(constant.shape, 2.5, np.float32)
        closed = close_graph(graph).proto
        expected = onnx.ModelProto()
        expected.CopyFrom(proto)
        _set(expected, constant.name)
        assert [n.SerializeToString() for n in closed.graph.node if n.op_type != "Constant"] == [
            n.SerializeToString() for n in expected.graph.node if n.op_type != "Constant"
        ]
        assert _values(closed) == _values(expected)
        changed += 1
    assert changed > 100


def _set(model: onnx.ModelProto, name: str) -> None:
    for sparse in list(model.graph.sparse_initializer):
        if sparse.values.name == name:  # new values are stored dense
            dense = np.full(tuple(sparse.dims), 2.5, np.float32)
            model.graph.sparse_initializer.remove(sparse)
            model.graph.initializer.append(numpy_helper.from_array(dense, name))
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 2.5, np.float32), name))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            old = onnx.helper.get_attribute_value(node.attribute[0])
            shape = tuple(old.dims) if isinstance(old, onnx.TensorProto) else np.shape(old)
            del node.attribute[:]
            node.attribute.append(
                onnx.helper.make_attribute("value", numpy_helper.from_array(np.full(shape, 2.5, np.float32)))
            )


def _values(model: onnx.ModelProto) -> dict[str, bytes]:
    found = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
            found[node.output[0]] = array.tobytes()
    return found


@pytest.mark.parametrize("part", [slice(1, None), slice(0, 7), slice(None, None, 2), slice(3, 4)])
@pytest.mark.parametrize("at", [0, 1])
def test_a_part_of_a_large_weight_is_written_as_that_part(part: slice, at: int) -> None:
    values = np.arange(2 * 512 * 200, dtype=np.float32).reshape(2, 512, 200)
    tensors = [numpy_helper.from_array(each, name) for name, each in zip("vw", values, strict=True)]
    graph = open_graph(load(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))))
    constant = graph.main.constants[at]
    constant.values = constant.values[part]
    closed = close_graph(graph)
    assert np.array_equal(closed.read(closed.proto.graph.initializer[at]), values[at][part])
    assert np.array_equal(closed.read(closed.proto.graph.initializer[1 - at]), values[1 - at])
