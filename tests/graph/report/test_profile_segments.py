"""Segments: which of some nodes all that follows belongs to, and whose a profile's names are."""

import onnx

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.profile_segments import Segments, with_names
from onnxcomp.model import load

# x -> a -> Relu -> b -> Add(a's Relu) -> y, with c beside them on x
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,2] x, float[2,2] w) => (float[2,2] y, float[2,2] z) {
    t = MatMul(x, w) r = Relu(t) u = MatMul(r, w) y = Add(u, r) s = MatMul(x, w) z = Abs(s) }"""
NAMES = ["t", "u", "s"]


def segments() -> Segments:
    return Segments(open_graph(load(onnx.parser.parse_model(TEXT))), NAMES)


def test_sources_and_readers_pass_through_other_nodes() -> None:
    found = segments()
    assert found.sources == {"t": set(), "u": {"t"}, "s": set()}
    assert dict(found.readers) == {"t": {"u", ""}, "u": {""}, "s": {""}}


def test_names_of_optimized_nodes_find_their_owner() -> None:
    found = segments()
    assert found.owner("t") == found.owner("r") == found.owner("fused t") == found.owner("r_nchwc") == "t"
    assert found.owner("u_token_12") == found.owner("y") == "u"
    assert found.owner("ReorderOutput_token_3") is None and found.owner("x") is None


def test_seconds_are_summed_by_segment() -> None:
    profile = {"t": 1.0, "r_nchwc": 0.5, "u_token_2": 2.0, "Reorder": 9.0, "z": 0.25}
    assert segments().seconds(profile) == {"t": 1.5, "u": 2.0, "s": 0.25}


def test_nameless_nodes_are_called_by_their_first_output() -> None:
    named = with_names(load(onnx.parser.parse_model(TEXT)))
    assert [node.name for node in named.proto.graph.node] == ["t", "r", "u", "y", "s", "z"]


def test_a_name_that_is_taken_is_not_given_again() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node[0].name = "r"  # the output of the next node, which has no name
    assert [node.name for node in with_names(load(proto)).proto.graph.node][:3] == ["r", "", "u"]
