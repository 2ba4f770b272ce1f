"""A chain of products with three weights, with all that may stand between them, and kept in any way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.model import Model, load

RNG = np.random.default_rng(8)
Arrays = Mapping[str, np.ndarray]
Storing = Callable[[ModelProto, Arrays], None]

WEIGHTS: dict[str, np.ndarray] = {
    "u": (RNG.standard_normal((8, 8)) / 2).astype(np.float32),
    "w": RNG.standard_normal((8, 6)).astype(np.float32),
    "v": RNG.standard_normal((6, 5)).astype(np.float32),
}
CHANGED = {name: np.round(4 * each) / np.float32(4) + np.float32(1e-5) for name, each in WEIGHTS.items()}
START = "g (float[N,8] x) => (float[N,5] y) { h = MatMul(x, u) r = Relu(h)"
CHAIN = f"{START} a = MatMul(r, w) b = Relu(a) y = MatMul(b, v) }}"
TWICE = f"{START} s = MatMul(r, u) t = Relu(s) a = MatMul(t, w) y = MatMul(a, v) }}"
BRANCHES = f"""{START} c = ReduceMax<keepdims = 0>(r) k = Greater(c, zero) a = MatMul(r, w)
    y = If(k) <then_branch = yes () => (float[N,5] p) {{ p = MatMul(a, v) }},
               else_branch = no () => (float[N,5] q) {{ q = MatMul(a, v) }}> }}"""
LOOP = f"""{START} a = MatMul(r, w)
    e = Loop(three, , r) <body = step (int64 i, bool go, float[N,8] d) => (bool on, float[N,8] f)
        {{ on = Identity(go) f0 = MatMul(d, u) f = Tanh(f0) }}> o = MatMul(e, w) n = Add(a, o) y = MatMul(n, v) }}"""
RESHAPED = f"""{START} m = Shape(r) rows = Slice(m, at0, at1) l = Concat<axis = 0>(rows, tail) g3 = Reshape(r, l)
    g2 = Reshape(g3, m) a = MatMul(g2, w) b = Relu(a) y = MatMul(b, v) }}"""
CONSTANTS = {"zero": np.float32(0), "three": np.int64(3), "at0": np.array([0]), "at1": np.array([1]),
             "tail": np.array([2, 4])}  # fmt: skip


def plainly(proto: ModelProto, values: Arrays) -> None:
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())


def as_nodes(proto: ModelProto, values: Arrays) -> None:
    """Each weight in a Constant node at the start of the graph."""
    made = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(each)) for name, each in values.items()
    ]
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def as_inputs(proto: ModelProto, values: Arrays) -> None:
    """Each weight stated as an input, too, as IR versions before 4 want it."""
    proto.ir_version, proto.opset_import[0].version = 3, 13
    plainly(proto, values)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def behind_casts(proto: ModelProto, values: Arrays) -> None:
    """Each weight as float16 behind a Cast."""
    plainly(proto, {name: each.astype(np.float16) for name, each in values.items()})
    made = [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in values]
    for node in proto.graph.node:
        node.input[:] = [f"{each}_wide" if each in values else each for each in node.input]
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def sparsely(proto: ModelProto, values: Arrays) -> None:
    """``v`` as a sparse initializer."""
    plainly(proto, {name: each for name, each in values.items() if name != "v"})
    flat = np.flatnonzero(values["v"])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(values["v"].ravel()[flat], "v"),
            numpy_helper.from_array(flat.astype(np.int64), "v_at"),
            values["v"].shape,
        )
    )


def in_branches(proto: ModelProto, values: Arrays) -> None:
    """``v`` as an initializer of each branch."""
    plainly(proto, {name: each for name, each in values.items() if name != "v"})
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "If":
                attribute.g.initializer.append(numpy_helper.from_array(values["v"], "v"))


def model_of(text: str, values: Arrays = WEIGHTS, storing: Storing = plainly) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    read = {name for node in proto.graph.node for name in node.input} | set(values)
    plainly(proto, {name: np.asarray(each) for name, each in CONSTANTS.items() if name in read})
    storing(proto, values)
    return load(proto)


def function_model(v: np.ndarray) -> Model:
    """``v`` stands in a local function."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N,8] x) => (float[N,5] y)'
        " { a = MatMul(x, w) y = own.last(a) }"
        '<domain: "own", opset_import: ["" : 17]> last (a) => (y) { y = MatMul(a, v) }'
    )
    proto.functions[0].node.insert(0, helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(v)))
    plainly(proto, {"w": WEIGHTS["w"]})
    return load(proto)
