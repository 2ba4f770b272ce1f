"""What is known of shapes does not depend on what the model states beside them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load

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
