"""The element type of every tensor, where onnx's inference, the operators' schemas or ONNX Runtime itself say it.

onnx infers nothing behind an operator that it does not define. There the types follow from the next operator's type
variables, and for ONNX Runtime's own operators from asking it: a model of one node is opened, and says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcomp.graph.infer.op_schemas import FLOAT, ports, schema_of, type_name
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Node, Variable
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.graph.ir.writer import node_proto

# What generates values of a type that an attribute states: operator -> attribute.
GENERATED = {
    "Cast": "to", "ConstantOfShape": "value", "EyeLike": "dtype", "Bernoulli": "dtype", "RandomNormal": "dtype",
    "RandomUniform": "dtype", "RandomNormalLike": "dtype", "RandomUniformLike": "dtype",
    "HannWindow": "output_datatype", "HammingWindow": "output_datatype", "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}  # fmt: skip
MOST_SETTINGS = 64  # elements
SWEEPS = 4  # over all scopes: types cross the borders of nested subgraphs one after another

Ask = Callable[[ModelProto], "tuple[str, ...] | None"]
"""The types of a model's outputs as ONNX Runtime finds them, None where it does not open the model."""


class ElementTypes:
    """The element types of a graph's tensors; ``ask`` opens small models on the target."""

    def __init__(self, graph: Graph, shapes: Shapes, ask: Ask) -> None:
        self._graph = graph
        self._shapes = shapes
        self._ask = ask
        self._types: dict[Any, int] = {}
        functions, local = function_scopes(graph), local_functions(graph)
        for _ in range(SWEEPS):
            known = len(self._types)
            for scope in graph.scopes:
                for node in () if scope in functions else scope.graph.nodes:
                    if (node.domain or "", node.op) not in local:
                        self._fill(node, scope)
            if len(self._types) == known:
                break

    def of(self, tensor: Any) -> int:
        """The element type; 0 where it is not known or the value is no tensor."""
        found = self._types.get(tensor) or self._shapes.data_type(tensor)
        return found or _stated(tensor)

    def loads(self, node: Node, scope: Scope, tensors: frozenset[Any], data_type: int) -> bool:
        """Whether the target opens the node, alone, with these tensors in another type, and onnx infers them so.

        A schema may promise what the operator's own function or inference denies (MeanVarianceNormalization,
        LinearAttention); what onnx cannot infer of the node as it is says nothing.
        """
        before, after = self._alone(node, scope), self._alone(node, scope, tensors, data_type)
        if before is None or after is None or self._ask(after) is None:
            return False
        old, new = _inferred(before), _inferred(after)
        if old is None:
            return True
        named = [out for out in node.outputs if out.name]
        expected = [data_type if out in tensors else self.of(out) for out in named]
        return new is not None and all(not one or one == other for one, other in zip(new, expected, strict=True))

    def written(self, node: Node, scope: Scope, data_type: int) -> list[Any] | None:
        """The outputs that take another type when all float inputs do; None where the node does not load so."""
        floats = frozenset(each for each in node.inputs if each.name and self.of(each) == FLOAT)
        before, after = self._asked(node, scope), self._asked(node, scope, floats, data_type)
        if before is None or after is None or not floats:
            return None
        named = [out for out in node.outputs if out.name]
        return [out for out, old, new in zip(named, before, after, strict=True) if old != new]

    def _fill(self, node: Node, scope: Scope) -> None:
        """Note what follows from the node for those of its tensors whose types are not known."""
        unknown = [out for out in node.outputs if out.name and not self.of(out)]
        if is_onnx(node, "If"):
            for body in subgraphs_of(node):
                for out, inner in zip(node.outputs, body.outputs, strict=False):
                    self._note(out, self.of(inner))
            return
        schema = schema_of(node, scope.opset)
        if schema is None:
            if unknown and not subgraphs_of(node):
                self._fill_asked(node, scope)
            return
        bound: dict[str, int] = {}
        given = ports(node, schema)
        for each in given:
            bound[each.kind] = bound.get(each.kind) or self.of(each.tensor)
        for each in given:
            fixed = FLOAT if each.kind == type_name(FLOAT) else 0
            if each.is_input and isinstance(each.tensor, Variable) and not each.tensor.inputs:
                continue  # what comes from outside says its own type
            if is_onnx(node) and not each.is_input and node.op in GENERATED:
                fixed = _generated(node)
                self._note(each.tensor, fixed)
                continue
            self._note(each.tensor, fixed or bound[each.kind])

    def _fill_asked(self, node: Node, scope: Scope) -> None:
        found = self._asked(node, scope)
        for out, kind in zip([out for out in node.outputs if out.name], found or (), strict=bool(found)):
            self._note(out, _data_type(kind))

    def _note(self, tensor: Any, data_type: int) -> None:
        if data_type and tensor.name and not self.of(tensor):
            self._types[tensor] = data_type

    def _asked(
        self, node: Node, scope: Scope, tensors: frozenset[Any] = frozenset(), data_type: int = 0
    ) -> tuple[str, ...] | None:
        """The output types of a model of this node alone; None where it does not open or types are not known."""
        model = self._alone(node, scope, tensors, data_type)
        return None if model is None else self._ask(model)

    def _alone(
        self, node: Node, scope: Scope, tensors: frozenset[Any] = frozenset(), data_type: int = 0
    ) -> ModelProto | None:
        """A model of this node alone, in which ``tensors`` have another type; None where a type is not known."""
        proto = NodeProto()
        proto.CopyFrom(node_proto(self._graph, node))
        proto.name, proto.doc_string = "", ""
        del proto.input[:], proto.output[:]
        inputs: dict[str, ValueInfoProto] = {}
        held: dict[str, TensorProto] = {}
        numbers = {tensor: index for index, tensor in enumerate(node.inputs)}
        for tensor in node.inputs:
            name = f"i{numbers[tensor]}" if tensor.name else ""
            proto.input.append(name)
            kind = data_type if tensor in tensors else self.of(tensor)
            if name and not kind:
                return None
            if name and _is_setting(tensor):
                held[name] = numpy_helper.from_array(tensor.values, name)
            elif name:
                inputs[name] = self._info(name, tensor, kind)
        proto.output.extend(f"o{index}" if each.name else "" for index, each in enumerate(node.outputs))
        _state_generated(proto, node, tensors, data_type)
        graph = helper.make_graph([proto], "one", list(inputs.values()), [], list(held.values()))
        for name in proto.output:
            if name:
                graph.output.add(name=name)
        imports = {**self._graph.opset_imports, "": scope.opset}
        imports.pop("ai.onnx", None)
        opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=max(4, self._graph.ir_version))

    def _info(self, name: str, tensor: Any, data_type: int) -> Any:
        shape = self._shapes.shape(tensor)
        dims = None if shape is None else [f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(shape)]
        return helper.make_tensor_value_info(name, data_type, dims)


