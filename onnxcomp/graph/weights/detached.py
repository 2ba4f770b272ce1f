"""A model without the data of its weights, which a session gets from memory: other values need no other model.

    w = <values>, c = Constant<values>      ->      w, c: initializers whose data are said to lie elsewhere
                                                    {"w": values, "c": values}

Weights that are stored in fewer bytes (``graph.stored``) are detached as what their decoders make. What stays in the
model is what ONNX Runtime takes from memory for the main graph's initializers only: weights of subgraphs and functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.scopes import Graph
from onnxcomp.graph.ir.writer import ProtoWriter, whole_proto
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.tensors import FLOAT_TYPES, clear_reference, external_bytes, is_external, reference_of, tensors_of

Array = NDArray[Any]

LOCATION = "memory"
LEAST_BYTES = 1024  # of a constant that is no weight, to be worth it
TYPES = FLOAT_TYPES | {
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


@dataclass(frozen=True)
class Detached:
    """proto: the model, whose initializers called as in ``data`` have no data. weights: which of them are weights, in
    the order of the main graph's constants; they are called by their keys."""

    proto: ModelProto
    data: Mapping[str, Array]
    weights: tuple[str, ...]

    def fed(self) -> ModelProto:
        """The model with its weights as inputs instead, so that one session takes any values of them."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        own = set(self.weights)
        infos = [
            helper.make_tensor_value_info(each.name, each.data_type, each.dims)
            for each in proto.graph.initializer
            if each.name in own
        ]
        left = [each for each in proto.graph.initializer if each.name not in own]
        inputs = [each for each in proto.graph.input if each.name not in own]
        del proto.graph.initializer[:], proto.graph.input[:]
        proto.graph.initializer.extend(left)
        proto.graph.input.extend([*inputs, *infos])
        return proto


def detach(model: Model) -> Detached:
    """The model and its data apart."""
    graph = open_plain(model)
    graph.stored = None  # decoders stay out of sight, so that their weights are written plain
    found = tuple(each.name for each in weights(graph) if each.scope is graph.main)
    apart = {each.name: each for each in _detachable(graph, frozenset(found))}
    for constant in apart.values():
        constant.as_node = False
        constant.origin = None  # a sparse tensor is dense in memory
    proto = whole_proto(graph, _DetachingWriter(graph, apart))
    for tensor in tensors_of(proto):
        if is_external(tensor) and reference_of(tensor)["location"] != LOCATION:
            content = external_bytes(tensor, model.folder).tobytes()
            clear_reference(tensor)
            tensor.raw_data = content
    return Detached(proto, {name: np.asarray(each.values, order="C") for name, each in apart.items()}, found)


def _detachable(graph: Graph, names: frozenset[str]) -> list[Constant]:
    """The constants of the main graph that sessions can be given: the weights of these names, and others that are
    large. Of what no node reads ONNX Runtime knows nothing."""
    outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}
    can_be = [each for each in graph.main.constants if each.data_type in TYPES and each.outputs]
    return [each for each in can_be if id(each) not in outputs and (each.name in names or each.nbytes >= LEAST_BYTES)]


class _DetachingWriter(ProtoWriter):
    """Writes some constants as references that nobody follows."""

    def __init__(self, graph: Graph, apart: Mapping[str, Constant]) -> None:
        super().__init__(graph)
        self._apart = apart

    def _tensor(self, constant: Constant, name: str) -> TensorProto:
        if self._apart.get(constant.name) is not constant:
            return super()._tensor(constant, name)
        tensor = TensorProto(name=name, dims=constant.shape, data_type=constant.data_type)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=LOCATION)
        return tensor
