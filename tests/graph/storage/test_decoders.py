"""Decoders give the values to the bit in ONNX Runtime, leave nothing behind, and cost what was counted."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.storage.decoders import DecoderWriter, cost_of
from onnxcomp.model import Model, load
from onnxcomp.numerics.encodings.expression import (
    binary,
    cast,
    counting,
    evaluate,
    flatten,
    gather,
    literal,
    reshape,
    summed_by_products,
)
from onnxcomp.numerics.encodings.storage_options import Storage, storages
from onnxcomp.numerics.encodings.table_decoder import Memo
from onnxcomp.runtime import Session
from tests.graph.weighted import IR_VERSIONS, KINDS, PLACES, SIDE, Array, feeds_of, matrix, model_with
from tests.graphs.running import kernels
from tests.numerics.encodings.encoded import NAMES, SHAPE, sample
from tests.sampling import one_in


def every_storage(values: Array, opset: int) -> list[Storage]:
    return list(storages(lambda: values, None, opset=opset, memo=Memo()))


def written(graph: Graph, storage: Storage) -> Model:
    """The model with each of its constants of the storage's shape replaced."""
    for scope in [each for each in graph.scopes if each.parent is None]:
        writer = DecoderWriter(graph, scope)
        inner = [each for each in graph.scopes if each is scope or each.parent is scope]
        for place in inner:
            for constant in list(place.constants):
                if constant.name == "W":
                    writer.replace(place, constant, storage.term)
        writer.finish()
    return close_graph(graph)


def decoded(model: Model, name: str, *, rows: int = SIDE) -> Array:
    """What ONNX Runtime computes for a tensor of the main graph."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None))
    proto.graph.node.append(onnx.helper.make_node("Identity", [name], ["seen"]))
    session = Session(proto.SerializeToString(), optimization="none")
    feeds = feeds_of(model.proto) | {"x": np.zeros((1, rows), np.float32)}
    return np.asarray(session.run(feeds, ["seen"])["seen"])


@one_in(4, kind=KINDS, opset=IR_VERSIONS)
def test_every_storage_decodes_to_the_bit_at_every_opset(kind: str, opset: int) -> None:
    values = matrix(kind)
    for storage in every_storage(values, opset):
        after = written(open_graph(load(model_with(values, opset=opset))), storage)
        onnx.checker.check_model(after.to_bytes(), full_check=True)
        result = decoded(after, "W")
        assert result.tobytes() == values.tobytes() and result.shape == values.shape, storage.name


@one_in(
    4,
    place=PLACES,
    kind=["16 levels", "8 levels", "zeros and 16 levels", "half zeros and 16 levels", "tail"],
    opset=[9, 11, 13, 17, 21, 23, 28],
)
def test_onnx_runtime_folds_every_decoder_wherever_it_stands(place: str, kind: str, opset: int) -> None:
    if place in ("function", "loop") and opset < 11:
        pytest.skip("functions came with IR version 8, a Loop that carries nothing with opset 11")
    proto = model_with(matrix(kind), opset=opset, place=place)
    plain, feeds = proto.SerializeToString(), feeds_of(proto)
    expected = Session(plain, optimization="basic").run(feeds)["y"]
    for storage in every_storage(matrix(kind), opset)[-3:]:
        content = written(open_graph(load(proto)), storage).to_bytes()
        assert kernels(content, level="ORT_ENABLE_BASIC") == kernels(plain, level="ORT_ENABLE_BASIC"), storage.name
        assert np.array_equal(Session(content, optimization="basic").run(feeds)["y"], expected), storage.name


@one_in(4, kind=KINDS, opset=[7, 9, 10, 17])
def test_the_counted_cost_is_what_the_file_grows_by(kind: str, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(100)
    # names of NAME_BYTES
    monkeypatch.setattr("onnxcomp.graph.storage.decoders.DecoderWriter._name", lambda self: str(next(numbers)))
    values = matrix(kind)
    for storage in every_storage(values, opset):
        graph = open_graph(load(model_with(values, opset=opset)))
        cost = cost_of(storage.term, graph.main)
        after = written(graph, storage)
        empty = onnx.ModelProto()
        empty.CopyFrom(after.proto)
        del empty.graph.node[:-1], empty.graph.initializer[:], empty.graph.input[1:]
        real = after.proto.ByteSize() - empty.ByteSize()
        assert abs(real - cost.own - sum(cost.shared.values())) <= 2, storage.name


def test_equal_parts_are_written_once() -> None:
    values = matrix("16 levels")
    graph = open_graph(load(model_with(values)))
    storage = every_storage(values, 17)[0]
    second = graph.constant(graph.main, "W2", values)
    graph.node(graph.main, "Neg", [second], [graph.variable("z")])
    writer = DecoderWriter(graph, graph.main)
    first = next(each for each in graph.main.constants if each.name == "W")
    writer.replace(graph.main, first, storage.term)
    nodes = len(writer._nodes[id(graph.main)][1])
    writer.replace(graph.main, second, storage.term)
    again = len(writer._nodes[id(graph.main)][1]) - nodes
    assert nodes > again == 3  # Cast, Gather, Reshape; the tables are there


def test_new_names_do_not_meet_old_ones() -> None:
    proto = model_with(matrix("16 levels"))
    proto.graph.node[0].input[0] = proto.graph.input[0].name = "_0"
    after = written(open_graph(load(proto)), every_storage(matrix("16 levels"), 17)[0])
    onnx.checker.check_model(after.to_bytes(), full_check=True)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 70000])
def test_sums_by_products_are_running_sums(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 255, count).astype(np.int32)
    assert np.array_equal(evaluate(summed_by_products(literal(values))), np.cumsum(values))


def test_evaluation_computes_a_shared_part_once() -> None:
    calls = []
    data = literal(np.arange(6))
    lazy = type(data)(data.shape, data.dtype, lambda: calls.append(1) or np.arange(6))  # type: ignore[func-returns-value]
    twice = cast(lazy, np.float32)
    assert evaluate(binary("Add", twice, twice)).tolist() == [0, 2, 4, 6, 8, 10] and len(calls) == 1
    assert evaluate(flatten(gather(literal(np.eye(2)), counting(2)))).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("opset", [7, 10, 13, 17, 23])
@pytest.mark.parametrize("name", NAMES)
def test_the_term_of_an_encoding_gives_its_values_in_onnx_runtime(name: str, opset: int) -> None:
    each = sample(name, "float32")
    if each.encoding.values_are_free and opset < 9:
        pytest.skip("Scatter came with opset 9")
    values = each.encoding.decode(each.codes, SHAPE).reshape(-1, SHAPE[-1])
    storage = Storage(name, reshape(each.encoding.trainable(each.codes, SHAPE), values.shape))
    after = written(open_graph(load(model_with(values, opset=opset))), storage)
    onnx.checker.check_model(after.to_bytes(), full_check=True)
    assert decoded(after, "W", rows=len(values)).tobytes() == values.tobytes()
