"""Raise a model's opset, node by node, through onnx.version_converter.

    opset 11: Squeeze<axes=[1]>(x)      ->      opset 13: Squeeze(x, axes)

The converter takes whole models through an IR of its own that drops metadata, functions, sparse tensors and
external data. So each node whose operator changed is handed to it alone, with what is known of its inputs;
every other node, and all tensors, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Constant, Node, Variable
from onnxcomp.graph.ir.query import has_references, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope, attribute_value, subgraphs_of

SMALL_BYTES = 4096  # constants up to this size are shown to the converter, which reads axes, scales and the like
# What version_converter raises: its C++ assertions arrive as RuntimeError or as errors of their own.
CONVERTER_ERRORS = (
    RuntimeError,
    ValueError,
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.version_converter.ConvertError,
)
# Their meaning did not change between these versions, only the types that they take.
CARRY_GRAPHS = {"If": 1, "Loop": 1, "Scan": 9}


@dataclass(frozen=True)
class _Converted:
    """What takes the place of one node; its inputs are called i0, i1, ... and its outputs o0, o1, ..."""

    scope: Scope
    node: Node
    body: GraphProto


def raise_opset(graph: Graph, opset: int) -> str | None:
    """Bring the main graph and its subgraphs to at least ``opset``; tensors and nodes keep their names.

    Gives the reason, having done nothing, where that cannot be. Nodes of other domains stay; local functions
    must be at ``opset`` already.
    """
    if graph.opset >= opset:
        return None
    if graph.opset < 1:
        return "the model imports no default operator set"
    if any(scope.kind == "function" and 0 < scope.opset < opset for scope in graph.scopes):
        return f"a local function is written for an opset below {opset}"
    shapes = infer_shapes(graph)
    converted = []
    for scope, node in graph.nodes():
        if not is_onnx(node):
            continue
        try:
            body = _convert(node, graph.opset, opset, shapes)
        except CONVERTER_ERRORS as error:
            return f"{node.op} {node_key(scope, node)} cannot be raised to opset {opset}: {_first_line(error)}"
        if body is not None:
            converted.append(_Converted(scope, node, body))
    for each in converted:
        _put_in_place(graph, each)
    _state_versions(graph, opset)
    return None


def _convert(node: Node, old: int, new: int, shapes: Shapes) -> GraphProto | None:
    """The nodes that do in ``new`` what the node did in ``old``; None where it can stay as it is.

    Raises one of CONVERTER_ERRORS where there is no way to say it.
    """
    before, after = onnx.defs.get_schema(node.op, old, ""), onnx.defs.get_schema(node.op, new, "")
    if before.since_version == after.since_version and not before.deprecated:
        return None
    if subgraphs_of(node):
        if before.since_version < CARRY_GRAPHS.get(node.op, old + 1):
            raise ValueError("its subgraphs changed their meaning")
        return None
    if has_references(node):
        raise ValueError("its attributes are parameters of a function")
    if _reads_alike(before, after):
        return None
    if node.op == "Hardmax" and old < 13 <= new:
        raise ValueError("the converter overlooks that its axis changed its meaning")
    single = _single(node, old, shapes)
    result = onnx.version_converter.convert_version(single, new).graph
    context = onnx.checker.C.CheckerContext()
    context.opset_imports, context.ir_version = {"": new}, single.ir_version
    for each in result.node:
        _mend(each, node)
        onnx.checker.check_node(each, context)
    return None if _is_same(result, single.graph.node[0]) else result


def _reads_alike(before: onnx.defs.OpSchema, after: onnx.defs.OpSchema) -> bool:
    """Whether the two versions have the same inputs, outputs and attributes with the same defaults.

    They differ in the types that they take, then, or in words. Saves the converter's 8 ms a node.
    """

    def form(schema: onnx.defs.OpSchema) -> object:
        ports = [[(each.name, each.option) for each in side] for side in (schema.inputs, schema.outputs)]
        attributes = {
            name: (each.type, each.required, each.default_value.SerializeToString())
            for name, each in schema.attributes.items()
        }
        return ports, attributes, schema.deprecated

    return form(before) == form(after)


def _single(node: Node, opset: int, shapes: Shapes) -> ModelProto:
    """The node as a model of its own."""
    inputs, initializers = [], []
    names = [f"i{index}" if each.name else "" for index, each in enumerate(node.inputs)]
    for name, tensor in zip(names, node.inputs, strict=True):
        if not name:
            continue
        if isinstance(tensor, Constant) and tensor.nbytes <= SMALL_BYTES:
            initializers.append(numpy_helper.from_array(tensor.values, name))
        else:
            inputs.append(_info(name, tensor, shapes))
    outputs = [f"o{index}" if each.name else "" for index, each in enumerate(node.outputs)]
    infos = [_info(name, each, shapes) for name, each in zip(outputs, node.outputs, strict=True) if name]
    proto = NodeProto(op_type=node.op, input=names, output=outputs)
    for name, value in node.attrs.items():
        proto.attribute.append(value if isinstance(value, onnx.AttributeProto) else helper.make_attribute(name, value))
    graph = helper.make_graph([proto], "single", inputs, infos, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _info(name: str, tensor: Any, shapes: Shapes) -> ValueInfoProto:
    """What is known of the tensor; float where no type is, since the converter asks for one and looks at shapes."""
    shape = shapes.shape(tensor)
    dims = None if shape is None else [f"{name}d{i}" if dim is None else dim for i, dim in enumerate(shape)]
    return helper.make_tensor_value_info(name, shapes.data_type(tensor) or TensorProto.FLOAT, dims)


def _mend(made: NodeProto, node: Node) -> None:
    """State what the converter forgets: before opset 11, resizing took the pixels' corners as their places."""
    if made.op_type == "Resize" and node.op in ("Resize", "Upsample"):
        stated = {each.name for each in made.attribute}
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            if name not in stated:
                made.attribute.append(helper.make_attribute(name, value))


