"""Operators without a rule, and any of strings: computed by ONNX Runtime, one node at a time, without a derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from onnxcomp.runtime.session import Session
from onnxcomp.training.torch_graph.rule import Call, TorchRule
from onnxcomp.training.torch_graph.values import to_numpy, to_torch

FOREIGN_DOMAINS = {"": 28, "ai.onnx.ml": 5, "com.microsoft": 1}
"""Domains that ONNX Runtime brings operators for, and the versions of them to name beside the node's own."""
IR_VERSION = 10


def foreign_rule(node: NodeProto) -> TorchRule:
    """How ONNX Runtime computes the operator."""
    return TorchRule(by_onnxruntime, is_discrete=True)


def by_onnxruntime(call: Call, *inputs: Any) -> Any:
    """The node's outputs from a session of the node alone."""
    arrays = [to_numpy(each, kind) for each, kind in zip(inputs, call.kinds, strict=True)]
    types = tuple(_type_of(each).SerializeToString() for each in arrays)
    if types not in call.kept:
        call.kept[types] = Session(_alone(call, types).SerializeToString())
    feeds = {f"i{index}": each for index, each in enumerate(arrays) if each is not None}
    made = call.kept[types].run(feeds)
    return tuple(to_torch(made.get(f"o{index}"), call.device) for index in range(call.outputs))


def _alone(call: Call, types: Sequence[bytes]) -> ModelProto:
    node = NodeProto()
    node.CopyFrom(call.node)
    inputs = [ValueInfoProto(name=f"i{index}") for index in range(len(types))]
    for info, stated in zip(inputs, types, strict=True):
        info.type.ParseFromString(stated)
    present = [each for each in inputs if each.type.WhichOneof("value")]
    del node.input[:], node.output[:]
    node.input.extend(each.name if each in present else "" for each in inputs)
    node.output.extend(f"o{index}" if name else "" for index, name in enumerate(call.node.output))
    outputs = [ValueInfoProto(name=each) for each in node.output if each]
    graph = helper.make_graph([node], "alone", present, outputs)
    domains = {"": 21, call.domain: call.opset}
    return helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid(*each) for each in domains.items()]
    )


def _type_of(value: Any) -> TypeProto:
    """The ONNX type of an array with unknown dimensions, of a list of arrays, of nothing."""
    if value is None:
        return TypeProto()
    if isinstance(value, list):
        return helper.make_sequence_type_proto(_type_of(value[0] if value else np.zeros(0, np.float32)))
    kind = TensorProto.STRING if value.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_type_proto(kind, [None] * value.ndim)


def holds_strings(value: Any) -> bool:
    """Whether a value is of strings, which torch does not have."""
    if isinstance(value, list):
        return any(map(holds_strings, value))
    return value is not None and not isinstance(value, torch.Tensor)
