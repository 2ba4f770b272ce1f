"""onnxcomp.graph.slices: what has to run after a change, and that it computes what the whole does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.graph.slices import Slices
from onnxcomp.runtime import Session

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
DIAMOND = """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
    a = Mul(x, p)  b = Mul(a, q)  c = Relu(a)  d = Neg(c)  y = Add(b, d)  z = Abs(c) }"""
SPLIT = """g (float[N,4] x) => (float[N,2] y) {
    a = Mul(x, p)  b, c = Split<axis = 1>(a)  d = Relu(b)  e = Mul(d, q)  y = Add(e, c) }"""
BRANCH = """g (float[N,4] x) => (float[N,4] y) {
    a = Relu(x)  b = Mul(a, p)  s = ReduceMax<keepdims = 0>(x)  k = Greater(s, zero)
    y = If(k) <then_branch = t () => (float[N,4] u) { u = Mul(b, q) },
               else_branch = e () => (float[N,4] v) { v = Neg(a) }> }"""


def slices_of(text: str) -> Slices:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {text}')
    size = 2 if text is SPLIT else 4
    held = {"p": np.full(4, 2, np.float32), "q": np.full(size, 3, np.float32), "zero": np.array(0, np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in held.items())
    return Slices(proto)


def values_of(slices: Slices, names: set[str]) -> dict[str, np.ndarray]:
    proto = onnx.ModelProto()
    proto.CopyFrom(slices.proto)
    for name in names - {each.name for each in proto.graph.output}:
        proto.graph.output.add(name=name)
    return Session(proto.SerializeToString()).run({"x": X})


@pytest.mark.parametrize(
    ("text", "changed", "after", "beside"),
    [
        (DIAMOND, "p", {"a", "b", "c", "d", "y", "z"}, set()),
        (DIAMOND, "q", {"b", "y"}, {"a", "d", "z"}),
        (SPLIT, "q", {"e", "y"}, {"d", "c"}),
        (BRANCH, "p", {"b", "y"}, {"a", "k"}),
        (BRANCH, "q", {"y"}, {"a", "b", "k"}),
    ],
)
def test_knows_what_a_change_reaches_and_what_that_needs(
    text: str, changed: str, after: set[str], beside: set[str]
) -> None:
    slices = slices_of(text)
    assert slices.after([changed]) == after
    assert slices.beside(slices.after([changed])) == beside


@pytest.mark.parametrize(
    ("text", "changed", "known", "count"),
    [
        (DIAMOND, "q", {"a", "d", "z"}, 2),
        (DIAMOND, "q", {"a", "d"}, 4),  # z is not known, so c is needed again, from a
        (DIAMOND, "q", {"d"}, 5),
        (DIAMOND, "q", set(), 6),
        (DIAMOND, "p", {"a", "b", "c"}, 6),  # all of these are changed
        (SPLIT, "q", {"d", "c"}, 2),
        (SPLIT, "q", {"c"}, 5),  # Split has to run for b, and so makes c as well
        (BRANCH, "q", {"b", "a", "k"}, 1),
        (BRANCH, "q", {"b"}, 4),
    ],
)
def test_a_slice_computes_what_the_whole_does(text: str, changed: str, known: set[str], count: int) -> None:
    slices = slices_of(text)
    part = slices.cut(slices.after([changed]), known)
    assert len(part.nodes) == count
    whole = values_of(slices, known)
    infos = {name: helper.make_tensor_value_info(name, *_form(whole[name])) for name in part.feeds}
    session = Session(slices.model(part, infos).SerializeToString())
    fed = {name: whole[name] for name in part.feeds} | ({"x": X} if "x" in part.inputs else {})
    made = session.run(fed)
    assert set(made) == set(part.outputs)
    for name, found in made.items():
        np.testing.assert_array_equal(found, whole[name])


def _form(values: np.ndarray) -> tuple[int, tuple[int, ...]]:
    return helper.np_dtype_to_tensor_dtype(values.dtype), values.shape


def test_initializers_that_are_inputs_too_are_fed_from_ir_version_4_on_only() -> None:
    proto = slices_of(DIAMOND).proto
    proto.graph.input.append(helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, [4]))
    del proto.graph.input[0]  # nothing but q may vary then
    for version, varying in ((8, {"b", "y"}), (3, set())):
        proto.ir_version = version
        assert Slices(proto).varying == varying