def _is_setting(tensor: Any) -> bool:
    """Whether it is a constant that says what to do, such as axes: some providers refuse to have it fed."""
    return isinstance(tensor, Constant) and tensor.size <= MOST_SETTINGS and np.dtype(tensor.dtype).kind in "iub"


def _inferred(model: ModelProto) -> list[int] | None:
    """The element types that onnx infers of the model's outputs, 0 where it does not; None where it finds a fault."""
    try:
        found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    return [each.type.tensor_type.elem_type for each in found.graph.output]


def _state_generated(proto: NodeProto, node: Node, tensors: frozenset[Any], data_type: int) -> None:
    """Let the node generate the other type where its output is to be of it."""
    name = GENERATED.get(node.op) if is_onnx(node) else None
    if name is None or not any(out in tensors for out in node.outputs):
        return
    kept = [each for each in proto.attribute if each.name != name]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    if name == "value":
        tensor = helper.make_tensor("", data_type, [1], [0.0])
        proto.attribute.append(helper.make_attribute("value", tensor))
    else:
        proto.attribute.append(helper.make_attribute(name, data_type))


def _generated(node: Node) -> int:
    """The type that a generating node states, 0 where it takes its input's."""
    name = GENERATED[node.op]
    value = node.attrs.get(name)
    if name == "value":
        return FLOAT if value is None else int(value.t.data_type)
    if value is None and node.op in ("EyeLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike"):
        return 0
    return FLOAT if value is None else int(value)


def _stated(tensor: Any) -> int:
    """The type that the model states of a tensor."""
    dtype = getattr(tensor, "dtype", None)
    return 0 if dtype is None else int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _data_type(kind: str) -> int:
    """ "tensor(float16)" -> 10; 0 for what is no tensor."""
    if not kind.startswith("tensor("):
        return 0
    return int(TensorProto.DataType.Value(kind.removeprefix("tensor(").removesuffix(")").upper()))


def function_scopes(graph: Graph) -> list[Scope]:
    """The scopes of local functions, and those inside them: nothing states the types of their tensors."""
    found: list[Scope] = []
    for scope in graph.scopes:  # outer ones first
        if scope.kind == "function" or scope.parent in found:
            found.append(scope)
    return found


def local_functions(graph: Graph) -> set[tuple[str, str]]:
    """Domain and name of every function that the model brings along."""
    return {(each.domain, each.name) for each in graph.model.proto.functions}
