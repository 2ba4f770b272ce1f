"""Decode compact storage: what standard operators compute from constants alone becomes a constant again.

W = Reshape(Gather(table, Cast(bytes)), shape)   ->   W = constant
"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.storage.decoding import Decoders
from onnxcomp.graph.weights.roles import constants_by_key
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import same_bits


def expand(model: Model) -> Model:
    """The model with every decoder replaced by the plain tensor that it computes; the model itself if it has none."""
    graph = open_graph(model)
    decoders = Decoders(graph)
    found = list(decoders.outputs())
    if not found:
        return model
    for scope, node in found:
        output = node.outputs[0]
        plain = Constant(output.name, decoders.value(output), graph.model)
        plain.as_node = scope.kind == "function"
        plain.was_used = True
        scope.constants.append(plain)
        graph.replace_reads(output, plain)
        for each in graph.scopes:
            each.graph.outputs = [plain if out is output else out for out in each.graph.outputs]
    return close_graph(graph)


def differing_constants(before: Model, after: Model) -> list[str]:
    """The constants of ``before`` that ``after`` computes by a decoder that gives other values, by their keys."""
    earlier = constants_by_key(open_graph(before))
    graph = open_graph(after)
    decoders = Decoders(graph)
    different = []
    for scope, node in decoders.outputs():
        key = scope.key(node.outputs[0].name)
        if key in earlier and not same_bits(np.asarray(earlier[key].values), decoders.value(node.outputs[0])):
            different.append(key)
    return different
