"""Local functions of a model, with a weight of their own and a reference to an attribute."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcomp.testing.models.building import FUNCTION_DOMAIN, Builder


def dense_function(b: Builder, depth: int, columns: int) -> onnx.FunctionProto:
    """Add (once a shape) the function (x, w) -> LeakyRelu(x @ w + x @ own, alpha) and return it."""
    name = f"Dense{depth}x{columns}"
    for function in b.state.functions:
        if function.name == name:
            return function
    own = numpy_helper.from_array((b.normal((depth, columns)) * np.float32(depth**-0.5)), "own")
    activation = helper.make_node("LeakyRelu", ["sum"], ["y"])
    reference = onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")
    activation.attribute.append(reference)
    nodes = [
        helper.make_node("Constant", [], ["own"], value=own),
        helper.make_node("MatMul", ["x", "w"], ["left"]),
        helper.make_node("MatMul", ["x", "own"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        activation,
    ]
    function = helper.make_function(
        FUNCTION_DOMAIN,
        name,
        ["x", "w"],
        ["y"],
        nodes,
        [helper.make_opsetid("", b.opset)],
        attributes=["alpha"],
    )
    b.state.functions.append(function)
    return function
