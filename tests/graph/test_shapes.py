"""What is known of shapes does not depend on what the model states beside them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from onnxcomp.runtime import Session

WEIGHT = np.ones((4, 3, 3, 3), np.float32)  # small enough to stand in the skeleton
LARGE = np.ones((64, 4, 3, 3), np.float32)


@pytest.mark.parametrize("stated", [{"first": [4, 3, 3, 3], "second": [64, 4, 3, 3]}, {"second": [9, 9]}, {}])
def test_value_infos_of_weights_hide_no_shape(stated: dict[str, list[int]]) -> None:
    """torch.onnx.export(dynamo=True) states the type and shape of each weight; wrong ones are not believed."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "second"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, 6, 6])],
        [numpy_helper.from_array(WEIGHT, "first"), numpy_helper.from_array(LARGE, "second")],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in stated.items()],
    )  # fmt: skip
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    opened = open_graph(load(model))
    shapes = infer_shapes(opened)
    made = [node.outputs[0] for node in opened.main.graph.nodes]
    assert [shapes.shape(each) for each in made] == [(None, 4, 8, 8), (None, 64, 6, 6)]


ML = {
    "Scaler": ({"offset": [1.0, 2.0, 3.0], "scale": [2.0, 1.0, 0.5]}, np.float32),
    "Scaler of integers": ({"offset": [1.0, 2.0, 3.0], "scale": [2.0, 1.0, 0.5]}, np.int64),
    "Normalizer": ({"norm": "L2"}, np.float32),
    "Normalizer of integers": ({"norm": "MAX"}, np.int64),
    "Binarizer": ({"threshold": 0.5}, np.float32),
    "Imputer": ({"imputed_value_floats": [0.0], "replaced_value_float": -1.0}, np.float32),
}


@pytest.mark.parametrize("kind", ML)
@pytest.mark.parametrize("is_inner", [False, True])
@pytest.mark.parametrize("computed", [False, True])
def test_elementwise_operators_of_ml_keep_their_inputs_shape(kind: str, is_inner: bool, computed: bool) -> None:
    """As ONNX Runtime makes them; also in a subgraph."""
    attributes, dtype = ML[kind]
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    node = helper.make_node(kind.split()[0], ["x"], ["s"], domain="ai.onnx.ml", **attributes)
    made = helper.make_node("Identity", ["s"], ["t"])
    of = TensorProto.FLOAT if node.op_type in ("Scaler", "Normalizer") else helper.np_dtype_to_tensor_dtype(x.dtype)
    out = helper.make_tensor_value_info("t", of, None)
    nodes = [node, made]
    if is_inner:
        body = helper.make_graph(nodes, "body", [], [out])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
        out = helper.make_tensor_value_info("y", of, None)
    given = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), ["n", 3])]
    given += [helper.make_tensor_value_info("c", TensorProto.BOOL, [])] if is_inner else []
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    proto = helper.make_model(helper.make_graph(nodes, "g", given, [out]), opset_imports=opsets, ir_version=8)
    opened = open_graph(load(proto))
    shapes = infer_shapes(opened, computed=computed)
    scope = opened.scopes[1 if is_inner else 0]
    found = [(shapes.shape(each), shapes.data_type(each)) for one in scope.graph.nodes for each in one.outputs]
    feeds = {"x": x, "c": np.array(True)} if is_inner else {"x": x}
    (run,) = Session(proto.SerializeToString()).run(feeds).values()
    assert run.shape == x.shape
    assert found == [((None, 3), helper.np_dtype_to_tensor_dtype(run.dtype))] * 2
