"""A graph as a small model for shape inference: every node and type, but no large data."""

from __future__ import annotations

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.writer import ProtoWriter, copy_fields, write_opsets

SKELETON_BYTES = 4096  # of the tensors whose values shape inference may want


def skeleton(graph: Graph) -> ModelProto:
    """The graph as a model for shape inference: large tensors are named with type and shape, without data."""
    source = graph.model.proto
    proto = ModelProto()
    left = {"graph", "functions", "opset_import", "ir_version", "metadata_props", "training_info"}
    copy_fields(source, proto, left)
    proto.ir_version = graph.ir_version
    write_opsets(graph, proto)
    _SkeletonWriter(graph).write_graph(graph.main, proto.graph)
    for scope in graph.scopes:
        if scope.kind == "function":
            _SkeletonWriter(graph).write_function(scope, proto.functions.add())
    return proto


class _SkeletonWriter(ProtoWriter):
    """Writes large tensors as references to nowhere: shape inference asks for their type and shape only."""

    def _constant_node(self, constant: Constant) -> NodeProto:
        if constant.nbytes <= SKELETON_BYTES:
            return super()._constant_node(constant)
        proto = NodeProto(op_type="Constant", output=[constant.name])
        proto.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(self._tensor(constant, ""))
        return proto

    def _tensor(self, constant: Constant, name: str) -> TensorProto:
        if constant.nbytes <= SKELETON_BYTES:
            return super()._tensor(constant, name)
        tensor = TensorProto(name=name, dims=constant.shape, data_type=constant.data_type)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="nowhere")
        return tensor
