"""strip-metadata: what goes, what stays, and that short names are consistent everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.registry import get_pass
from tests.passes.exactly import check_same, floats, model, rewrite

CHAIN = """g (float[2, 3] image) => (float[2, 3] logits) <float[3] weight = {1, 2, 3}>
    { [first] hidden = Add(image, weight) [second] logits = Relu(hidden) }"""
X = {"image": floats(2, 3)}


def written_about(proto: ModelProto) -> ModelProto:
    """The model with texts and metadata everywhere."""
    graph = proto.graph
    for message in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.doc_string = "a text"
        message.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File model.py, line 1")
        message.metadata_props.add(key="labels", value="cat,dog")
    return proto


def test_strips_texts_and_exporters_metadata_and_keeps_the_users() -> None:
    done = rewrite(written_about(model(CHAIN, ir=10)), "strip-metadata")
    proto = done.after.proto
    assert b"a text" not in proto.SerializeToString() and b"model.py" not in proto.graph.SerializeToString()
    own = [("pkg.torch.onnx.stack_trace", "File model.py, line 1"), ("labels", "cat,dog")]
    assert [(each.key, each.value) for each in proto.metadata_props] == own
    assert not proto.graph.node[0].metadata_props and not proto.graph.initializer[0].metadata_props
    assert {each.name: each.details["number"] for each in done.outcome.changed} == {
        "doc strings": 7, "metadata entries": 12, "empty texts": 2,
    }  # fmt: skip
    check_same(done, X)


def test_keeps_metadata_on_request_and_removes_the_users_on_request() -> None:
    proto = written_about(model(CHAIN, ir=10))
    kept = rewrite(proto, "strip-metadata", keep="pkg.torch.*").after.proto
    assert len(kept.graph.node[0].metadata_props) == 1 and len(kept.metadata_props) == 2
    assert not rewrite(proto, "strip-metadata", user_metadata=True).after.proto.metadata_props


def test_of_the_models_own_metadata_only_what_tools_wrote_goes() -> None:
    proto = model(CHAIN, ir=10)
    users = ["namespace", "torch_stride", "torchscript_labels", "onnxscript_tokens", "pkg.vocab", "onnx.infer.classes"]
    for key in (*users, "onnx.infer", "onnx.quant.pre_process"):
        proto.metadata_props.add(key=key, value="1")
    done = rewrite(proto, "strip-metadata")
    assert [each.key for each in done.after.proto.metadata_props] == users
    assert done.outcome.changed[0].details["number"] == 2


def test_strips_texts_of_attributes_constants_subgraphs_and_functions() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) { w = Constant <value = float[3] {1, 2, 3}> ()
        v = Constant <value_floats = [4.0, 5.0, 6.0]> () y = If (c) <
        then_branch = t () => (float[3] a) { a = Add(x, w) },
        else_branch = e () => (float[3] b) { i = local.f(x) b = Add(i, v) }> }
        <domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Selu <alpha = 2.0> (a) }"""
    proto = model(body, more=', "local" : 1', ir=10)
    constant, other, branching = proto.graph.node
    branches = [each.g for each in branching.attribute]
    function = proto.functions[0]
    for message in (
        constant, constant.attribute[0], constant.attribute[0].t, other, branching, *branching.attribute, *branches,
        branches[0].node[0], function, function.node[0], function.node[0].attribute[0],
    ):  # fmt: skip
        message.doc_string = "a text"
    done = rewrite(proto, "strip-metadata")
    assert b"a text" not in done.after.proto.SerializeToString()
    assert other.attribute[0].name == "value_floats"
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(3)})


def test_leaves_a_bare_model_as_it_is() -> None:
    proto = onnx.ModelProto.FromString(rewrite(model(CHAIN), "strip-metadata").after.to_bytes())
    done = rewrite(proto, "strip-metadata")
    assert not done.outcome.changed and done.after.proto == done.before.proto


def test_strips_value_infos_that_inference_restores() -> None:
    body = """g (float[N, 4] x, int64[2] t) => (float[N, 4] z)
        <float[N, 4] a, float[7, 4] b, float[N, 4] c>
        { a = Relu(x) b = Reshape(a, t) c = com.unknown.Op(b) z = Relu(c) }"""
    done = rewrite(model(body, more=', "com.unknown" : 1'), "strip-metadata")
    # b is more exact than inference can tell, c comes from an operator that nobody knows
    assert [each.name for each in done.graph.value_info] == ["b", "c"]


def test_shortens_inner_names_only() -> None:
    done = rewrite(model(CHAIN), "strip-metadata", shorten_names=True)
    assert [each.name for each in (*done.graph.input, *done.graph.output)] == ["image", "logits"]
    assert sorted([done.graph.initializer[0].name, done.graph.node[0].output[0]]) == ["a", "b"]
    assert not any(each.HasField("name") for each in done.graph.node)
    check_same(done, X)
    again = rewrite(done.after.proto, "strip-metadata", shorten_names=True)
    assert not again.outcome.changed and again.after.proto == done.after.proto


def test_short_names_avoid_those_that_stay() -> None:
    body = """g (float[3] a) => (float[3] b) { first = Relu(a) second = Neg(first) b = Abs(second) }"""
    done = rewrite(model(body), "strip-metadata", shorten_names=True)
    assert [out for node in done.graph.node for out in node.output] == ["c", "d", "b"]
    check_same(done, {"a": floats(3)})


