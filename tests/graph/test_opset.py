"""raise_opset against ONNX Runtime: the same outputs before and after, for every operator whose form changed."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.opset import raise_opset
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session

Array = NDArray[Any]

CASES = {
    "y = Softmax(x)": (2, 3, 4),
    "y = Softmax<axis=2>(x)": (2, 3, 4),
    "y = LogSoftmax<axis=1>(x)": (2, 3, 4),
    "y = Squeeze<axes=[0]>(x)": (1, 3, 4),
    "y = Unsqueeze<axes=[1]>(x)": (2, 3, 4),
    "y = ReduceSum<axes=[1], keepdims=0>(x)": (2, 3, 4),
    "y = ReduceMean<axes=[1]>(x)": (2, 3, 4),
    "y, z = Split<axis=1, split=[1,2]>(x)": (2, 3, 4),
    "y, z = Split<axis=0>(x)": (2, 3, 4),
    "y = Clip<min=-0.5, max=0.5>(x)": (2, 3, 4),
    'y = Pad<pads=[0,0,1,0,0,1], mode="constant", value=2.0>(x)': (2, 3, 4),
    "y = Slice<starts=[1], ends=[3], axes=[1]>(x)": (2, 3, 4),
    "y = Dropout(x)": (2, 3, 4),
    "y, i = TopK<k=2, axis=1>(x)": (2, 3, 4),
    's = Constant<value=float[4]{1.,1.,3.,2.}>() y = Upsample<mode="linear">(x, s)': (1, 2, 3, 4),
    's = Constant<value=float[4]{1.,1.,3.,2.}>() y = Upsample<mode="nearest">(x, s)': (1, 2, 3, 4),
    "y = MaxPool<kernel_shape=[2]>(x)": (2, 3, 4),
    "y = Gemm<alpha=0.5>(x, x, x)": (3, 3),
}


def model_of(body: str, shape: tuple[int, ...], opset: int) -> Model:
    dims = ",".join(str(each) for each in shape)
    unknown = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    proto = parser.parse_model(
        f'<ir_version: 4, opset_import: ["" : {opset}]> g (float[{dims}] x) => (float y) {{ {body} }}'
    )
    proto.graph.output[0].CopyFrom(unknown)
    return load(proto)


def raised(model: Model, opset: int = 13) -> Model:
    graph = open_graph(model)
    assert raise_opset(graph, opset) is None
    result = close_graph(graph)
    assert result.opset == opset
    return result


@pytest.mark.parametrize("body", CASES)
def test_outputs_stay_the_same(body: str) -> None:
    model = model_of(body, CASES[body], 9)
    x = np.random.default_rng(0).standard_normal(CASES[body]).astype(np.float32)
    before, after = (Session(each.to_bytes()).run({"x": x})["y"] for each in (model, raised(model)))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)  # Softmax may sum in another order


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_opset_ten_keeps_its_corners(mode: str) -> None:
    body = f's = Constant<value=float[4]{{1.,1.,2.5,1.5}}>() y = Resize<mode="{mode}">(x, s)'
    model = model_of(body, (1, 1, 3, 4), 10)
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    before, after = (Session(each.to_bytes()).run({"x": x})["y"] for each in (model, raised(model)))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_nodes_keep_their_names_and_unchanged_nodes_their_bytes() -> None:
    model = model_of("h = Relu(x) [squeeze] k = Squeeze<axes=[0]>(h) y = Neg(k)", (1, 3), 9)
    model.proto.graph.node[0].doc_string = "kept"
    result = raised(model)
    nodes = {each.op_type: each for each in result.proto.graph.node}
    assert nodes["Squeeze"].name == "squeeze"
    assert nodes["Relu"].doc_string == "kept"
    assert nodes["Neg"] == model.proto.graph.node[2]


def test_nodes_inside_subgraphs_are_raised() -> None:
    proto = parser.parse_model("""<ir_version: 4, opset_import: ["" : 9]>
        g (bool c, float[1,3] x) => (float[3] y) { y = If(c) <
            then_branch = t () => (float[3] a) { a = Squeeze<axes=[0]>(x) },
            else_branch = e () => (float[3] b) { n = Neg(x) b = Squeeze<axes=[0]>(n) }> }""")
    result = raised(load(proto))
    x = np.array([[1, 2, 3]], np.float32)
    for condition, sign in (True, 1), (False, -1):
        y = Session(result.to_bytes()).run({"x": x, "c": np.array(condition)})["y"]
        assert y.tolist() == [sign * 1, sign * 2, sign * 3]


def test_initializers_that_old_models_list_as_inputs_stay_constants() -> None:
    proto = parser.parse_model("""<ir_version: 3, opset_import: ["" : 9]>
        g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.float32), "w"))
    result = raised(load(proto))
    assert result.proto.ir_version >= 7
    assert [each.name for each in result.proto.graph.input] == ["x"]


def test_other_domains_stay_and_what_follows_them_is_raised() -> None:
    proto = parser.parse_model("""<ir_version: 4, opset_import: ["" : 9, "com.microsoft" : 1]>
        g (float[1,3] x) => (float[3] y) { h = com.microsoft.Gelu(x) y = Squeeze<axes=[0]>(h) }""")
    result = raised(load(proto))
    y = Session(result.to_bytes()).run({"x": np.zeros((1, 3), np.float32)})["y"]
    assert y.tolist() == [0, 0, 0]


def test_declines_what_the_converter_gets_wrong() -> None:
    graph = open_graph(model_of("y = Hardmax(x)", (2, 3, 4), 9))
    assert "Hardmax" in (raise_opset(graph, 13) or "")


def test_declines_what_cannot_be_converted() -> None:
    proto = parser.parse_model("""<ir_version: 4, opset_import: ["" : 9]>
        g (float[M,N] x, float[K] s) => (float[A,B,C] y) { y = NoSuchOperator(x, s) }""")
    graph = open_graph(load(proto))
    reason = raise_opset(graph, 13)
    assert reason is not None and "NoSuchOperator" in reason
    assert graph.opset == 9


def test_leaves_a_model_that_is_new_enough() -> None:
    model = model_of("y = Relu(x)", (2, 3, 4), 15)
    graph = open_graph(model)
    assert raise_opset(graph, 13) is None
    assert close_graph(graph).proto.SerializeToString() == model.proto.SerializeToString()
