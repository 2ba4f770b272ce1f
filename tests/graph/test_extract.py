"""The part of a model that leads to some tensors: the same values, from fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcomp.graph.extract import up_to
from onnxcomp.model import load

BRANCHING = """
<ir_version: 8, opset_import: ["" : 15]>
agraph (float[2, 3] x, bool flag) => (float[2, 3] last)
<float[3] w = {1.0, 2.0, 3.0}, float[3] unread = {4.0, 5.0, 6.0}>
{
  scaled = Mul(x, w)
  beside = Add(x, unread)
  root = Sqrt(scaled)
  chosen = If(flag) <
    then_branch = yes () => (float[2, 3] a) { a = Add(root, scaled) },
    else_branch = no () => (float[2, 3] b) { b = Identity(root) }
  >
  last = Neg(chosen)
}
"""
OLD = """
<ir_version: 3, opset_import: ["" : 8]>
agraph (float[2] x, float[2] w, float[2] unread) => (float[2] last)
<float[2] w = {2.0, 3.0}, float[2] unread = {4.0, 5.0}>
{
  inner = Mul(x, w)
  last = Add(inner, unread)
}
"""
X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


def whole_with(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


def ran(model: onnx.ModelProto, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(names, feeds))


@pytest.mark.parametrize("names", [["scaled"], ["root"], ["chosen"], ["last", "scaled"]])
@pytest.mark.parametrize("flag", [True, False])
def test_the_part_gives_the_same_values(names: list[str], flag: bool) -> None:
    model = onnx.parser.parse_model(BRANCHING)
    feeds = {"x": X, "flag": np.array(flag)}
    part = up_to(load(model), names).proto
    assert [each.name for each in part.graph.output] == names
    expected = ran(whole_with(model, *(name for name in names if name != "last")), names, feeds)
    for found, wanted in zip(ran(part, names, feeds), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_only_the_nodes_and_constants_on_the_way_are_left() -> None:
    part = up_to(load(onnx.parser.parse_model(BRANCHING)), ["chosen"]).proto
    assert [node.op_type for node in part.graph.node] == ["Mul", "Sqrt", "If"]
    assert [each.name for each in part.graph.initializer] == ["w"]
    assert [each.name for each in part.graph.input] == ["x", "flag"]


def test_a_constant_that_an_old_model_states_as_an_input_leaves_with_it() -> None:
    part = up_to(load(onnx.parser.parse_model(OLD)), ["inner"]).proto
    assert [each.name for each in part.graph.input] == ["x", "w"]
    (found,) = ran(part, ["inner"], {"x": X[0, :2]})
    np.testing.assert_array_equal(found, [2.0, 6.0])


def test_without_names_it_is_the_model() -> None:
    model = load(onnx.parser.parse_model(BRANCHING))
    assert up_to(model, []) is model
