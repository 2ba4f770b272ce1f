"""Models around one matrix, kept wherever a model can keep it, and matrices of every kind that can be stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]

SIDE, WIDTH = 96, 140
PLACES = ("main", "node", "branch", "outside a branch", "loop", "function")
IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 13: 7, 17: 8, 21: 10, 23: 11, 26: 13, 28: 14}
KINDS = (
    "2 levels", "3 levels", "5 levels", "8 levels", "16 levels", "32 levels", "64 levels", "128 levels", "200 levels",
    "600 levels", "zeros", "few zeros", "zeros and 16 levels", "half zeros and 16 levels", "tail", "one value", "half",
)  # fmt: skip


def matrix(kind: str, shape: tuple[int, ...] = (SIDE, WIDTH), seed: int = 0) -> Array:
    """A float32 array with the structure that its kind names."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape).astype(np.float32)
    if kind.endswith("levels"):
        number = int(kind.split()[-2])
        values = rng.normal(size=number).astype(np.float32)[rng.integers(0, number, shape)]
    shares = {"zeros": 0.9, "few zeros": 0.3, "half zeros": 0.5}
    share = shares.get(kind.split(" and ")[0], 0.0)
    values[rng.random(shape) < share] = 0
    match kind:
        case "tail":
            return (np.rint(np.clip(rng.normal(size=shape) * 7, -31, 31)) / 32).astype(np.float32)
        case "one value":
            return np.full(shape, 0.5, np.float32)
        case "half":
            return values.astype(np.float16).astype(np.float32)
    return values


def model_with(weight: Array, *, opset: int = 17, place: str = "main") -> ModelProto:
    """x (n, rows) @ weight -> y, the weight kept in that place; a branch is taken where the input c is true."""
    tensor, other = numpy_helper.from_array(weight, "W"), numpy_helper.from_array(weight[::-1].copy(), "V")
    rows, columns = weight.shape
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])
    shape = ["turns", "n", columns] if place == "loop" else ["n", columns]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    product = helper.make_node("MatMul", ["x", "W"], ["y"], name="product")
    constant = helper.make_node("Constant", [], ["W"], value=tensor)
    imports, functions = [helper.make_opsetid("", opset)], []
    match place:
        case "main":
            graph = helper.make_graph([product], "g", [x], [y], [tensor])
        case "node":
            graph = helper.make_graph([constant, product], "g", [x], [y])
        case "branch" | "outside a branch":
            outside = place != "branch"
            one = _body("one", [helper.make_node("MatMul", ["x", "W"], ["a"])], "a", [] if outside else [tensor])
            two = _body("two", [helper.make_node("MatMul", ["x", "V"], ["b"])], "b", [other])
            node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=one, else_branch=two)
            graph = helper.make_graph([node], "g", [x, c], [y], [tensor] if outside else [])
        case "loop":
            graph = _loop(tensor, x, y)
        case _:
            body = [constant, product]
            functions = [helper.make_function("local", "Product", ["x"], ["y"], body, imports)]
            calls = [helper.make_node("Product", ["x"], [each], domain="local") for each in ("p", "q")]
            graph = helper.make_graph([*calls, helper.make_node("Add", ["p", "q"], ["y"])], "g", [x], [y])
            imports = [*imports, helper.make_opsetid("local", 1)]
    least = 3 if place == "main" else 8 if place == "function" else 4
    version = max(IR_VERSIONS[opset], least)
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=version)


def _body(name: str, nodes: list[NodeProto], output: str, initializers: list[TensorProto]) -> GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None])
    return helper.make_graph(nodes, name, [], [info], initializers)


def _loop(tensor: TensorProto, x: Any, y: Any) -> GraphProto:
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "W"], ["a"]), helper.make_node("Identity", ["again"], ["on"])]
    inputs = [info("i", TensorProto.INT64, []), info("again", TensorProto.BOOL, [])]
    outputs = [info("on", TensorProto.BOOL, []), info("a", TensorProto.FLOAT, [None, None])]
    body = helper.make_graph(nodes, "body", inputs, outputs, [tensor])
    node = helper.make_node("Loop", ["count", "go"], ["y"], name="loop", body=body)
    limits = [numpy_helper.from_array(np.array(2), "count"), numpy_helper.from_array(np.array(True), "go")]
    return helper.make_graph([node], "g", [x], [y], limits)


def feeds_of(proto: ModelProto) -> dict[str, Array]:
    x = np.random.default_rng(1).normal(size=(3, SIDE)).astype(np.float32)
    return {"x": x, "c": np.array(True)} if len(proto.graph.input) > 1 else {"x": x}
