"""A chain of matrix products, for tests of what is tried and kept."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES = 8


def chain(length: int = 3) -> onnx.ModelProto:
    """x times one matrix after another, each near one that turns the features round."""
    rng = np.random.default_rng(0)
    turn = np.roll(np.eye(FEATURES), 1, axis=1)
    values = [turn + 0.1 * rng.normal(size=(FEATURES, FEATURES)) for _ in range(length)]
    tensors = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("MatMul", [tensors[i], f"w{i}"], [tensors[i + 1]], name=f"n{i}") for i in range(length)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", FEATURES])],
        [numpy_helper.from_array(each.astype(np.float32), f"w{i}") for i, each in enumerate(values)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
