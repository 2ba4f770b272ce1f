"""onnxcomp.graph.weights.detached: a model and its data apart compute what the model does, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.graph.weights.detached import detach
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.tensors import is_external
from onnxcomp.testing.models import draw_models, feeds_for
from tests.test_stored_weights import FEEDS, STORINGS, stored

RNG = np.random.default_rng(0)


def session(model: Model) -> Session:
    found = detach(model)
    return Session(found.proto.SerializeToString(), initializers=found.data)


@pytest.mark.parametrize("proto", draw_models(40, seed=9))
def test_computes_what_the_model_does(proto: ModelProto) -> None:
    model, feeds = load(proto), feeds_for(proto)
    expected = Session(model.to_bytes()).run(feeds)
    for name, found in session(model).run(feeds).items():
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("how", STORINGS)
def test_stored_weights_are_apart_as_what_their_decoders_make(how: str) -> None:
    model = load(stored(how))
    found = detach(model)
    assert all(found.data[name].dtype == np.float32 for name in found.weights) and len(found.weights) == 4
    operators = {node.op_type for node in found.proto.graph.node}
    assert not operators & {"Cast", "Transpose", "Gather", "Unsqueeze", "Squeeze"}
    expected = Session(model.to_bytes()).run(FEEDS)
    np.testing.assert_array_equal(session(model).run(FEEDS)["y"], expected["y"])


def test_what_sessions_cannot_be_given_stays_in_the_model() -> None:
    """The weight of a branch, an output, and what an input overrides; a small vector is not worth it."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,40] x, bool k, float[40,40] o) => (float[N,40] y, float[40,40] z) {
            a = MatMul(x, w)  b = Add(a, c)  d = MatMul(b, z)  e = MatMul(d, o)
            y = If(k) <then_branch = t () => (float[N,40] u) { u = MatMul(e, own) },
                       else_branch = f () => (float[N,40] v) { v = Neg(e) }> }"""
    )

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)

    proto.graph.initializer.extend([tensor("w", 40, 40), tensor("z", 40, 40), tensor("o", 40, 40), tensor("c", 40)])
    proto.graph.node[-1].attribute[0].g.initializer.append(tensor("own", 40, 40))
    model = load(proto)
    found = detach(model)
    assert set(found.data) == {"w"} and found.weights == ("w",)
    assert {each.name for each in found.proto.graph.initializer if is_external(each)} == {"w"}
    feeds = {"x": RNG.standard_normal((2, 40)).astype(np.float32), "k": np.array(True)}
    expected = Session(model.to_bytes()).run(feeds)
    made = session(model).run(feeds)
    for name in ("y", "z"):
        np.testing.assert_array_equal(made[name], expected[name])


def test_data_of_other_files_are_in_the_model_or_apart(tmp_path: Path) -> None:
    big = numpy_helper.from_array(RNG.standard_normal((64, 64)).astype(np.float32), "w")
    own = numpy_helper.from_array(RNG.standard_normal((64, 64)).astype(np.float32), "own")
    branch = helper.make_graph([helper.make_node("MatMul", ["x", "own"], ["u"])], "t", [], [_info("u")], [own])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["v"])], "e", [], [_info("v")])
    node = helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=other)
    condition = helper.make_tensor_value_info("k", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [_info("x"), condition], [_info("y")], [big])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    assert set(detach(model).data) == {"w"}
    for taken in (True, False):
        feeds = {"x": RNG.standard_normal((2, 64)).astype(np.float32), "k": np.array(taken)}
        expected = feeds["x"] @ numpy_helper.to_array(own if taken else big)
        np.testing.assert_allclose(session(model).run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)


def _info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64])
