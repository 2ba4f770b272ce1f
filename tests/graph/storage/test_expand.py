"""expand undoes compact storage, wherever it stands, and leaves everything else alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.storage.expand import differing_constants, expand
from onnxcomp.graph.weights.roles import constants_by_key
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.graph.weighted import KINDS, PLACES, feeds_of, matrix, model_with


def stored(model: Model) -> Model:
    graph = open_graph(model)
    assert get_pass("store-compact")().apply(graph, Context()).changed
    return load(close_graph(graph).proto)


def constants(model: Model) -> dict[str, bytes]:
    return {name: each.values.tobytes() for name, each in constants_by_key(open_graph(model)).items()}


@pytest.mark.parametrize("opset", [7, 10, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_gives_back_the_same_constants_and_nodes(kind: str, opset: int) -> None:
    model = load(model_with(matrix(kind), opset=opset))
    if kind == "few zeros" and opset < 9:
        return  # nothing to gain there
    after = expand(stored(model))
    assert constants(after) == constants(model)
    assert [node.op_type for node in after.proto.graph.node] == ["MatMul"]
    assert expand(after) is after


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["16 levels", "tail", "half zeros and 16 levels"])
def test_works_in_branches_loops_and_functions(place: str, kind: str) -> None:
    proto = model_with(matrix(kind), place=place)
    after = expand(stored(load(proto)))
    assert sorted(constants(after)) == sorted(constants(load(proto)))
    onnx.checker.check_model(after.to_bytes())
    plain, again = (Session(content, optimization="none") for content in (proto.SerializeToString(), after.to_bytes()))
    assert np.array_equal(plain.run(feeds_of(proto))["y"], again.run(feeds_of(proto))["y"])


def test_leaves_computations_on_inputs_alone() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}>
        { h = Mul(x, w) y = Neg(h) }"""
    model = load(onnx.parser.parse_model(body))
    assert expand(model) is model


def test_a_decoded_graph_output_stays_an_output() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y, float[2] z)
        <float[3] book = {5, 6, 7}, int32[2] codes = {2, 0}> { z = Gather(book, codes) y = Mul(x, z) }"""
    after = expand(load(onnx.parser.parse_model(body)))
    assert [each.name for each in after.proto.graph.output] == ["y", "z"]
    result = Session(after.to_bytes()).run({"x": np.ones(2, np.float32)})
    assert result["z"].tolist() == result["y"].tolist() == [7, 5]


def test_differing_constants_names_a_decoder_that_gives_other_values() -> None:
    before = load(model_with(matrix("16 levels")))
    after = stored(before)
    assert differing_constants(before, after) == []
    packed = max(after.proto.graph.initializer, key=lambda each: len(each.raw_data))
    packed.raw_data = packed.raw_data[:-1] + bytes([packed.raw_data[-1] ^ 1])
    assert differing_constants(before, after) == ["W"]