def _is_same(result: GraphProto, node: NodeProto) -> bool:
    if len(result.node) != 1 or result.initializer:
        return False
    made = result.node[0]
    attributes = [sorted(a.SerializeToString() for a in each.attribute) for each in (made, node)]
    same_names = (list(made.input), list(made.output)) == (list(node.input), list(node.output))
    return made.op_type == node.op_type and same_names and attributes[0] == attributes[1]


def _put_in_place(graph: Graph, converted: _Converted) -> None:
    """Rewrite the node, which keeps its name, and add what it needs before and after."""
    scope, node, body = converted.scope, converted.node, converted.body
    base = next((out.name for out in node.outputs if out.name), node.op)
    tensors: dict[str, Any] = {f"i{index}": each for index, each in enumerate(node.inputs)}
    tensors.update({f"o{index}": each for index, each in enumerate(node.outputs)})
    for tensor in body.initializer:
        if tensor.name not in tensors:
            tensors[tensor.name] = graph.constant(scope, f"{base}_opset", numpy_helper.to_array(tensor))
    made = [each for each in body.node if each.op_type != "Constant"]
    for each in body.node:
        if each.op_type == "Constant":
            value = numpy_helper.to_array(each.attribute[0].t)
            tensors[each.output[0]] = graph.constant(scope, f"{base}_opset", value)
    for name in (name for each in made for name in each.output):
        if name and name not in tensors:
            tensors[name] = graph.variable(f"{base}_opset")
    kept = next((each for each in made if each.op_type == node.op), made[-1])
    for each in made:
        inputs = [tensors[name] if name else Variable("") for name in each.input]
        outputs = [tensors[name] if name else Variable("") for name in each.output]
        attrs = {attribute.name: attribute_value(attribute) for attribute in each.attribute}
        if each is kept:
            _rewrite(node, each.op_type, inputs, outputs, attrs)
        else:
            graph.node(scope, each.op_type, inputs, outputs, attrs=attrs, before=node)


def _rewrite(node: Node, op: str, inputs: list[Any], outputs: list[Any], attrs: dict[str, Any]) -> None:
    node.op = op
    node.attrs.clear()
    node.attrs.update(attrs)
    node.inputs.clear()
    node.inputs.extend(inputs)
    node.outputs.clear()
    node.outputs.extend(outputs)


def _state_versions(graph: Graph, opset: int) -> None:
    domain = "" if "" in graph.opset_imports else "ai.onnx"
    graph.opset_imports[domain] = opset
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    graph.ir_version = max(graph.ir_version, needed)
    for scope in graph.scopes:
        if not scope.is_in_function:
            scope.opset = opset
            scope.graph.opset = opset


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]
