"""expand undoes compact storage, wherever it stands, and leaves everything else alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.storage.expand import Decoders, differing_constants, expand
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
        <float[3] _0 = {5, 6, 7}, int32[2] _1 = {2, 0}> { z = Gather(_0, _1) y = Mul(x, z) }"""
    after = expand(load(onnx.parser.parse_model(body)))
    assert [node.op_type for node in after.proto.graph.node] == ["Mul"]
    assert [each.name for each in after.proto.graph.output] == ["y", "z"]
    result = Session(after.to_bytes()).run({"x": np.ones(2, np.float32)})
    assert result["z"].tolist() == result["y"].tolist() == [7, 5]


USERS = {
    "an attention scale": "<float a = {1}, float b = {8}> { r = Div(a, b) y = Mul(x, r) }",
    "a table of its own": "<float[3] book = {5, 6, 7}, int32[1] codes = {2}> { r = Gather(book, codes) y = Mul(x, r) }",
    "a filled tensor": "<int64[2] s = {9, 9}> { c = ConstantOfShape <value = float[1] {1.5}> (s) r = ReduceMax(c) "
    "y = Mul(x, r) }",
    "a range": "<int32 s = {0}, int32 l = {4}, int32 d = {1}> { i = Range(s, l, d) r = Cast <to = 1> (i) "
    "y = Mul(x, r) }",
    "named nodes": "<float[3] _0 = {5, 6, 7}, int32[1] _1 = {2}> { [node] r = Gather(_0, _1) y = Mul(x, r) }",
}
# Under names of the kind that decoders have, but with operands or attributes that no decoder has.
FOREIGN = {
    "a division of floats": "<float _0 = {1}, float _1 = {8}> { r = Div(_0, _1) y = Mul(x, r) }",
    "integers below 0": "<int32[4] _0 = {-7, 7, -8, 8}, int32 _1 = {3}> { _2 = Div(_0, _1) r = Cast <to = 1> (_2) "
    "y = Mul(x, r) }",
    "division by 0": "<int32[4] _0 = {1, 2, 3, 4}, int32 _1 = {0}> { _2 = Mod(_0, _1) r = Cast <to = 1> (_2) "
    "y = Mul(x, r) }",
    "two axes of Slice": "<float[2, 2] _0 = {1, 2, 3, 4}, int64[2] _1 = {0, 0}, int64[2] _2 = {1, 1}> "
    "{ r = Slice(_0, _1, _2) y = Mul(x, r) }",
    "a Slice in steps": "<float[2] _0 = {1, 2}, int64[1] _1 = {0}, int64[1] _2 = {2}> "
    "{ r = Slice(_0, _1, _2, _1, _2) y = Mul(x, r) }",
    "a Slice from the middle": "<float[3] _0 = {1, 2, 3}, int64[1] _1 = {1}, int64[1] _2 = {2}> "
    "{ r = Slice(_0, _1, _2) y = Mul(x, r) }",
    "8-bit floats": "<float[2] _0 = {1000, -1000}> { _1 = Cast <to = 17> (_0) r = Cast <to = 1> (_1) y = Mul(x, r) }",
    "a rounding to integers": "<float[1] _0 = {2.5}> { _1 = Cast <to = 6> (_0) r = Cast <to = 1> (_1) y = Mul(x, r) }",
    "a product with roundings": "<double[1, 2] _0 = {0.1, 0.2}, double[2, 1] _1 = {0.3, 0.7}> "
    "{ _2 = MatMul(_0, _1) r = Cast <to = 1> (_2) y = Mul(x, r) }",
    "a range of floats": "<float _0 = {0}, float _1 = {1.6}, float _2 = {0.4}> { r = Range(_0, _1, _2) y = Mul(x, r) }",
    "more than is folded": "<int64[2] _0 = {30000, 30000}> { c = ConstantOfShape <value = float[1] {1.5}> (_0) "
    "r = ReduceMax(c) y = Mul(x, r) }",
    "an index beyond the table": "<float[1] _0 = {5}, int32[1] _1 = {2}> { r = Gather(_0, _1) y = Mul(x, r) }",
}


def of_floats(body: str, opset: int = 19) -> Model:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[4] x) => (float[N, M] y) '
    return load(onnx.parser.parse_model(head + body))


@pytest.mark.parametrize("body", [*USERS.values(), *FOREIGN.values()], ids=[*USERS, *FOREIGN])
def test_leaves_what_no_decoder_is(body: str) -> None:
    model = of_floats(body)
    assert expand(model) is model


def test_a_decoder_is_known_by_its_names_after_others_were_shortened() -> None:
    model = load(model_with(matrix("5 levels")))
    graph = open_graph(stored(model))
    get_pass("strip-metadata")(shorten_names=True).apply(graph, Context())
    after = expand(close_graph(graph))
    [weight] = constants(after).values()
    assert weight == constants(model)["W"]
    assert [node.op_type for node in after.proto.graph.node] == ["MatMul"]


def test_a_decoder_is_known_after_its_function_was_written_out() -> None:
    graph = open_graph(stored(load(model_with(matrix("5 levels"), place="function"))))
    get_pass("inline-functions")().apply(graph, Context())
    after = expand(close_graph(graph))
    assert not after.proto.functions
    assert {node.op_type for node in after.proto.graph.node} == {"MatMul", "Add"}  # the function's own


@pytest.mark.parametrize("opset", [7, 10, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_alone_computes_the_same_in_onnx_runtime(kind: str, opset: int) -> None:
    model = stored(load(model_with(matrix(kind), opset=opset))) if opset > 8 or kind != "few zeros" else None
    if model is None:
        return  # nothing to gain there
    [decoder] = Decoders(open_graph(model)).computed()
    [computed] = Session(decoder.alone().SerializeToString(), optimization="none").run({}).values()
    assert decoder.key == "W" and np.asarray(computed).tobytes() == decoder.values.tobytes()


def test_differing_constants_names_a_decoder_that_gives_other_values() -> None:
    before = load(model_with(matrix("16 levels")))
    after = stored(before)
    assert differing_constants(before, after) == []
    packed = max(after.proto.graph.initializer, key=lambda each: len(each.raw_data))
    packed.raw_data = packed.raw_data[:-1] + bytes([packed.raw_data[-1] ^ 1])
    assert differing_constants(before, after) == ["W"]