def test_shortens_names_in_subgraphs_and_functions() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) { hidden = Relu(x) result = If (c) <
        then_branch = t () => (float[3] plus) <float[3] weight = {1, 2, 3}> { plus = Add(hidden, weight) },
        else_branch = e () => (float[3] minus) { inner = local.f(hidden) minus = Neg(inner) }> y = Abs(result) }
        <domain: "local", opset_import: ["" : 17]> f (given) => (made) { middle = Neg(given) made = Relu(middle) }"""
    done = rewrite(model(body, more=', "local" : 1'), "strip-metadata", shorten_names=True)
    text = done.after.proto.SerializeToString()
    assert not [
        name for name in (b"hidden", b"result", b"plus", b"minus", b"weight", b"inner", b"middle") if name in text
    ]
    assert b"given" in text and b"made" in text
    for choice in (True, False):
        check_same(done, {"c": np.array(choice), "x": floats(3)})


@pytest.mark.parametrize("pattern", ["scal*", "mul*", "branch/then_branch/in*", "inner_mul"])
def test_what_is_excluded_stays_known_under_its_name(pattern: str) -> None:
    body = """g (bool c, float[2, 2] x) => (float[2, 2] y) <float[2, 2] scale = {1, 2, 3, 4}> {
        [multiply] hidden = Mul(x, scale) [branch] result = If (c) <
        then_branch = t () => (float[2, 2] grown) <float[2, 2] inside = {1, 2, 3, 4}>
            { [inner_mul] grown = Mul(hidden, inside) },
        else_branch = e () => (float[2, 2] minus) { minus = Neg(hidden) }> y = Abs(result) }"""
    context = Context(exclude=(pattern,))
    before = [each.name for each in weights(open_graph(load(model(body)))) if not _selected(context, each)]
    done = rewrite(model(body), "strip-metadata", shorten_names=True, context=context)
    left = weights(open_graph(done.after))
    assert before and [each.name for each in left if not _selected(context, each)] == before
    assert b"hidden" not in done.after.proto.SerializeToString()
    check_same(done, {"c": np.array(True), "x": floats(2, 2)})


def _selected(context: Context, weight: Weight) -> bool:
    return context.selects(weight.name, *weight.node_names)


def test_shortens_names_in_loops() -> None:
    body = """g (float[3] x) => (float[3] total) <int64 trips = {3}, bool go = {1}>
        { final = Loop (trips, go, x) < body = b (int64 step, bool going, float[3] carried) =>
          (bool still, float[3] next) { still = Identity(going) next = Add(carried, x) }> total = Neg(final) }"""
    done = rewrite(model(body), "strip-metadata", shorten_names=True)
    assert b"carried" not in done.after.proto.SerializeToString()
    check_same(done, {"x": floats(3)})


def test_encodings_follow_the_names_of_their_weights() -> None:
    body = """g (bool c, float[3] x) => (float[3] y) { [branch] result = If (c) <
        then_branch = t () => (float[3] plus) <float[3] weight = {1, 2, 1}> { plus = Add(x, weight) },
        else_branch = e () => (float[3] minus) { minus = Neg(x) }> y = Abs(result) }"""
    graph = open_graph(load(model(body)))
    encoding = CodebookEncoding(dtype="float32", codebook=np.array([1, 2], np.float32))
    graph.encodings["branch/then_branch/weight"] = encoding
    get_pass("strip-metadata")(shorten_names=True).apply(graph, Context())
    after = close_graph(graph)
    assert list(after.encodings.values()) == [encoding]
    again = close_graph(open_graph(after))
    assert again.encodings.keys() == after.encodings.keys()


def test_value_infos_and_annotations_follow_the_names() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 4] z) { wide = com.unknown.Op(x) [n] z = Relu(wide) }",
                  more=', "com.unknown" : 1')  # fmt: skip
    proto.graph.value_info.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["N", 4]))
    annotation = proto.graph.quantization_annotation.add(tensor_name="wide")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    graph = rewrite(proto, "strip-metadata", shorten_names=True).graph
    assert graph.value_info[0].name == graph.quantization_annotation[0].tensor_name == graph.node[0].output[0] == "a"


def test_keeps_names_of_inputs_that_have_initializers() -> None:
    body = "g (float[3] x, float[3] bias) => (float[3] y) <float[3] bias = {1, 2, 3}> { y = Add(x, bias) }"
    for ir in (3, 8):
        done = rewrite(model(body, opset=8, ir=ir), "strip-metadata", shorten_names=True)
        assert done.graph.initializer[0].name == "bias"
        check_same(done, {"x": floats(3)})


def test_keeps_the_order_of_initializers() -> None:
    body = """g (float[3] x) => (float[3] y) <float[3] one = {1, 2, 3}, float[3] two = {4, 5, 6}>
        { h = Add(x, two) i = Mul(h, two) y = Mul(i, one) }"""
    done = rewrite(model(body), "strip-metadata", shorten_names=True)
    assert [onnx.numpy_helper.to_array(each)[0] for each in done.graph.initializer] == [1, 4]


def test_renames_sparse_initializers() -> None:
    proto = model("g (float[4] x) => (float[4] y) { y = Add(x, weight) }")
    values = helper.make_tensor("weight", TensorProto.FLOAT, [2], [5.0, 6.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [2], [1, 3])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    done = rewrite(proto, "strip-metadata", shorten_names=True)
    assert done.graph.sparse_initializer[0].values.name == "a"
    check_same(done, {"x": floats(4)})
