"""A weight and the nodes that read it, by themselves: all that a pass needs which changes weights one by one.

It is small beside the model, can be sent to another process or machine, and can be a sample of itself: some of its
output channels stand for all of them where an error is to be known and no values. Its values are read-only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxcomp.graph.ir.nodes import Array, Node
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.ir.writer import attributes_of
from onnxcomp.graph.weights.roles import SEE_THROUGH, Weight, weights
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.tensors import Scratch

LEAST_CHANNELS = 16  # of a sample
OWN = "weight"


@dataclass(frozen=True)
class LoneWeight:
    """name: by which the whole model knows the weight. structure: a serialized model of its readers, in which it has no
    values. channel_axis: of its outputs, None where its readers do not agree on one. whole_size: of values, of the
    weight that this one is a sample of."""

    name: str
    structure: bytes
    values: Array
    encoding: Encoding | None
    channel_axis: int | None
    whole_size: int

    @classmethod
    def of(cls, weight: Weight) -> LoneWeight:
        """The weight of an open graph by itself."""
        structure = _Readers(weight).model().SerializeToString(deterministic=True)
        return cls(weight.name, structure, weight.values, weight.encoding, weight.channel_axis, weight.size)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.values.shape)

    @property
    def share(self) -> float:
        """Of the whole weight's values, those that are here."""
        return self.size / self.whole_size

    def opened(self) -> Weight:
        """The weight in a graph of its own, to be changed in memory."""
        model = Model(ModelProto.FromString(self.structure), scratch=Scratch(spills=False))
        graph = open_graph(model)
        weight = next(each for each in weights(graph) if each.name == OWN)
        weight.name, weight.keeps_codes = self.name, True
        values = self.values.view()
        values.flags.writeable = False
        weight.tensor.values = values
        if self.encoding is not None:
            graph.encodings[self.name] = self.encoding
        return weight

    def sample(self, most: int) -> LoneWeight:
        """About ``most`` of the values, in whole channels spread evenly; itself where it has no more, or where it has
        levels already, which stand for all channels."""
        axis, shape = self.channel_axis, self.values.shape
        if self.size <= most or axis is None or self.encoding is not None:
            return self
        proto = ModelProto.FromString(self.structure)
        groups = _groups(proto)
        count = max(LEAST_CHANNELS, most * shape[axis] // self.size)
        count = -(-count // groups) * groups  # as many of each group, so that groups stay what they are
        if count >= shape[axis]:
            return self
        places = (2 * np.arange(count) + 1) * shape[axis] // (2 * count)
        taken = np.ascontiguousarray(np.take(self.values, places, axis=axis))
        proto.graph.initializer[0].dims[axis] = count
        return replace(self, structure=proto.SerializeToString(deterministic=True), values=taken)


def _groups(proto: ModelProto) -> int:
    """Of the convolutions among the nodes, or 1; the least common multiple where they differ."""
    found = [each.i for node in proto.graph.node for each in node.attribute if each.name == "group"]
    return math.lcm(*filter(None, found))


class _Readers:
    """Writes the nodes that read a weight, and those that change its form before; what else these read are inputs."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._names: dict[int, str] = {id(weight.tensor): OWN}
        self._kept: list[Any] = []  # tensors, whose ids are in use as long as they live
        self._seen: set[int] = set()

    def model(self) -> ModelProto:
        """The readers as a model, in which the weight is an initializer without data."""
        weight, graph = self._weight, self._weight.graph
        proto = ModelProto(ir_version=graph.ir_version)
        versions = {each.domain: each.version for each in getattr(weight.scope.origin, "opset_import", ())}
        for domain, version in (graph.opset_imports | versions).items():
            proto.opset_import.add(domain=domain, version=version)
        proto.graph.name = "weight"
        proto.graph.initializer.add(name=OWN, dims=weight.shape, data_type=weight.tensor.data_type)
        for node in self._on_the_way(weight.tensor):
            proto.graph.node.append(self._written(node))
        for tensor in self._kept:
            if tensor.inputs and graph.is_output(tensor):
                proto.graph.output.add(name=self._names[id(tensor)])
        return proto

    def _on_the_way(self, tensor: Any) -> Iterator[Node]:
        for node in list(tensor.outputs):
            if id(node) in self._seen:
                continue
            self._seen.add(id(node))
            yield node
            changes_form = is_onnx(node, *SEE_THROUGH) and node.inputs[0] is tensor
            if changes_form and not self._weight.graph.is_output(node.outputs[0]):
                yield from self._on_the_way(node.outputs[0])

    def _written(self, node: Node) -> NodeProto:
        proto = NodeProto(op_type=node.op, name=node.name or "", domain=node.domain or "")
        proto.input.extend(self._name(each) for each in node.inputs)
        proto.output.extend(self._name(each) for each in node.outputs)
        proto.attribute.extend(attributes_of(node))
        return proto

    def _name(self, tensor: Any) -> str:
        if not tensor.name:
            return ""
        if id(tensor) not in self._names:
            self._kept.append(tensor)
            self._names[id(tensor)] = f"t{len(self._kept)}"
        return self._names[id(tensor)]
