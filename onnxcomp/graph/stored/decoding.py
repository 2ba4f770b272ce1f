"""Know what ``store-compact`` wrote, and compute what it decodes to in numpy exactly as ONNX defines it.

A decoder is known by what ``graph.storage.decoders`` writes: its nodes have no names and the forms of
``decoder_steps``, what they read is called ``_0``, ``_1``, ... Nodes of the user's that compute from constants are left
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper

from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.scopes import Graph, Scope
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import node_proto, tensor_proto
from onnxcomp.graph.stored.decoder_steps import INTERNED_BYTES, TYPES, WRITTEN_NAME, step_of
from onnxcomp.numerics.encodings.expression import Array

KEPT_BYTES = 2**21  # tables up to this size are kept for the next weight


@dataclass(frozen=True, eq=False)
class Decoder:
    """The last node of a decoder, where it stands, and what the decoder computes."""

    graph: Graph
    scope: Scope
    node: Node
    values: Array

    @property
    def key(self) -> str:
        """The name by which the whole model knows the tensor."""
        return self.scope.key(self.node.outputs[0].name)

    def alone(self) -> ModelProto:
        """A model without inputs whose one output is what the decoder computes."""
        nodes, constants = above(self.node)
        output = self.node.outputs[0]
        kind = helper.np_dtype_to_tensor_dtype(self.values.dtype)
        body = helper.make_graph(
            [node_proto(self.graph, each) for each in ordered(nodes)],
            "decoder",
            [],
            [helper.make_tensor_value_info(output.name, kind, self.values.shape)],
            [tensor_proto(self.graph, each, each.name) for each in constants],
        )
        imports = [helper.make_opsetid("", self.scope.opset)]
        return helper.make_model(body, opset_imports=imports, ir_version=max(4, self.graph.ir_version))


class Decoders:
    """The tensors of a graph that decoders compute."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[int, bool] = {}
        self._kept: dict[int, Array] = {}
        self._outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}

    def computed(self) -> Iterator[Decoder]:
        """All decoders with their values; left out are those that hold other values than any decoder does."""
        for scope, node in self.outputs():
            values = self.value_or_none(node.outputs[0])
            if values is not None:
                yield Decoder(self.graph, scope, node, values)

    def outputs(self) -> Iterator[tuple[Scope, Node]]:
        """The last nodes of all decoders, with their scopes: something else than a decoder reads their output."""
        for scope, node in self.graph.nodes():
            if self.is_decoder(node):
                output = node.outputs[0]
                if id(output) in self._outputs or any(not self._is_step_on(each, output) for each in output.outputs):
                    yield scope, node

    def is_decoder(self, node: gs.Node) -> bool:
        """Whether the node computes a step of a decoder: all its inputs are a decoder's constants or such steps."""
        if id(node) not in self._known:
            parts = node.inputs
            is_written = any(WRITTEN_NAME.fullmatch(each.name) for each in parts)
            self._known[id(node)] = step_of(node) is not None and is_written and all(map(self._is_part, parts))
        return self._known[id(node)]

    def _is_step_on(self, node: gs.Node, tensor: Any) -> bool:
        return WRITTEN_NAME.fullmatch(tensor.name) is not None and self.is_decoder(node)

    def _is_part(self, tensor: Any) -> bool:
        is_written = WRITTEN_NAME.fullmatch(tensor.name) is not None
        if isinstance(tensor, Constant):  # small ones may have been merged with the user's
            return tensor.data_type in TYPES and (is_written or tensor.nbytes <= INTERNED_BYTES)
        return is_written and len(tensor.inputs) == 1 and self.is_decoder(tensor.inputs[0])

    def value(self, tensor: Any) -> Array:
        """The values of a tensor that a decoder computes. Raises ValueError where its constants are no decoder's."""
        found = self.value_or_none(tensor)
        if found is None:
            raise ValueError(f"{tensor.name}: its constants are not those of a decoder")
        return found

    def value_or_none(self, tensor: Any) -> Array | None:
        """The values of a tensor that a decoder computes; None where its constants are no decoder's."""
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # an overflow to infinity is what is meant
                return self._value(tensor)
        except (ValueError, IndexError, TypeError):
            return None

    def _value(self, tensor: Any) -> Array:
        if isinstance(tensor, Constant):
            return np.asarray(tensor.values)
        if id(tensor) in self._kept:
            return self._kept[id(tensor)]
        step = step_of(tensor.inputs[0])
        assert step is not None
        result = np.asarray(step(*(self._value(each) for each in tensor.inputs[0].inputs)))
        if result.nbytes <= KEPT_BYTES and len(tensor.outputs) > 1:
            self._kept[id(tensor)] = result
        return result


def above(node: Node) -> tuple[frozenset[Node], set[Constant]]:
    """The nodes and constants that a decoder's last node is computed from, itself included."""
    nodes: set[Node] = set()
    constants: set[Constant] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        nodes.add(current)
        for tensor in current.inputs:
            if isinstance(tensor, Constant):
                constants.add(tensor)
            else:
                waiting.extend(each for each in tensor.inputs if each not in nodes)
    return frozenset(nodes), constants
